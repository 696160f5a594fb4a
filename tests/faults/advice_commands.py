"""Trials of commands: their files, plugins, published weights, searches."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attnseg import plugins
from attnseg.attention.attention import Attention
from attnseg.cli.help import help_text
from attnseg.cli.hydra_app import compose_raw, to_hydra
from attnseg.cli.program import COMMANDS
from attnseg.commands import new, train
from attnseg.commands.convert import check_overrides
from attnseg.config.budget import build_model
from attnseg.config.build import locate
from attnseg.config.components import model_nodes
from attnseg.config.errors import parse_options
from attnseg.config.training import parse_config
from attnseg.conversion.layer_search import search_layers
from attnseg.conversion.surgery import convert_site
from attnseg.models.pretrained import load_file_into
from attnseg.phantoms.phantom import make_once
from attnseg.probing.options import ProbeOptions
from attnseg.search.options import Search
from attnseg.search.search import open_search
from attnseg.search.tuned_study import open_variants
from tests.faults.advice import Trial, place_of, remove
from tests.faults.advice_data import change
from tests.faults.advice_options import typed
from tests.faults.test_configuration import HEAD, YAML_FAULTS


def small_setr() -> torch.nn.Module:
    model, attn = model_nodes("setr", size="tiny", head="naive", depth=1, dim=24)
    return build_model(model, attn, 1, 2, (32, 32))


def save_weights(root: Path) -> None:
    torch.manual_seed(0)
    weights = small_setr().state_dict()
    torch.save(weights, root / "weights.pth")


def load_weights(trial: Trial) -> None:
    name = trial.keywords.get("name", "weights.pth")
    load_file_into(small_setr(), name if "://" in name else trial.root / name)


def saved(content: Any) -> Callable[[Path], None]:
    return lambda root: torch.save(content, root / "weights.pth")


def spoiled(root: Path) -> None:
    weights = torch.load(root / "weights.pth")
    torch.save(
        {name: value * float("nan") for name, value in weights.items()}, root / "weights.pth"
    )


def of_another_size(root: Path) -> None:
    weights = torch.load(root / "weights.pth")
    torch.save(
        {name: value.reshape(-1)[:1] for name, value in weights.items()}, root / "weights.pth"
    )


def few(root: Path) -> None:
    weights = torch.load(root / "weights.pth")
    name, value = next(iter(weights.items()))
    torch.save({name: value} | {f"{n}.x": value for n in range(9)}, root / "weights.pth")


def give_weights(trial: Trial, text: str) -> None:
    shutil.copy(trial.pristine / "weights.pth", trial.root)
    if (trial.root / "run").is_dir():
        trial.options = "name=weights.pth"


def finish_run(trial: Trial, text: str) -> None:
    (trial.root / "run/checkpoints").mkdir(parents=True)
    shutil.copy(trial.pristine / "weights.pth", trial.root / "run/checkpoints/best.ckpt")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code was run",)


GIVE = {
    r"give weights of|take another file|export (one|plain)|download it again|give the file as|"
    r"download the file itself": give_weights,
    r"not loaded, since": give_weights,
}
WEIGHTS = {
    name: Trial(load_weights, make=save_weights, damage=damage, follow=GIVE)
    for name, damage in {
        "page": change("weights.pth", "<html>"),
        "damaged": change("weights.pth", b"PK\3\4"),
        "nothing": saved({"x": torch.zeros(1)}),
        "no tensors": saved([1]),
        "few": few,
        "code": saved(Evil()),
        "NaN": spoiled,
        "shapes": of_another_size,
        "checkpoint": saved({"state_dict": {}, "callbacks": {}, "loops": {}}),
        "sparse": saved({"x": torch.eye(3).to_sparse()}),
    }.items()
} | {
    line: Trial(load_weights, line, make=save_weights, damage=damage, follow=follow)
    for line, damage, follow in (
        ("name=nope.pth", None, {"give the path": "name=weights.pth"}),
        ("name=https://a.b/weights.pth", None, {"give its path": "name=weights.pth"}),
        (
            "name=run",
            lambda root: (root / "run").mkdir(),
            {"give a finished run": finish_run, "or a file of weights": give_weights},
        ),
    )
}


def compose_mine(trial: Trial) -> None:
    """Compose a training with an experiment of the working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trial.root)
        train.COMMAND.parse(compose_raw(train.COMMAND, ["experiment=mine", "phantom_size=tiny"]))


