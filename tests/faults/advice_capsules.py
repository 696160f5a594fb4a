"""Trials of prediction: spoiled capsules, graphs and exports."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attnseg.prediction.capsule import GOLDEN_OUTPUT, SPEC, verify_capsule
from attnseg.prediction.exported import FACTS, ONNX, Exported
from attnseg.prediction.exported import SPEC as SPEC_FILE
from attnseg.prediction.onnx import OnnxNetwork
from tests.export import made
from tests.export.test_capsule import ATTACKS
from tests.faults.advice import Trial
from tests.faults.advice_data import change


def forged(name: str) -> Callable[[Path], None]:
    return lambda root: made.forge(root / "c.zip", ATTACKS[name]) and None


def get_again(trial: Trial, text: str) -> None:
    shutil.copy(trial.pristine / "c.zip", trial.root)


CAPSULES = {
    f"capsule, {name}": Trial(
        lambda trial: verify_capsule(trial.root / trial.keywords.get("capsule", "c.zip")),
        options,
        make=lambda root: made.write(root / "c.zip"),
        damage=damage,
        follow={
            "capsule=FILE": "capsule=c.zip",
            "get the file again|give a file of attnseg|export the run again|tell who": get_again,
        },
    )
    for name, options, damage in (
        ("bit", "", lambda root: spoil(root / "c.zip")),
        ("text", "", change("c.zip", "x" * 99)),
        ("missing", "capsule=none.zip", None),
        ("too many", "", forged("too many files")),
        ("link", "", forged("a link")),
        ("no manifest", "", forged("no manifest")),
        ("JSON", "", forged("a manifest that is no JSON")),
        ("version", "", forged("of a newer version")),
        (
            "golden",
            "",
            lambda root: made.write(
                root / "c.zip",
                **{GOLDEN_OUTPUT: made.array(np.zeros((2, 3, *made.SIZE), np.float32))},
            ),
        ),
        ("archive", "", lambda root: seal(root / "c.zip", b"PK\3\4" + bytes(99))),
        ("spec", "", lambda root: made.write(root / "c.zip", **{SPEC: b"{}"})),
    )
}


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


def seal(path: Path, data: bytes) -> None:
    path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())


def load_graph(trial: Trial) -> None:
    size = trial.keywords.get("size", made.SIZE)
    network = OnnxNetwork(trial.root / trial.keywords.get("file", "m.onnx"), 1)
    network(np.zeros((1, 1, *size), np.float32))


def graph(model: Any = None) -> Callable[[Path], None]:
    return lambda root: (
        (root / "m.onnx").write_bytes(
            (made.graph() if model is None else model()).SerializeToString()
        )
        and None
    )


def export_again(trial: Trial, text: str) -> None:
    shutil.copytree(trial.pristine, trial.root, dirs_exist_ok=True)


GRAPHS = {
    f"graph, {name}": Trial(
        load_graph,
        options,
        make=graph(),
        damage=damage,
        follow={
            "give a local file": "file=m.onnx",
            r"images of 1x(\d+)x(\d+)": "size=[{1},{2}]",
            "export the run again": export_again,
        },
    )
    for name, options, damage in (
        ("text", "", change("m.onnx", b"x" * 99)),
        ("empty", "", change("m.onnx", b"")),
        ("outside", "", graph(lambda: made.external("/etc/passwd"))),
        ("operator", "", graph(lambda: made.graph(domain="com.evil"))),
        ("shape", "", graph(lambda: made.graph(batch=1))),
        ("missing", "file=none.onnx", None),
        ("size", "size=[32,32]", None),
        (
            "weights",
            "",
            graph(lambda: made.graph(channels=2, size=(8, 8), out_size=None, outputs=0)),
        ),
    )
}


def exported(root: Path) -> None:
    (root / "export").mkdir()
    contents = {ONNX: made.graph().SerializeToString(), SPEC_FILE: made.spec().to_json().encode()}
    for name, data in contents.items():
        (root / "export" / name).write_bytes(data)
    files = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    (root / "export" / FACTS).write_text(json.dumps({"files": files}))


EXPORTS = {
    f"export, {name}": Trial(
        lambda trial: Exported(trial.root / "export").network(1),
        make=exported,
        damage=damage,
        follow={"run attnseg export": export_again, "export the run": export_again},
    )
    for name, damage in (
        ("nothing", lambda root: shutil.rmtree(root / "export")),
        ("facts", change("export/export.json", "{")),
        ("no ONNX", change("export/export.json", '{"files": {}}')),
        ("missing", lambda root: (root / "export" / ONNX).unlink()),
        ("changed", change("export/model.onnx", b"x")),
    )
}

TRIALS = CAPSULES | GRAPHS | EXPORTS
