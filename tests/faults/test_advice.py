"""The advice of error messages: what can be followed is followed here, and gets further.

The advice of a message is what stands behind its last semicolon.
"""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from attnseg.cli.hydra_app import compose_raw
from attnseg.cli.program import COMMANDS
from attnseg.commands import train
from attnseg.config.budget import build_model
from attnseg.config.components import model_nodes
from attnseg.config.folder import list_choices, list_groups
from attnseg.data import splits
from attnseg.errors import AttnsegError
from attnseg.evaluation.mask_folders import find_patients, pair_files
from attnseg.models.pretrained import find_weights
from attnseg.preparation.datasets import load_dataset, open_reader
from tests.data.test_splits import small_dataset, write_folds

SOURCE = Path(__file__).parents[2] / "src/attnseg"
RAISED = ("Error", "found.append")  # ends of the names of functions that take a message


def text_of(node):
    """Return the text of a constant or an f-string, whose fields become `{}`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return ""


def collect_advice():
    """Return the advice of every message in the source, with the files that give it."""
    advice = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(RAISED):
                for text in map(text_of, node.args):
                    if "; " in text:
                        advice.setdefault(text.rpartition("; ")[2], set()).add(path.name)
    return advice


ADVICE = collect_advice()


def dataset_at(folder, *more, cases=("a", "b", "c", "d", "e", "f")):
    """Return a function that loads a small dataset with further options."""
    root = folder / "dataset"
    if not root.exists():
        small_dataset(root, cases)

    def load(*options):
        raw = compose_raw(train.COMMAND, [
            "dataset=nnunet", f"dataset.root='{root}'", f"paths.data='{folder}/data'",
            f"paths.outputs='{folder}/out'", *more, *options,
        ])  # fmt: skip
        config = train.COMMAND.parse(raw)
        return load_dataset(config, open_reader(config))

    return load


def message_of(action, *arguments):
    with pytest.raises((AttnsegError, ValueError)) as error:
        action(*arguments)
    return str(error.value)


def follow_nearest_name(folder):
    message = message_of(lambda: model_nodes("setrr"))
    name = re.search(r"did you mean (\w+)\?", message)[1]
    assert set(re.search("choose one of (.*)", message)[1].split(", ")) == {*list_choices("model")}
    model_nodes(name)


def follow_nearest_size(folder):
    def build(height, width):
        model, attn = model_nodes("setr", size="tiny")
        build_model(model, attn, 1, 2, (height, width))

    message = message_of(build, 60, 68)
    build(*map(int, re.search(r"nearest: (\d+)x(\d+)", message).groups()))


def follow_root(folder):
    load = dataset_at(folder)
    message = message_of(load, f"dataset.root='{folder}/dataset/imagesTr'")
    assert "set dataset.root to the folder that holds dataset.json" in message
    (place,) = folder.rglob("dataset.json")
    assert load(f"dataset.root='{place.parent}'").train


def follow_exclude(folder):
    load = dataset_at(folder)
    (folder / "dataset/labelsTr/c.nii.gz").write_bytes(b"damaged")
    message = message_of(load)
    assert "c.nii.gz" in message
    assert load("dataset.exclude=[c]").train


def follow_remove(folder):
    load = dataset_at(folder)
    shutil.copy(folder / "dataset/labelsTr/c.nii.gz", folder / "dataset/labelsTr/x.nii.gz")
    file = message_of(load).split(": ")[0]
    Path(file).unlink()
    assert load().train


def follow_keep_one(folder):
    load = dataset_at(folder)
    place = folder / "dataset/labelsTr"
    shutil.copy(place / "c.nii.gz", place / "c.nii")
    Path(message_of(load).split(": ")[0]).with_name("c.nii").unlink()
    assert load().train


def follow_duplicates(folder):
    load = dataset_at(folder)
    for part, end in (("imagesTr", "_0000"), ("labelsTr", "")):
        place = folder / "dataset" / part
        for name in "bcdef":
            shutil.copy(place / f"a{end}.nii.gz", place / f"{name}{end}.nii.gz")
        for name in ("g", "h", "i"):
            small = small_dataset(folder / "other", ("x", "y", "z", "g", "h", "i")) / part
            shutil.copy(small / f"{name}{end}.nii.gz", place)
    message = message_of(load)
    assert "dataset.split.duplicates=group" in message
    assert load("dataset.split.duplicates=group").train


def follow_fold(folder):
    path = write_folds(folder, [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}])
    message = message_of(splits.read_split, path, 5)
    last = int(re.search(r"use 0 to (\d+)", message)[1])
    assert len(splits.read_split(path, last)) == 2


def follow_one_role(folder):
    path = folder / "split.csv"
    path.write_text("patient,case,role,digest\np,a,train,\np,b,val,\n")
    assert "give all cases of a patient one role" in message_of(splits.read_split, path)
    path.write_text(path.read_text().replace("val", "train"))
    assert len(splits.read_split(path)) == 2


def follow_digest(folder):
    load = dataset_at(folder)
    path = folder / "split.csv"
    path.write_text(re.sub(r"[0-9a-f]{64}", "0" * 64, load().split, count=1))
    message = message_of(load, f"dataset.split.file='{path}'")
    assert "clear its digest" in message
    path.write_text(path.read_text().replace("0" * 64, ""))
    assert load(f"dataset.split.file='{path}'").train


def follow_delete(folder):
    load = dataset_at(folder)
    case = load().train[0]
    (case.folder / "image.npy").write_bytes(b"damaged")
    message = message_of(lambda: case.image)
    shutil.rmtree(re.search("delete (.*), and it is prepared again", message)[1])
    assert load().train[0].image.size


def follow_brackets(folder):
    message = message_of(find_patients, ["p1_a", "p1_b", "p2_a"], r"p\d")
    assert "put one pair of brackets around the patient's part" in message
    assert find_patients(["p1_a", "p1_b", "p2_a"], r"(p\d)")["p1_b"] == "p1"


def follow_partner(folder):
    for name in ("pred/a.nii", "truth/a.nii", "truth/b.nii"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    Path(message_of(pair_files, folder / "pred", folder / "truth").split(": ")[0]).unlink()
    assert list(pair_files(folder / "pred", folder / "truth")) == ["a"]


def follow_weights(folder):
    assert "give a finished run or a file of weights" in message_of(find_weights, folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/best.ckpt").touch()
    assert find_weights(folder).name == "best.ckpt"


def follow_version_2(folder):
    """The content is converted by hand, as the program that is named does."""
    load = dataset_at(folder)
    path = folder / "dataset/dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"labels": {"0": "background", "1": "a"}}))
    assert "nnUNetv2_convert_old_nnUNet_dataset" in message_of(load)
    path.write_text(json.dumps(content))
    assert load().train


# What a message advises, and how it is followed. The first pattern that matches counts.
FOLLOWED = {
    r"choose one of|nearest$|^\{\}$": follow_nearest_name,
    r"nearest: ": follow_nearest_size,
    r"set dataset\.root": follow_root,
    r"exclude the (case|scan)": follow_exclude,
    r"^(restore|add) or remove|^remove (it|one)$": follow_remove,
    r"keep one (file|of them)": follow_keep_one,
    r"dataset\.split\.duplicates": follow_duplicates,
    r"use 0 to": follow_fold,
    r"one role": follow_one_role,
    r"clear its digest": follow_digest,
    r"it is prepared again": follow_delete,
    r"one pair of brackets|correct (the pattern|dataset\.patient)": follow_brackets,
    r"add or remove \{\}": follow_partner,
    r"give a finished run": follow_weights,
    r"convert it to version 2": follow_version_2,
}
# Advice that a person follows: on a file, a machine or a command line, in words that begin with
# what to do. Options and commands that it names are looked up below.
BY_HAND = re.compile(
    r"add|ask|attnseg |check|choose|convert|copy|correct|crop|delete|derive|do not use|download|"
    r"exclude|expected|export|find|free|give|got|install|it takes|keep|leave|list|lower|make|mend|"
    r"name|narrow|pip install|quote|raise|remove|rename|repair|resample|resize|restore|round|"
    r"run|save|see|widen|"
    r"separate|set|split|start|take|train|try|unpack|use|wait|write|the same command|this is a bug"
)
# Statements instead of advice, each of which says what is allowed or what has been kept.
STATEMENTS = {
    "a scan has one", "a search needs at least one epoch", "at least 2 pixels are needed",
    "at most {} can be scored", "background, and it alone, is 0", "from 1 to {} are supported",
    "not loaded, since it could run code", "nothing to score",
    "nothing was kept, leave {} out of formats", "one of {} is allowed",
    "only the command line may name code: plugins=[my_idea.py]", "runs that vote must agree",
    "the last one is kept: free space and repeat the command", "the test set stays sealed",
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLLOWED)
def test_advice_gets_further(tmp_path, kind):
    assert [advice for advice in ADVICE if re.search(kind, advice)], f"nothing advises {kind}"
    FOLLOWED[kind](tmp_path)


def test_every_advice_is_in_a_table():
    tables = re.compile("|".join([*FOLLOWED, f"^({BY_HAND.pattern})"]))
    unknown = {a: files for a, files in ADVICE.items() if not tables.search(a)}
    assert {a: files for a, files in unknown.items() if a not in STATEMENTS} == {}
    assert {statement for statement in STATEMENTS if statement not in ADVICE} == set()
    assert len(ADVICE) > 200


def flatten(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")


def test_options_and_commands_that_advice_names_exist():
    keys = {*list_groups(), "plugins"}
    for command in COMMANDS.values():
        path = SOURCE.parents[1] / "configs" / f"{command.config_name}.yaml"
        keys |= (
            set(re.findall(r"^(\w+):", path.read_text(), re.MULTILINE)) if path.exists() else set()
        )
    for choices in ([], ["dataset=synapse"], ["dataset=nnunet"], ["model=setr"], ["loss=dice_ce"]):
        root = ["dataset.root=x"] if choices[:1] != [] and "dataset" in choices[0] else []
        raw = compose_raw(train.COMMAND, choices + root)
        keys |= set(flatten(raw)) | {key.rpartition(".")[2] for key in flatten(raw)}
    keys |= {"search.report", "search.space", "postprocess.min_pixels"}  # of files read elsewhere
    named = re.compile(
        r"\b([a-z_]+(?:\.[a-z_]+)*)=|"
        r"\b((?:dataset|trainer|paths|search|optimizer|model|loss|postprocess)(?:\.[a-z_]+)+)"
    )
    missing = {
        (match[1] or match[2], advice)
        for advice in ADVICE
        for match in named.finditer(advice)
        if (match[1] or match[2]) not in keys and not (match[2] or "").endswith((".json", ".csv"))
    }
    assert missing == set()
    commands = {name for advice in ADVICE for name in re.findall(r"`?attnseg ([a-z_]+)", advice)}
    assert commands - set(COMMANDS) <= {"capsule"}
    assert commands