def mine(root: Path) -> None:
    (root / "configs/experiment").mkdir(parents=True)
    (root / "configs/experiment/mine.yaml").write_bytes(HEAD + b"seed: 1\n")


def restore_mine(trial: Trial, text: str) -> None:
    mine_at = Path("configs/experiment/mine.yaml")
    shutil.copy(trial.pristine / mine_at, trial.root / mine_at)


def see_help(trial: Trial, text: str) -> None:
    assert "KEY=VALUE" in help_text(train.COMMAND, [])
    restore_mine(trial, text)


FILES = {
    f"YAML, {name}": Trial(
        compose_mine,
        make=mine,
        damage=change("configs/experiment/mine.yaml", content),
        follow={"see --help": see_help, "; ": restore_mine},
    )
    for name, (content, _) in (YAML_FAULTS | {"plugins": (HEAD + b"plugins: [x.py]\n", "")}).items()
}


def make_new(trial: Trial) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trial.root)
        new.run(
            COMMANDS["new"].options.model_validate(
                {"kind": "attention", "choices": {}} | trial.keywords
            )
        )


def add_plugin(trial: Trial) -> None:
    """Add a file as a plugin, and locate its class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        before = {*sys.modules}
        try:
            file = trial.root / trial.keywords.get("file", "my_thing.py")
            plugins.add_files([str(file)])
            locate("loss", trial.keywords.get("target", "my_thing.Mine"))
        finally:
            plugins._files.clear()
            for name in {*sys.modules} - before:
                del sys.modules[name]


PLUGIN = (
    "from attnseg.losses.loss import SegmentationLoss\nclass Mine(SegmentationLoss):\n    pass\n"
)


def write_plugin(root: Path) -> None:
    (root / "my_thing.py").write_text(PLUGIN)
    (root / "json.py").write_text(PLUGIN)


def rename_plugin(trial: Trial, text: str) -> None:
    path = Path(re.search(r"rename (\S+)", text)[1])
    path.rename(path.with_name("my_thing.py"))
    trial.options = "file=my_thing.py"


def list_in_configs(trial: Trial, text: str) -> None:
    folder = Path(re.search(r"name it in a file of (\S+)", text)[1])
    (folder / "loss").mkdir(parents=True)
    (folder / "loss/mine.yaml").write_text("_target_: my_thing.Mine\n")


def derive(trial: Trial, text: str) -> None:
    (trial.root / "my_thing.py").write_text(PLUGIN)


NEW = {
    line: Trial(make_new, line, make=lambda root: None, damage=damage, follow=follow)
    for line, damage, follow in (
        ("name=My-Idea", None, {r"one such as (\w+)": "name={1}"}),
        ("name=softmax", None, {"choose another": "name=my_idea"}),
        (
            "name=my_idea",
            change("my_idea.py"),
            {
                "choose another name": "name=my_other",
                "or remove it": lambda trial, text: (
                    trial.root / place_from_working_folder(text)
                ).unlink(),
            },
        ),
    )
}


def place_from_working_folder(text: str) -> str:
    return text.split(": ")[0]


PLUGINS = {
    line: Trial(add_plugin, line, make=write_plugin, damage=damage, follow=follow)
    for line, damage, follow in (
        ("file=my_thing.txt", None, {"one such as": "file=my_thing.py"}),
        ("file=none.py", None, {"correct the path": "file=my_thing.py"}),
        ("file=json.py", lambda root: (root / "my_thing.py").unlink(), {"rename": rename_plugin}),
        (
            "target=my_thing.Mine",
            change("my_thing.py", "class Mine:\n    pass\n"),
            {"derive it": derive, "or name it in a file": list_in_configs},
        ),
        (
            "target=my_thing.Mine\\ ",
            change("my_thing.py", "1 / 0\n"),
            {"cannot be imported": derive},
        ),
    )
}


def phantom(trial: Trial) -> None:
    make_once(trial.root / "phantom", {"seed": 0}, lambda folder: (folder / "x").touch())


OTHERS = {
    "phantom": Trial(
        phantom,
        make=lambda root: None,
        damage=change("phantom/mine.txt"),
        follow={
            "remove or": remove,
            "rename it": lambda trial, text: place_of(trial, text).rename(trial.root / "kept"),
        },
    ),
    "duration": Trial(
        lambda trial: parse_options(ProbeOptions, probe_options(trial.keywords)),
        "budget=x",
        follow={
            "one such as (\\w+)": "budget={1}",
            ", (\\w+) or": "budget={1}",
            "or (2h)": "budget={1}",
        },
    ),
}


def probe_options(changes: dict[str, Any]) -> dict[str, Any]:
    raw = compose_raw(COMMANDS["probe"], ["attn=kv"])
    raw["probe"].update(changes)
    return raw


def search_raw(trial: Trial) -> tuple[Search, Callable[[Any], Any]]:
    raw = compose_raw(COMMANDS["search"], trial.items)
    options = parse_options(Search, raw["search"], "search")
    raw["paths"]["outputs"] = str(trial.folder / "outputs")
    config = parse_config({key: value for key, value in raw.items() if key != "search"})
    return options, lambda overrides: config


def search(trial: Trial) -> None:
    options, compose = search_raw(trial)
    open_search(options, compose, trial.items, lambda error: 1)


def tune(trial: Trial) -> None:
    options, compose = search_raw(trial)
    open_variants(options, options.study, compose, trial.items, lambda error: 1)


def drop(trial: Trial, text: str) -> None:
    trial.options = " ".join(trial.items[:-1])


SEARCHES = typed(
    search,
    (
        "search=optimizer trainer.max_epochs=0",
        {"at least (one) epoch": "search=optimizer trainer.max_epochs=1"},
    ),
    (
        "search=optimizer trainer=ddp trainer.devices=2",
        {"start the command once per device": "search=optimizer"},
    ),
    (
        "search=optimizer trainer.repeat=true",
        {"leave it false": "search=optimizer trainer.repeat=false"},
    ),
    ("search=optimizer dataset.split.watch_test=true", {"leave it": drop}),
    ("search=optimizer search.report=true", {"leave search.report out": drop}),
    ("search=optimizer optimizer.lr=1", {"leave it out of one": drop}),
) | typed(
    tune,
    ("search=tuned_attention attn=kv", {"leave it out of one": drop}),
    (
        "search=tuned_attention compare={baseline:kv}",
        {"use (search.study.compare)": "search=tuned_attention {1}={{baseline:kv}}"},
    ),
)


def convert(trial: Trial) -> None:
    command = COMMANDS["convert"]
    words = to_hydra(command, trial.items)
    command.parse(compose_raw(command, words))
    check_overrides(words)


CONVERSIONS = typed(
    convert,
    "run=a attn=kv seed=1",
    ("run=a epochs=3", {"such as (attn=kv)": "run=a epochs=3 {1}"}),
    ("run=a attn=kv trainer.max_epochs=3", {"use epochs=N": "run=a attn=kv epochs=3"}),
    (
        "run=a attn=kv task=0 logits=0 features=0",
        {"give one above 0": "run=a attn=kv task=1 logits=0 features=0"},
    ),
) | {
    "surgery": Trial(
        lambda trial: (
            convert_site(Attention(8, 1, sharing="qk"), Attention(8, 1), trial.keywords["surgery"])
            and None
        ),
        "surgery=value",
        follow={"use (\\w+) or": "surgery={1}", "or (\\w+)$": "surgery={1}"},
    ),
    "budget": Trial(
        lambda trial: search_layers([0, 1], lambda layers: 0.9 - 0.1 * len(layers)).choose(
            float(trial.keywords["budget"])
        ),
        "budget=0.01",
        follow={r"use (budget=\S+)$": "{1}"},
    ),
}

TRIALS = CONVERSIONS | WEIGHTS | FILES | NEW | PLUGINS | OTHERS | SEARCHES
