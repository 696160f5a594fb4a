"""The advice of error messages is followed, and gets further; see `advice.py` and the tables.

Every text of the source with advice is followed by a trial of a table, or stands in a list below:
with the reason, if it is advice that no test can follow.
"""

import re

import pytest
import yaml

from attnseg.cli.hydra_app import compose_raw
from attnseg.cli.program import COMMANDS
from attnseg.commands import train
from attnseg.config.components import model_nodes
from attnseg.config.folder import list_choices, list_groups
from tests.faults import (
    advice_capsules,
    advice_commands,
    advice_data,
    advice_files,
    advice_images,
    advice_masks,
    advice_options,
    advice_rest,
    advice_runs,
    advice_splits,
)
from tests.faults.advice import SOURCE, check_trials, collect_messages, find_message, provoke

QUICK = {"splits": advice_splits, "rest": advice_rest}
OTHERS = {
    "data": advice_data, "files": advice_files, "options": advice_options,
    "commands": advice_commands, "images": advice_images, "runs": advice_runs,
    "masks": advice_masks, "capsules": advice_capsules,
}  # fmt: skip

# Texts with a semicolon that give no advice: sentences of reports, facts, what was done.
PROSE = re.compile(
    r"^metrics/profiles|^(benchmark/report|doctor/|probing/chart|search/report|contracts/)"
    r"|^study/(caveats|tables|verdict|page|margins|null_control)"
    r"|^(preparation/fingerprint|commands/(demo|new_parts))"
    r"|: ; [^t]?|: ; $|: ; here|^explain/(attention_pictures|explain).*(up to|not linear)"
    r"|TEST SET WATCHED|stays closed|on record elsewhere|taken as|sealed with %s|%s the first"
    r"|orientation may be lost|MODEL\[/ATTENTION\]|pixels of a side"
    r"|only the first may vary|are written as NIfTI|^cli/[^:]*: \{\}; \{\}"
    r"|another seed gives up|where it was predicted otherwise|[Ww]here profiles|search continues"
    r"|results may differ|training starts over|this epoch has no Dice|nothing to score"
    r"|^export/monai_bundle[^:]*: (not stated|research|\{\})"
    r"|were trained anew|winner \{\}|weights have none|: \{\} and \{\}: \{\}; \{\}|throughout; \{\}"
)
# Advice that no test follows, by the reason; each line is part of one text at least.
EXCEPTED = {
    "a person has to report, ask or look": """
        this is a bug of ours
        check the name, the network and your login
        see its log, and run
        {}; see {}
        command line: {}; see --help
        correct the plugin, see""",
    "it needs a larger machine, a GPU or several processes": """
        crop it or use a machine
        lower batch_size, crop it
        lower dataset.batch_size or
        trainer.auto_batch: one slice
        slices do not fit on the GPU
        trainer.accelerator: the GPU's driver
        trainer.accelerator: PyTorch
        cannot compute this attention with
        has no deterministic form
        open files: {} at once
        does not tell how much memory
        process that tried a batch
        set trainer.devices={}
        layers: auto searches in one process
        processes is more than the {} training slices
        another process of this run has ended
        no batch came in time
        a loader process {} while
        use trainer.num_workers=0
        is training this; wait
        another process writes to it
        jobs are missing; the same
        run the command again to go on""",
    "the machine has to lack something, as in the tests of scarcity": """
        too little to load a library
        no other process or thread may be started
        no room in /dev/shm
        not for bytes but for no more files""",
    "MONAI has to fail, or the network to be of a kind, as in the tests of bundles": """
        MONAI cannot run the bundle
        voxels differ from the masks of
        takes the class name
        the run segments pictures""",
    "the tests of augmentation give it": """
        scale is {}; it must be""",
    "published code has to be there, as in the tests of the benchmark": """
        names no published code""",
    "the same command goes on, which the tests of stops, kills and sweeps show": """
        error: stopped by
        Stopped after %d steps
        trainings are missing; the same command""",
    "a disk has to be full amid a run, as in the tests of saves and disks": """
        the last one is kept
        results in a row could not be written""",
    "a library has to be missing or broken": """
        run `attnseg doctor`
        torch is not installed
        which is not installed; install it
        simulation: needs a C++ compiler""",
    "a training has to diverge": """
        is not finite after {} steps
        the loss became
        batch normalisation gets
        was not finite after any epoch
        not finite after any epoch; narrow
        was completed; widen
        no training was finished""",
    "it needs a finished training, its data or its export": """
        no test cases; use split=val
        is not that of the run any more
        trained on other cases, or with another split
        look like visits of one patient, and are
        merged or pruned tokens
        is of a model without attention
        its case {} is another one
        case: no {} in that split
        cannot be read; give case=NAME
        logits differ from PyTorch's
        cannot be traced
        onnx cannot express
        int8: the Dice
        holds a search of another
        not found; restore it or train again
        noted what their data are
        no {} in it; restore it
        not on the command line; add plugins
        problems, listed above""",
    "it needs further runs": """
        add runs of another variant
        no patient has a value
        a pilot needs
        train more seeds
        several variants are {}
        is best at 0""",
    "no part of the package is so, but one of a plugin may be": """
        has no attention; use attn=none
        is the name of a plugin and of a part
        a label to ignore; use loss.batch=true
        logger={}: cannot begin
        an option of one attention""",
    "checks before it exclude it, or its files are hard to write": """
        no usable orientation
        {}: {} is {}; restore it
        not readable DICOM
        too far apart; correct
        postprocess.min_pixels""",
    "it needs a process of its own, as in the tests of the command line and of the simulation": """
        no such command
        PyTorch cannot compile this network
        simulation: torch is imported already""",
}
PARTS = [part.strip() for some in EXCEPTED.values() for part in some.strip().splitlines()]
MESSAGES = collect_messages(PROSE)


