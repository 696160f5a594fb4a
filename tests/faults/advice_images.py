"""Trials of prediction: images of every kind, output folders."""

import contextlib
import gzip
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from attnseg.prediction import dicom
from attnseg.prediction import folder as folders
from attnseg.prediction.folder import check_output, check_specs_agree
from attnseg.prediction.hub import REPOSITORY, parse_repository, to_local_path
from attnseg.prediction.images import read_item
from attnseg.prediction.inputs import find_inputs
from attnseg.prediction.manifest import Manifest
from tests.faults.advice import Trial, place_of, remove, restore
from tests.faults.advice_data import change
from tests.prediction.made import organ, spec
from tests.prediction.test_batches import nifti
from tests.prediction.test_dicom import ANOTHER, FAULTS, ORIGIN, STEP, TURN, put, write


def read_inputs(trial: Trial) -> None:
    """Find and decode the images of a folder, as prediction does."""
    options = trial.keywords
    made = spec(channels=options.get("channels", 1))
    inputs = find_inputs(trial.root / options.get("input", "."), trial.folder / "out", made)
    inputs.problems.stop()
    for item in inputs.items:
        with inputs.problems.gathered():
            folders._digest_item(item)
            read_item(item, made)
    inputs.problems.stop()


def exclude(trial: Trial, text: str) -> None:
    """An image is left out of a prediction by taking it away."""
    remove(trial, text)


def images(root: Path) -> None:
    nifti(root / "a.nii.gz")
    nifti(root / "b.nii.gz", seed=1)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "c.png")


def series(root: Path, edit: Callable[[int, Any], None] = lambda at, made: None) -> None:
    write(root / "one", organ((5, 8, 10)), edit=edit)
    write(root / "two", organ((5, 8, 10)), series="two")


def edited(edit: Callable[[int, Any], None]) -> Callable[[Path], None]:
    return lambda root: series(root, edit)


def restore_series(trial: Trial, text: str) -> None:
    shutil.copytree(trial.pristine / "one", trial.root / "one", dirs_exist_ok=True)


def give_apart(trial: Trial, text: str) -> None:
    """Move the file that the message names to an input of its own."""
    path = place_of(trial, text)
    (trial.folder / "apart").mkdir(exist_ok=True)
    path.rename(trial.folder / "apart" / path.name)


def from_third(edit: Callable[[Any], None]) -> Callable[[int, Any], None]:
    return lambda at, made: edit(made) if at >= 3 else None


def unpack(trial: Trial, text: str) -> None:
    path = place_of(trial, text)
    path.write_bytes(gzip.decompress(path.read_bytes()))


def rename(name: str) -> Callable[[Trial, str], None]:
    def way(trial: Trial, text: str) -> None:
        path = place_of(trial, text)
        path.rename(path.with_name(name))

    return way


