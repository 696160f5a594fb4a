"""Trials of prediction: spoiled capsules, graphs and exports."""

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from attnseg.prediction.capsule import GOLDEN_OUTPUT, SPEC, verify_capsule
from attnseg.prediction.exported import FACTS, ONNX, Exported
from attnseg.prediction.exported import SPEC as SPEC_FILE
from attnseg.prediction.onnx import OnnxNetwork
from attnseg.viewer.desk import Desk
from attnseg.viewer.view import open_site
from attnseg.viewer.written import open_predictions
from tests.export import made
from tests.export.test_capsule import ATTACKS
from tests.faults.advice import Trial
from tests.faults.advice_data import change
from tests.prediction.made import TILTED, organ, segment


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


def predicted(root: Path) -> None:
    nib.save(nib.Nifti1Image(organ(), TILTED), root / "a.nii")
    segment(root / "a.nii", root / "out")


def open_port(trial: Trial) -> None:
    """Open the page's server, on a port that is taken if the options say so."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = trial.keywords["port"]
        taken = other.getsockname()[1]
        open_site(Desk([], trial.root, 1), taken if port == "taken" else port).server_close()


VIEWS = {
    "view, predictions": Trial(
        lambda trial: open_predictions(trial.root / trial.keywords["predictions"]) and None,
        "predictions=none",
        make=predicted,
        follow={"give the output folder": "predictions=out"},
    ),
    "view, port": Trial(open_port, "port=taken", make=lambda root: None),
}

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

TRIALS = CAPSULES | GRAPHS | EXPORTS | VIEWS