@pytest.mark.parametrize("table", QUICK)
def test_advice_gets_further(tmp_path, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    followed, problems = check_trials(QUICK[table].TRIALS, tmp_path, MESSAGES)
    assert not problems, "\n".join(problems)
    assert followed


@pytest.mark.full
def test_all_advice_is_followed_or_excepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    followed, problems = set(), []
    for name, table in {**QUICK, **OTHERS}.items():
        some, failed = check_trials(table.TRIALS, tmp_path / name, MESSAGES)
        followed |= some
        problems += failed
    assert not problems, "\n".join(problems)
    left = [message for message in MESSAGES if message not in followed]
    unknown = [f"{m.files[0]}: {m.text}" for m in left if not any(p in m.text for p in PARTS)]
    assert not unknown, "nobody follows:\n" + "\n".join(unknown)
    stale = [part for part in PARTS if not any(part in message.text for message in left)]
    assert not stale, "these are followed, or gone:\n" + "\n".join(stale)
    assert len(followed) > 350


def test_exceptions_are_of_texts_in_the_source():
    assert [part for part in PARTS if not any(part in m.text for m in MESSAGES)] == []
    assert len(MESSAGES) > 400


def test_a_message_names_the_nearest_choice_and_all_of_them():
    (text,) = provoke(lambda: model_nodes("setrr"))
    assert find_message(text, MESSAGES)
    assert re.search(r"did you mean (\w+)\?", text)[1] == "setr"
    assert {*re.search("choose one of (.*)", text)[1].split(", ")} == {*list_choices("model")}


def flatten(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")


def test_options_and_commands_that_advice_names_exist():
    keys = {*list_groups(), "plugins"}
    for command in COMMANDS.values():
        path = SOURCE.parents[1] / "configs" / f"{command.config_name}.yaml"
        keys |= set(flatten(yaml.safe_load(path.read_text()))) if path.exists() else set()
    for choices in ([], ["dataset=synapse"], ["dataset=nnunet"], ["model=setr"], ["loss=dice_ce"]):
        root = ["dataset.root=x"] if choices[:1] != [] and "dataset" in choices[0] else []
        raw = compose_raw(train.COMMAND, choices + root)
        keys |= set(flatten(raw)) | {key.rpartition(".")[2] for key in flatten(raw)}
    converting = compose_raw(COMMANDS["convert"], ["convert.parent=x"])
    keys |= {key.rpartition(".")[2] for key in flatten(converting)}
    # of files read elsewhere, or null by default
    keys |= {"search.report", "search.space", "search.study.compare", "postprocess.min_pixels"}
    named = re.compile(
        r"\b([a-z_]+(?:\.[a-z_]+)*)=|"
        r"\b((?:dataset|trainer|paths|search|optimizer|model|loss|postprocess)(?:\.[a-z_]+)+)"
    )
    advised = {message.advice for message in MESSAGES}
    missing = {
        (match[1] or match[2], advice)
        for advice in advised
        for match in named.finditer(advice)
        if (match[1] or match[2]) not in keys and not (match[2] or "").endswith((".json", ".csv"))
    }
    assert missing == set()
    commands = {name for advice in advised for name in re.findall(r"`?attnseg ([a-z_]+)", advice)}
    assert commands - set(COMMANDS) <= {"capsule"}
    assert commands
