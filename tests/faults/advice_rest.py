"""Trials of the messages of explanation, export, checkpoints, training and the machine."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from attnseg import files
from attnseg.cli.hydra_app import compose_raw
from attnseg.cli.program import COMMANDS
from attnseg.commands import check
from attnseg.commands.command import Invocation
from attnseg.data import parallel, store
from attnseg.errors import Problems, require
from attnseg.explain.selection import choose_layers, choose_point, choose_slice
from attnseg.export.capsule import pack_run
from attnseg.files import file_digest
from attnseg.gpu import fake_device
from attnseg.prediction.results import reporting_write_errors
from attnseg.prediction.segment import Member
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.checkpoints import load_weights
from attnseg.runs.facts import RunFacts
from attnseg.training import compiling
from attnseg.training.setup import check_devices
from tests.faults.advice import Trial, trials_of
from tests.faults.advice_commands import Evil
from tests.faults.advice_data import change
from tests.faults.advice_options import parse_command, typed
from tests.faults.advice_runs import done
from tests.faults.advice_splits import Arrays, arrays, configure
from tests.prediction.made import spec


class Scan:
    shape = (4, 8, 8)


SELECTED = (
    trials_of(
        lambda slice: choose_slice(Scan(), slice),
        "slice=9",
        follow={r"give 1 to (\d+)": "slice={1}"},
    )
    | trials_of(
        lambda point: choose_point(np.zeros((1, 8, 8), bool), point),
        "point=[9,9]",
        follow={r"row up to (\d+) and a column up to (\d+)": "point=[{1},{2}]"},
    )
    | trials_of(
        lambda layer: choose_layers(["blocks.0", "blocks.1"], [layer], "run") and None,
        "layer=block.0",
    )
)
COMMAND_LINES = typed(
    parse_command("export"),
    (
        "run=x int8=true formats=[torch]",
        {"add onnx to formats": "run=x int8=true formats=[torch,onnx]"},
    ),
    (
        "run=x formats=[torch] authors=me",
        {"add monai to formats": "run=x authors=me formats=[torch,monai]"},
    ),
    (
        "run=x formats=[monai] authors=$me",
        {"begin it with a letter": "run=x formats=[monai] authors=me"},
    ),
    ("run=x int8=true profile=strict,monai", {"give one": "run=x int8=true profile=strict"}),
) | typed(
    parse_command("predict"),
    (
        "run=x input=x output=x backend=onnx device=cuda",
        {
            "use (device)=(cpu)": "run=x input=x output=x backend=onnx {1}={2}",
            "or (backend)=(torch)": "run=x input=x output=x device=cuda {1}={2}",
        },
    ),
)


def pack(trial: Trial) -> None:
    given = {"output": "c.zip", "run": "outputs", "license": None, "use": None}
    options = {
        key: value and str(trial.root / value) for key, value in (given | trial.keywords).items()
    }
    pack_run(COMMANDS["capsule"].options.model_construct(**options, postprocess=None))


def make_folder(trial: Trial, text: str) -> None:
    Path(text.split("no folder ")[1].split(";")[0]).mkdir()


PACKED = {
    f"capsule {line}": Trial(
        pack, line, make=done, follow=follow, further="license: none|not a run folder"
    )
    for line, follow in (
        ("output=c.txt", {"name the file": "output=c.zip"}),
        ("output=none/c.zip", {"make it first": make_folder}),
        ("license=none.txt", {"name a text file": "license=outputs/phantom/setr/qkv/id/run.json"}),
    )
}


def save_checkpoint(root: Path, content: Any = None) -> None:
    model = torch.nn.Linear(2, 1)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    whole = {"state_dict": state, "epoch": 1, "global_step": 1} | EMPTY_PARTS
    write_checkpoint(root / "best.ckpt", whole if content is None else content)


def write_checkpoint(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    path.with_name("best.ckpt.sha256").write_text(f"{file_digest(path)}  best.ckpt\n")


EMPTY_PARTS: dict[str, Any] = {"callbacks": {}}


def load(trial: Trial) -> None:
    load_weights(torch.nn.Linear(2, 1), (trial.place or trial.root) / "best.ckpt")


def train_again(trial: Trial, text: str) -> None:
    """Train again: the new run has a folder of its own, as `advice_runs` tries."""
    assert "trainer.repeat=true" in text
    trial.place = trial.folder / "new"
    trial.place.mkdir(exist_ok=True)
    save_checkpoint(trial.place)


def restore_both(trial: Trial, text: str) -> None:
    shutil.copytree(trial.pristine, trial.root, dirs_exist_ok=True)


CHECKPOINTS = {
    f"checkpoint, {name}": Trial(
        load,
        make=save_checkpoint,
        damage=damage,
        follow={"trainer.repeat=true": train_again, "restore the file": restore_both},
    )
    for name, damage in {
        "code": lambda root: save_checkpoint(root, Evil()),
        "list": lambda root: save_checkpoint(root, [1]),
        "damaged": lambda root: save_checkpoint(root, b"PK\3\4"),
        "another model": lambda root: write_checkpoint(
            root / "best.ckpt",
            {"state_dict": {"model.weight": torch.zeros(3, 3)}, "epoch": 1, "global_step": 1}
            | EMPTY_PARTS,
        ),
    }.items()
}


def answer(trial: Trial) -> None:
    """Segment with the network of a run, which answers with NaN if that of a bad run."""
    made, value = spec(), np.nan if trial.keywords["run"] == "bad" else 0.0
    member = Member(lambda images: np.full((len(images), 1, 24, 30), value, np.float32), made.view)
    member.compute_logits(np.zeros((1, 1, 24, 30), np.float32))


def check_library(trial: Trial) -> None:
    """Use the library of a simulated device, which another user has built if it exists."""
    library = trial.root / "fake-cuda.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getuid", lambda: -1)
        if library.exists():
            fake_device.check_owner(library)


def begin_below(trial: Trial) -> None:
    config = configure(trial)
    ActiveRun(config, "id").end("stopped")


def classes_of(classes: list[str]) -> None:
    RunFacts(status="done", data={"classes": ["liver", "spleen"]}).check_classes("run", classes)


def write_when_free(trial: Trial) -> None:
    with reporting_write_errors(trial.root / "mask.nii.gz"):
        if (trial.root / "large").exists():
            raise OSError(28, "No space left on device")


def write_named(trial: Trial) -> None:
    path = trial.root / f"{trial.keywords['name']}.nii.gz"
    with reporting_write_errors(path):
        path.touch()


def free_room(trial: Trial) -> None:
    """Check the room of a disk that is small until something is deleted or another one is set."""
    free = (
        0 if (trial.root / "large").exists() and not trial.keywords.get("paths.outputs") else 10**9
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, free))
        files.check_room(trial.root, 10**6, "checkpoints")


def free_space(trial: Trial, text: str) -> None:
    (trial.root / "large").unlink()


def compile_without(trial: Trial) -> None:
    options = trial.keywords
    if options.get("trainer.compile", "default") is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                shutil, "which", lambda name: "/g++" if options.get("installed") else None
            )
            patch.setattr(
                compiling.importlib.util,
                "find_spec",
                lambda name: options.get("installed", options.get("triton")),
            )
            if "headers" in options:
                patch.setattr(compiling.sysconfig, "get_path", lambda *names: str(trial.root))
                if options["headers"]:
                    (trial.root / "Python.h").touch()
            patch.setattr(torch, "compile", lambda function, mode: function)
            model = torch.nn.Linear(1, 1)
            model.training_outputs = lambda image: image
            patch.setattr(model, "compile", lambda mode: None)
            trainer = SimpleNamespace(
                accelerator="gpu" if options["gpu"] else "cpu",
                compile=options.get("trainer.compile", "default"),
                deterministic=options.get("trainer.deterministic", True),
            )
            compiling.compile_model(model, trainer)


def check_all(trial: Trial) -> None:
    invocation = Invocation(trial.items, lambda f: None, lambda e: 1, lambda o: {}, lambda o: 0)
    raw = compose_raw(COMMANDS["check"], trial.items)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("check_networks", "check_loss", "check_profile"):
            patch.setattr(f"attnseg.contracts.check.{name}", lambda *_: [])
        check.run(SimpleNamespace(choices=raw["choices"]), invocation)


def want_package(name: str) -> None:
    require("search", "search", name)


def gather(trial: Trial) -> None:
    problems = Problems()
    for path in trial.root.iterdir():
        with problems.gathered(path):
            json.loads(path.read_text())
    problems.stop()


def one_json(root: Path) -> None:
    (root / "a.json").write_text("{}")


def start_again(trial: Trial, text: str) -> None:
    (trial.folder / "again").touch()


def lose_case(trial: Trial) -> None:
    """Read a case that another command removed, unless the command was started again."""
    reader = Arrays(trial.root)
    (case,) = store.prepare_cases(reader, reader.cases(), trial.folder / "store")
    if not (trial.folder / "again").exists():
        shutil.rmtree(trial.folder / "store")
    assert case.image.size


def lose_process(trial: Trial) -> None:
    """Work in two processes, one of which is killed while memory is short."""

    def work(item: int) -> int:
        if item == 1 and (trial.root / "large").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "count_processes", lambda items: 2)
        parallel.work_in_parallel(work, [0, 1], "Working", "items", trial.root)


OTHERS = {
    "NaN": Trial(
        answer,
        "run=bad",
        follow={
            "train it again with trainer.repeat=true": "run=new",
            "or use another run": "run=good",
        },
    ),
    "no outputs": Trial(
        begin_below, "paths.outputs=/dev/null/x", follow={"set (paths.outputs)": "seed=0"}
    ),
    "classes": trials_of(
        classes_of,
        "classes=[liver,milz]",
        follow={"classes (liver), (spleen), but": "classes=[{1},{2}]"},
    )["classes=[liver,milz]"],
    "write": Trial(
        write_when_free,
        make=lambda root: (root / "large").touch(),
        follow={"free space or": free_space},
    ),
    "room": Trial(
        free_room,
        "seed=0",
        make=lambda root: (root / "large").touch(),
        follow={"free space or": free_space, "set paths.outputs": "paths.outputs=other"},
    ),
    "compiler": Trial(
        compile_without,
        "gpu=false",
        follow={
            "install g": "gpu=false installed=1",
            "use (trainer.compile)=(null)": "gpu=false {1}={2}",
        },
    ),
    "triton": Trial(
        compile_without, "gpu=true", follow={"use (trainer.compile)=(null)": "gpu=true {1}={2}"}
    ),
    "C compiler": Trial(
        compile_without,
        "gpu=true triton=1",
        follow={
            "install gcc": "gpu=true installed=1",
            "use (trainer.compile)=(null)": "gpu=true triton=1 {1}={2}",
        },
    ),
    "headers": Trial(
        compile_without,
        "gpu=false installed=1 headers=false",
        follow={
            "install python": "gpu=false installed=1 headers=true",
            "use (trainer.compile)=(null)": "gpu=false installed=1 headers=false {1}={2}",
        },
    ),
    "another user": Trial(
        check_library,
        make=lambda root: None,
        damage=change("fake-cuda.so"),
    ),
    "max-autotune": Trial(
        compile_without,
        "gpu=false installed=1 trainer.compile=max-autotune",
        follow={
            "set (trainer.deterministic)=(false)": (
                "gpu=false installed=1 trainer.compile=max-autotune {1}={2}"
            ),
            "or (trainer.compile)=(default)": "gpu=false installed=1 {1}={2}",
        },
    ),
    "a case lost": Trial(lose_case, make=arrays(), follow={"start the command again": start_again}),
    "a process killed": Trial(
        lose_process,
        make=lambda root: None,
        damage=lambda root: (root / "large").touch(),
        follow={"run the command again": free_space},
    ),
    "a long name": Trial(
        write_named,
        f"name={'x' * 300}",
        follow={"rename the input": "name=short"},
    ),
    "nothing to check": Trial(
        check_all,
        "",
        follow={"as (attn=kv)": "{1}", "(model=setr)": "{1}", "(loss=ce)": "{1}"},
        further="missing; choose",
    ),
    "package": trials_of(want_package, "name=nope", follow={"pip install": "name=json"})[
        "name=nope"
    ],
    "any error": Trial(gather, make=one_json, damage=change("a.json", "{")),
    "accelerator": Trial(
        lambda trial: check_devices(configure(trial), 1),
        "trainer.accelerator=gpu",
        follow={"use trainer=(cpu)": "trainer.accelerator={1}"},
    ),
}

TRIALS = SELECTED | COMMAND_LINES | PACKED | CHECKPOINTS | OTHERS
