"""Trials of `data`: files of a dataset that are missing, surplus or misnamed; headers; options."""

import contextlib
import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnseg.data.readers import nifti as readers_nifti
from attnseg.data.readers.acdc import ACDC
from attnseg.data.readers.isic2018 import ISIC2018
from attnseg.data.readers.nifti import read_nifti
from attnseg.data.readers.nnunet import NNUNet
from attnseg.data.readers.pictures import GREY8, read_label_picture, read_picture
from attnseg.data.readers.synapse import Synapse
from attnseg.data.readers.uw_madison import UWMadison
from tests.data import (
    test_acdc,
    test_formats,
    test_isic2018,
    test_nifti,
    test_synapse,
)
from tests.data.test_formats import BODY
from tests.data.test_nnunet import LABELS, PICTURE, SCAN, Dataset
from tests.faults.advice import Trial, place_of, remove, restore, trials_of
from tests.faults.advice_data import (
    CT,
    OWN,
    SCANS,
    Edit,
    change,
    copy,
    folder_at,
    from_table,
    nnunet,
    read_all,
    tree,
)
from tests.faults.test_unpacking import write_tiles


def set_root(pattern: str) -> Callable[[Trial, str], None]:
    """Return a way: take the folder that holds what the message names."""

    def way(trial: Trial, text: str) -> None:
        name = re.search(r"folder that holds ([\w/.-]+\w)", text)[1]
        (found,) = trial.pristine.rglob(pattern if "patient001" in name else name)
        trial.place = found.parents[len(Path(name).parts) - 1]

    return way


def below(make: Edit, name: str = "below") -> Edit:
    return lambda root: make(root / name)


def elsewhere(reader: type, place: str) -> Callable[[Trial], None]:
    """Return an attempt that takes a wrong place as the root of a dataset."""

    def attempt(trial: Trial) -> None:
        trial.place = trial.place or trial.root / place
        read_all(reader)(trial)

    return attempt


def with_test_cases(root: Path) -> None:
    SCANS(root)
    made = Dataset(root, channels=("T1", "T2"))
    made.case("t", [SCAN + 1] * 2, part="Ts")


def rgb(root: Path) -> None:
    data = Dataset(root, ".png", "RGB")
    for number, name in enumerate(("a", "b0")):
        data.case(name, (np.stack([PICTURE + number] * 3, -1),), LABELS[0])
    (root / "dataset.json").write_text(json.dumps(data.content))


def groups(root: Path) -> None:
    test_isic2018.download(root, ("ISIC_0000001", "ISIC_0000002"))
    (root / "g.csv").write_text("image,group\nISIC_0000001,a\nISIC_0000002,b\n")


def isic_parts(root: Path) -> None:
    test_isic2018.download(root, ("ISIC_0000001", "ISIC_0000002"))
    test_isic2018.download(root, ("ISIC_0000003",), "Validation")


def groups_with(rows: bytes) -> Edit:
    return change("g.csv", rows)