def pack(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(gzip.compress((root / name).read_bytes()))


def copy(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: shutil.copy(root / old, root / new)


DICOM = {
    r"as an input of its own": give_apart,
    r"one is missing; restore it|decompress the series|give a series|convert it|resample|crop|"
    r"correct (its|the header|it)|no usable": restore_series,
    r"restore": restore,
    r"keep one of them": remove,
}
HEADERS = {
    "slope": lambda at, made: delattr(made, "RescaleSlope"),
    "patient": from_third(put(PatientID="another")),
    "modality": from_third(put(Modality="MR")),
    "mixed orientation": from_third(put(ImageOrientationPatient=ANOTHER)),
    "mixed spacing": from_third(put(PixelSpacing=[1, 1])),
    "mixed size": from_third(put(Rows=4, Columns=10, PixelData=b"\0" * 80)),
    "beside": lambda at, made: put(
        ImagePositionPatient=(ORIGIN + TURN[:, 2] * STEP * at + TURN[:, 0] * (at == 2)).tolist()
    )(made),
    "pixels": lambda at, made: put(BitsAllocated=8, BitsStored=8, HighBit=7)(made),
    "spacing": lambda at, made: put(PixelSpacing=[0, 1])(made),
    "directions": lambda at, made: put(ImageOrientationPatient=[2, 0, 0, 0, 1, 0])(made),
    "no series": lambda at, made: put(SeriesInstanceUID="")(made),
    "high bit": lambda at, made: put(HighBit=14)(made),
    "mosaic": lambda at, made: put(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])(made),
    "frames": lambda at, made: put(
        NumberOfFrames=2, PerFrameFunctionalGroupsSequence=[pydicom.Dataset()]
    )(made),
    "large": lambda at, made: put(RescaleSlope="1e38")(made),
}
SERIES = {
    f"series, {name}": Trial(read_inputs, make=series, damage=edited(edit), follow=DICOM)
    for name, edit in ({name: edit for name, (edit, _) in FAULTS.items()} | HEADERS).items()
}


def single(root: Path, thickness: float = 2.5) -> None:
    write(
        root / "one", organ((1, 8, 10)), edit=lambda at, made: put(SliceThickness=thickness)(made)
    )


def not_dicom(root: Path) -> None:
    path = next((root / "one").iterdir())
    path.write_bytes(path.read_bytes()[:200])


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        original = importlib.util.find_spec
        patch.setattr(
            importlib.util, "find_spec", lambda name: None if name == module else original(name)
        )
        yield


def read_without_pydicom(trial: Trial) -> None:
    """Read DICOM where pydicom is missing until it is "installed"."""
    with contextlib.nullcontext() if trial.options else without("pydicom"):
        trial.options, kept = "", trial.options
        read_inputs(trial)
        trial.options = kept


def read_large(trial: Trial) -> None:
    """Read series where a volume has at most three slices of 80 voxels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom, "MAX_VOXELS", 240)
        read_inputs(trial)


def crop(trial: Trial, text: str) -> None:
    """Keep the three lowest slices, whose numbers are the highest."""
    for path in place_of(trial, text).parent.iterdir():
        if pydicom.dcmread(path).InstanceNumber < 486:
            path.unlink()


SERIES |= {
    "series, too large": Trial(read_large, make=series, follow={"crop the series": crop}),
    "series, thickness": Trial(
        read_inputs, make=single, damage=partial(single, thickness=-1), follow=DICOM
    ),
    "series, cut off": Trial(read_inputs, make=series, damage=not_dicom, follow=DICOM),
    "series, no library": Trial(
        read_without_pydicom,
        make=series,
        follow={"(pip install 'attnseg.predict.')": "{1}".replace("{1}", "installed=1")},
    ),
}


def channels(root: Path) -> None:
    """Images of one channel and of two."""
    nifti(root / "good/a.nii.gz", np.stack([organ((10, 8, 4))] * 2, -1))
    nifti(root / "one/a_0000.nii.gz")
    for number in range(3):
        nifti(root / f"three/a_{number:04}.nii.gz")
    (root / "picture").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "picture/c.png")
    write(root / "dicom", organ((3, 8, 10)))


def two_channels(root: Path) -> None:
    for number in range(2):
        nifti(root / f"a_{number:04}.nii.gz")
    nifti(root / "b.nii.gz", np.stack([organ((10, 8, 4))] * 2, -1))


def same_names(root: Path) -> None:
    nifti(root / "a.nii", seed=1)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "a_nii.png")


def link(target: str) -> Callable[[Path], None]:
    return lambda root: (root / "x.png").symlink_to(target)


def check_place(trial: Trial) -> None:
    check_output(trial.root / "in", trial.root / trial.keywords["output"])


def open_output(trial: Trial) -> None:
    Manifest(trial.root / trial.keywords["output"], "settings")


def below_in(root: Path) -> None:
    nifti(root / "in/a.nii.gz")


OUTPUTS = {
    "output is input": Trial(
        check_place, "output=in", make=below_in, follow={"give another folder": "output=out"}
    ),
    "output holds other things": Trial(
        open_output, "output=in", make=below_in, follow={"give a new folder": "output=out"}
    ),
    "hub, place": Trial(
        lambda trial: to_local_path(trial.keywords["capsule"], "capsule"),
        "capsule=ftp://a/b",
        follow={"give a file": "capsule=a.zip"},
    ),
    "hub, name": Trial(
        lambda trial: (
            REPOSITORY.fullmatch(trial.keywords["capsule"])
            or parse_repository(trial.keywords["capsule"], "capsule")
        ),
        "capsule=hf://a",
        follow={r"give (hf://\S+)": "capsule={1}"},
    ),
    "votes": Trial(
        lambda trial: check_specs_agree([spec(), spec(channels=trial.keywords["channels"])]),
        "channels=2",
        follow={"must agree": "channels=1"},
    ),
}
IMAGES = {
    name: Trial(read_inputs, options, make=images, damage=damage, follow=follow)
    for name, options, damage, follow in (
        ("nothing", "input=none", None, {"correct input": "input=."}),
        ("no image", "input=empty", lambda r: (r / "empty").mkdir(), {"correct input": "input=."}),
        (
            "name",
            "",
            copy("a.nii.gz", "a\n.nii.gz"),
            {
                "rename it": lambda trial, text: (trial.root / "a\n.nii.gz").rename(
                    trial.root / "d.nii.gz"
                )
            },
        ),
        (
            "NIfTI",
            "",
            copy("a.nii.gz", "d.png"),
            {r"name it .nii or (\.nii\.gz)": rename("d.nii.gz")},
        ),
        ("packed", "", pack("c.png"), {"unpack it": unpack}),
        (
            "packed twice",
            "",
            pack("a.nii.gz"),
            {"unpack it": unpack},
        ),
        ("text", "", change("b.nii.gz", "x"), {}),
        ("empty", "", change("b.nii.gz", ""), {}),
        ("cut", "", change("b.nii.gz", b"\x1f\x8b\x08"), {}),
        (
            "one line",
            "",
            lambda r: Image.fromarray(np.zeros((1, 8), np.uint8)).save(r / "c.png"),
            {},
        ),
        ("same names", "", same_names, {"rename it": rename("z.png")}),
        ("a device", "", link("/dev/null"), {}),
        ("a link to nothing", "", link("nothing"), {}),
    )
}

CHANNELS = {
    f"channels, {name}": Trial(
        read_inputs,
        f"channels=2 input={name}",
        make=channels,
        follow={"give|restore|correct": "channels=2 input=good"},
    )
    for name in ("one", "three", "picture", "dicom")
} | {
    "channels, one twice": Trial(
        read_inputs,
        "channels=2",
        make=two_channels,
        damage=copy("a_0001.nii.gz", "a_0001.nii"),
        follow={"keep one file": remove},
    ),
    "channels, a gap": Trial(
        read_inputs,
        "channels=2",
        make=two_channels,
        damage=lambda root: (root / "a_0001.nii.gz").rename(root / "a_0002.nii.gz"),
        follow={
            "add the missing file": lambda trial, text: (trial.root / "a_0002.nii.gz").rename(
                trial.root / "a_0001.nii.gz"
            ),
            "or remove the others": lambda trial, text: [
                path.unlink() for path in trial.root.glob("a_*")
            ],
        },
    ),
}

TRIALS = SERIES | IMAGES | CHANNELS | OUTPUTS