IMAGES, MASKS = test_isic2018.IMAGES, test_isic2018.MASKS
PNG, CT_PICTURES = nnunet(ending=".png", channels=("grey",)), nnunet(ending=".tif")
PLACES = {
    "nnU-Net, root": Trial(
        elsewhere(NNUNet, "."), make=below(CT), follow={"folder that holds": set_root("")}
    ),
    "UW, root": Trial(
        elsewhere(UWMadison, "none"), make=below(tree), follow={"folder that": set_root("")}
    ),
    "ISIC, root": Trial(
        elsewhere(ISIC2018, "none"),
        make=test_isic2018.download,
        follow={"folder that": set_root("")},
    ),
    "Synapse, root": Trial(
        elsewhere(Synapse, "none"),
        make=lambda r: test_synapse.raw(r / "RawData/Training"),
        follow={"folder that": set_root("")},
    ),
    "ACDC, root": Trial(
        elsewhere(ACDC, "none"),
        make=below(test_acdc.download),
        follow={"folder that": set_root("patient001_frame01.nii.gz")},
    ),
    **{
        f"{reader.__name__}, {name}": Trial(read_all(reader), make=make, damage=change(name, None))
        for reader, make, names in (
            (ISIC2018, test_isic2018.download, (IMAGES, MASKS)),
            (Synapse, test_synapse.raw, ("img",)),
            (Synapse, test_synapse.package, ("train_npz",)),
            (UWMadison, tree, ("train.csv", "train")),
            (NNUNet, with_test_cases, ("imagesTs", "imagesTr")),
            (
                NNUNet,
                SCANS,
                ("imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b0_0000.nii.gz"),
            ),
            (Synapse, test_synapse.raw, ("label/label0001.nii.gz",)),
            (ACDC, test_acdc.download, ("training/patient001/patient001_frame01.nii.gz",)),
            (
                ISIC2018,
                isic_parts,
                (f"{IMAGES}/ISIC_0000001.png", f"{MASKS}/ISIC_0000001_segmentation.png"),
            ),
        )
        for name in names
    },
    **{
        f"{reader.__name__}, nothing in {names}": Trial(
            read_all(reader),
            make=make,
            damage=lambda root, names=names: [
                path.unlink()
                for name in names
                for path in (root / name).rglob("*")
                if path.is_file()
            ],
        )
        for reader, make, names in (
            (ISIC2018, test_isic2018.download, (IMAGES, MASKS)),
            (Synapse, test_synapse.raw, ("img", "label")),
            (UWMadison, tree, ("train",)),
        )
    },
    "Synapse, nothing": Trial(
        read_all(Synapse),
        make=test_synapse.raw,
        damage=lambda root: [shutil.rmtree(root / name) for name in ("img", "label")],
    ),
    **{
        f"{reader.__name__}, a folder for {name}": Trial(
            read_all(reader), make=make, damage=folder_at(name)
        )
        for reader, make, name in (
            (ISIC2018, test_isic2018.download, f"{IMAGES}/ISIC_0000001.png"),
            (Synapse, test_synapse.package, test_synapse.NPZ),
        )
    },
    "UW, another name": Trial(
        read_all(UWMadison),
        make=tree,
        damage=lambda root: (root / "train/case2").rename(root / "train/case9"),
    ),
}
FILES = {
    "nnU-Net, another name": Trial(
        read_all(NNUNet),
        make=SCANS,
        damage=copy("imagesTr/a_0000.nii.gz", "imagesTr/oops.nii.gz"),
        follow={
            "rename or": lambda trial, text: place_of(trial, text).rename(
                trial.root / "imagesTr/a_0000.nii.gz"
            ),
            "remove it": remove,
        },
    ),
    "nnU-Net, a channel too many": Trial(
        read_all(NNUNet),
        make=SCANS,
        damage=copy("imagesTr/a_0000.nii.gz", "imagesTr/a_0002.nii.gz"),
    ),
    "nnU-Net, two endings": Trial(
        read_all(NNUNet), make=SCANS, damage=copy("labelsTr/a.nii.gz", "labelsTr/a.nii")
    ),
    "nnU-Net, in training and test": Trial(
        read_all(NNUNet),
        make=with_test_cases,
        damage=lambda root: Dataset(root).case("a", [SCAN, SCAN], part="Ts"),
    ),
    "nnU-Net, a label of its own": Trial(
        read_all(NNUNet),
        make=with_test_cases,
        damage=copy("labelsTr/a.nii.gz", "labelsTr/x.nii.gz"),
    ),
    "nnU-Net, description": Trial(read_all(NNUNet), make=CT, damage=change("dataset.json", "{")),
    "nnU-Net, description is a list": Trial(
        read_all(NNUNet), make=CT, damage=change("dataset.json", "[]")
    ),
    "nnU-Net, a label turned": Trial(
        read_all(NNUNet),
        make=PNG,
        damage=lambda root: test_isic2018.save(root / "labelsTr/a.png", LABELS[0].T),
    ),
    "nnU-Net, a line": Trial(
        read_all(NNUNet),
        make=PNG,
        damage=lambda root: [
            test_isic2018.save(root / name, array[:1])
            for name, array in (("imagesTr/a_0000.png", PICTURE), ("labelsTr/a.png", LABELS[0]))
        ],
    ),
    "nnU-Net, a damaged picture": Trial(
        read_all(NNUNet),
        make=CT_PICTURES,
        damage=change("imagesTr/a_0000.tif", b"II*\0" + bytes(40)),
    ),
    "nnU-Net, 32 bits": Trial(
        read_all(NNUNet),
        make=CT_PICTURES,
        follow=OWN,
        damage=lambda root: test_isic2018.save(
            root / "imagesTr/a_0000.tif", PICTURE.astype(np.int32)
        ),
    ),
    "ISIC, two endings": Trial(
        read_all(ISIC2018),
        make=isic_parts,
        damage=lambda root: test_isic2018.save(
            root / IMAGES / "ISIC_0000001.jpg", test_isic2018.PHOTO
        ),
    ),
    "ISIC, in two parts": Trial(
        read_all(ISIC2018),
        make=isic_parts,
        damage=lambda root: test_isic2018.download(root, ("ISIC_0000001",), "Validation"),
    ),
    **from_table(
        "groups",
        read_all(ISIC2018),
        groups,
        {
            name: (groups_with(rows),)
            for name, (rows, _) in test_isic2018.GROUP_FAULTS.items()
            if rows is not None
        },
        options="groups=g.csv",
    ),
}
OPTIONS = {
    **trials_of(NNUNet, "root=. plane=oblique"),
    **trials_of(NNUNet, "root=. window=[1,1]", follow={"low, high": "root=. window=[0,1]"}),
    **trials_of(
        NNUNet, r"root=. patient=p\d", follow={"one pair of brackets": r"root=. patient=(p\d)"}
    ),
    **trials_of(Synapse, "root=. organs=9", "root=. order=swin"),
    **trials_of(
        Synapse, "root=. window=[275,-125]", follow={"low, high": "root=. window=[-125,275]"}
    ),
    **trials_of(ISIC2018, "root=. max_side=1"),
    "Synapse, organs=13": Trial(
        read_all(Synapse),
        "organs=13",
        make=test_synapse.package,
        follow={r"dataset\.organs=(8)": "organs={1}"},
    ),
}


def read_pictures(*modes: str) -> Callable[[Trial], None]:
    """Return an attempt that reads all pictures of a folder as labels, or in some modes."""

    def attempt(trial: Trial) -> None:
        for path in trial.root.iterdir():
            read_picture(path, modes) if modes else read_label_picture(path)

    return attempt


def read_volumes(channels: int = 1) -> Callable[[Trial], None]:
    def attempt(trial: Trial) -> None:
        for path in trial.root.iterdir():
            if not trial.exclude and path.suffix != ".img":
                read_nifti(path, channels=channels)

    return attempt


def plain(path: Path) -> None:
    test_isic2018.save(path / "a.tif", PICTURE)
    test_isic2018.save(path / "b.png", PICTURE)


def inverted(root: Path) -> None:
    test_formats.judge_inversion(root)
    for name in ("b.tif", "b.png"):
        (root / name).unlink(missing_ok=True)


def bitmap(root: Path) -> None:
    test_formats.judge_grey_bitmap(root)


def save_as_png(trial: Trial, text: str) -> None:
    path = place_of(trial, text)
    test_isic2018.save(path.with_suffix(".png"), PICTURE)
    path.unlink()


def scan(root: Path, kind: type = nib.Nifti1Image, name: str = "a.nii") -> None:
    nib.save(kind(BODY, test_formats.AFFINE), root / name)


def header(offset: int, layout: str, *values: Any) -> Edit:
    return lambda root: test_nifti.patched(root / "a.nii", offset, layout, *values)


def convert_to_nifti(trial: Trial, text: str) -> None:
    path = place_of(trial, text)
    scan(trial.root, name="converted.nii")
    path.unlink()


@contextlib.contextmanager
def few_voxels() -> Iterator[None]:
    """At most as many voxels in a volume as a small one has."""
    most, readers_nifti.MAX_VOXELS = readers_nifti.MAX_VOXELS, BODY.size
    try:
        yield
    finally:
        readers_nifti.MAX_VOXELS = most


def read_few(trial: Trial) -> None:
    with few_voxels():
        read_volumes()(trial)


def save_colour(root: Path, bits: int) -> None:
    colours = np.zeros((8, 8, 3), f"uint{bits}")
    (root / "a.png").write_bytes(write_png(colours))


def write_png(colours: NDArray[Any]) -> bytes:
    """Return an RGB picture of 8 or 16 bits, which Pillow does not write."""
    height, width, _ = colours.shape
    lines = b"".join(
        b"\0" + line.astype(colours.dtype.newbyteorder(">")).tobytes() for line in colours
    )
    head = struct.pack(">IIBBBBB", width, height, colours.itemsize * 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


HEADERS = {
    "inverted": Trial(read_pictures(), make=plain, damage=inverted, follow={"0 as black": restore}),
    "bitmap": Trial(
        read_pictures(*GREY8), make=plain, damage=bitmap, follow={"save it as PNG": save_as_png}
    ),
    "pages": Trial(
        read_pictures(*GREY8),
        make=plain,
        follow=OWN,
        damage=lambda root: test_isic2018.save(
            root / "a.tif", PICTURE, save_all=True, append_images=[Image.fromarray(PICTURE)]
        ),
    ),
    "unit": Trial(read_volumes(), make=scan, damage=header(123, "<b", 5)),
    "orientation": Trial(
        read_volumes(), make=scan, damage=header(280, "<12f", *[0.0] * 12), further="which is a"
    ),
    "half a pair": Trial(
        read_volumes(),
        make=lambda root: scan(root, nib.Nifti1Pair, "a.img"),
        damage=change("a.img", None),
    ),
    "tiles": Trial(
        read_pictures(*GREY8),
        make=plain,
        damage=lambda root: write_tiles(root / "a.tif", 8192),
        follow={"save it with smaller": lambda trial, text: write_tiles(place_of(trial, text), 16)},
    ),
    "16 bits": Trial(
        read_pictures("RGB"),
        make=lambda root: save_colour(root, 8),
        damage=lambda root: save_colour(root, 16),
        follow={"save it with (8)": lambda trial, text: save_colour(trial.root, 8)},
    ),
    "Analyze": Trial(
        read_volumes(),
        make=scan,
        damage=lambda root: scan(root, nib.AnalyzeImage, "b.hdr"),
        follow={"convert it to a NIfTI volume": convert_to_nifti},
    ),
    "channels": Trial(
        read_volumes(2),
        make=lambda root: nib.save(
            nib.Nifti1Image(np.stack([BODY] * 2, -1), np.eye(4)), root / "a.nii"
        ),
        damage=lambda root: nib.save(
            nib.Nifti1Image(np.stack([BODY] * 3, -1), np.eye(4)), root / "a.nii"
        ),
        follow={"give those": restore},
    ),
    "too large": Trial(
        read_few,
        make=scan,
        damage=lambda root: nib.save(nib.Nifti1Image(BODY.repeat(2, 0), np.eye(4)), root / "a.nii"),
    ),
}

TRIALS = PLACES | FILES | OPTIONS | HEADERS
