"""Hostile datasets: nothing runs, nothing outside the root is read, memory is not exhausted."""

import gzip
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from attnseg import cli
from tests.data.uw_tree import Tree
from tests.safety.payload import Payload

SCANS = ("case1_day0", "case2_day0", "case3_day0")
SLICE = "case2_day0/scans/slice_0001_5_4_1.50_1.63.png"
GRID = np.diag([-1.0, -1.0, 2.0, 1.0])


def uw(root: Path) -> Tree:
    tree = Tree(root, SCANS)
    tree.write()
    return tree


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """Return a grey 16-bit PNG that says it is this large and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *more, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        checksum = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return data


def picture_bomb(root, mark):
    uw(root).path(SLICE).write_bytes(png(200_000, 200_000))


def text_bomb(root, mark):
    text = b"x\0\0" + zlib.compress(bytes(1 << 28), 9)
    uw(root).path(SLICE).write_bytes(png(5, 4, (b"zTXt", text)))


def pickle_as_picture(root, mark):
    import pickle

    uw(root).path(SLICE).write_bytes(pickle.dumps(Payload(mark)))


def postscript_as_picture(root, mark):
    uw(root).path(SLICE).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n(x) run")


def formula_as_class(root, mark):
    tree = Tree(root, SCANS)
    tree.rows["case1_day0_slice_0001", f"=cmd|'/c touch {mark}'!A1"] = ""
    tree.write()


def formula_as_mask(root, mark):
    tree = Tree(root, SCANS)
    tree.rows["case1_day0_slice_0001", "stomach"] = "=1+1 __import__('os')"
    tree.write()


def endless_run(root, mark):
    tree = Tree(root, SCANS)
    tree.rows["case1_day0_slice_0001", "stomach"] = f"1 {10**18}"
    tree.write()


def huge_cell(root, mark):
    uw(root)
    with (root / "train.csv").open("a") as table:
        table.write("case1_day0_slice_0001,stomach," + "9" * (1 << 25) + "\n")


def fifo_as_table(root, mark):
    uw(root)
    (root / "train.csv").unlink()
    (root / "train.csv").mkdir()


def link_loop(root, mark):
    path = uw(root).path(SLICE)
    path.unlink()
    path.symlink_to(path)


def volume(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, GRID), path)
    return path


def nnunet(root: Path, **more) -> tuple[Path, Path]:
    """Write three cases; return the files of the second."""
    root.mkdir()
    labels = {"background": 0, "organ": 1}
    names = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**names, **more}))
    files = []
    for name in "abc":
        voxels = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3) + ord(name)
        files.append(volume(root / f"imagesTr/{name}_0000.nii.gz", voxels))
        files.append(volume(root / f"labelsTr/{name}.nii.gz", np.uint8(voxels % 2)))
    return files[2], files[3]


def listed(images: str, label: str, case: str = "a"):
    def write(root, mark):
        outside = volume(root.parent / "outside.nii.gz", np.zeros((4, 5, 3), np.uint8))
        names = [name.replace("OUTSIDE", str(outside)) for name in (images, label)]
        nnunet(root, dataset={case: {"images": [names[0]], "label": names[1]}})

    return write


def edited(path: Path, offset: int, data: bytes) -> None:
    """Change bytes of a compressed volume."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(bytes(content)))


def header(offset: int, kind: str, *values: float):
    """Change a field of a NIfTI header."""

    def write(root, mark):
        edited(nnunet(root)[0], offset, struct.pack(f"<{len(values)}{kind}", *values))

    return write


def endless_gzip(root, mark):
    image, _ = nnunet(root)
    image.write_bytes(image.read_bytes() + gzip.compress(bytes(1 << 20))[:-9])


def pickled_nifti(root, mark):
    import pickle

    nnunet(root)[0].write_bytes(gzip.compress(pickle.dumps(Payload(mark))))


def linked_out(root, mark):
    image, _ = nnunet(root)
    outside = image.rename(root.parent / "outside.nii.gz")
    image.symlink_to(outside)


def nested_json(root, mark):
    nnunet(root)
    (root / "dataset.json").write_text("[" * 100_000)


def package(root: Path) -> Path:
    """Write a package of three scans; return one slice's file."""
    for number in (5, 6, 7):
        path = root / f"train_npz/case000{number}_slice000.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).random((8, 8))
        np.savez(path, image=values, label=np.float64(values > 0.5))
    (root / "test_vol_h5").mkdir()
    volume_h5(root)
    return root / "train_npz/case0006_slice000.npz"


def volume_h5(root: Path) -> Path:
    path = root / "test_vol_h5/case0008.npy.h5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(8).random((2, 8, 8))
        file["image"], file["label"] = values, np.float64(values > 0.5)
    return path


def pickled_arrays(root, mark):
    np.savez(package(root), image=np.array([Payload(mark)], object), label=np.zeros((8, 8)))


def npz_header_bomb(root, mark):
    path = package(root)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("image", "label"):
            with archive.open(f"{name}.npy", "w") as file:
                described = {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
                np.lib.format.write_array_header_2_0(file, described)


def npz_bomb(root, mark):
    np.savez_compressed(package(root), image=np.zeros(1 << 28, np.uint8), label=np.zeros(1))


def npz_with_paths(root, mark):
    with zipfile.ZipFile(package(root), "w") as archive:
        archive.writestr("../../mark", "x")
        archive.writestr("/mark", "x")


def h5_bomb(root, mark):
    package(root)
    with h5py.File(root / "test_vol_h5/case0008.npy.h5", "w") as file:
        for name in ("image", "label"):
            file.create_dataset(name, (4096, 1 << 15, 1 << 15), "u1", chunks=(1, 1 << 10, 1 << 10))


def h5_link_out(root, mark):
    package(root)
    with h5py.File(root.parent / "outside.h5", "w") as file:
        file["image"] = file["label"] = np.zeros((2, 8, 8))
    with h5py.File(root / "test_vol_h5/case0008.npy.h5", "w") as file:
        for name in ("image", "label"):
            file[name] = h5py.ExternalLink(str(root.parent / "outside.h5"), name)


def h5_raw_file(root, mark):
    package(root)
    secret = root.parent / "secret"
    secret.write_bytes(bytes(2 * 8 * 8))
    with h5py.File(root / "test_vol_h5/case0008.npy.h5", "w") as file:
        for name in ("image", "label"):
            file.create_dataset(name, (2, 8, 8), "u1", external=[(str(secret), 0, 128)])


def h5_pickle(root, mark):
    import pickle

    package(root)
    with h5py.File(root / "test_vol_h5/case0008.npy.h5", "w") as file:
        for name in ("image", "label"):
            file[name] = np.void(pickle.dumps(Payload(mark)))


HOSTILE = {
    "uw_madison": {
        "picture bomb": picture_bomb,
        "text bomb": text_bomb,
        "pickle as picture": pickle_as_picture,
        "postscript as picture": postscript_as_picture,
        "formula as class": formula_as_class,
        "formula as mask": formula_as_mask,
        "endless run": endless_run,
        "huge cell": huge_cell,
        "table a folder": fifo_as_table,
        "link loop": link_loop,
    },
    "nnunet": {
        "path upwards": listed("../outside.nii.gz", "labelsTr/a.nii.gz"),
        "absolute path": listed("imagesTr/a_0000.nii.gz", "OUTSIDE"),
        "NUL in a path": listed("imagesTr/a\0_0000.nii.gz", "labelsTr/a.nii.gz"),
        "path as case": listed("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "../../a"),
        "NUL in a case": listed("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "a\0b"),
        "link out": linked_out,
        "nested JSON": nested_json,
        "volume of terabytes": header(40, "h", 3, 32767, 32767, 32767, 1, 1, 1, 1),
        "negative size": header(40, "h", 3, -4, 5, 3, 1, 1, 1, 1),
        "no dimensions": header(40, "h", 0, 0, 0, 0, 0, 0, 0, 0),
        "seven dimensions": header(40, "h", 7, 4, 5, 3, 9, 9, 9, 9),
        "more than there is": header(40, "h", 3, 400, 500, 300, 1, 1, 1, 1),
        "offset far away": header(108, "f", 1e30),
        "offset before": header(108, "f", -1e9),
        "offset no number": header(108, "f", float("nan")),
        "type of nothing": header(70, "h", 4095),
        "complex numbers": header(70, "h", 1792),
        "shift no number": header(112, "f", 1.0, float("inf")),
        "place no number": header(280, "f", *[float("nan")] * 12),
        "endless gzip": endless_gzip,
        "pickled volume": pickled_nifti,
    },
    "synapse_published": {
        "pickled arrays": pickled_arrays,
        "NPZ header bomb": npz_header_bomb,
        "NPZ bomb": npz_bomb,
        "NPZ with paths": npz_with_paths,
        "HDF5 bomb": h5_bomb,
        "HDF5 link out": h5_link_out,
        "HDF5 raw file": h5_raw_file,
        "HDF5 pickle": h5_pickle,
    },
}
CASES = [(name, what) for name, found in HOSTILE.items() for what in found]


@pytest.mark.parametrize(("dataset", "what"), CASES, ids=[what for _, what in CASES])
def test_hostile_datasets(call, tmp_path, dataset, what):
    mark = tmp_path / "mark"
    HOSTILE[dataset][what](tmp_path / "root", mark)
    answer = call(f"dataset={dataset}", f"dataset.root={tmp_path / 'root'}", command=cli.prepare)
    assert answer.code == 3, answer.err
    lines = answer.err.splitlines()
    assert all(line.startswith("error: ") for line in lines), answer.err
    assert lines[-1].count("; ") >= 1
    assert "Traceback" not in answer.out + answer.err
    assert not mark.exists()
    assert not Path("/mark").exists()
    assert not list(tmp_path.glob("outputs/*/*"))


def test_the_datasets_are_good_before_they_are_broken(call, tmp_path):
    for dataset, write in (("uw_madison", uw), ("nnunet", nnunet), ("synapse_published", package)):
        write(tmp_path / dataset)
        root = f"dataset.root={tmp_path / dataset}"
        answer = call(f"dataset={dataset}", root, command=cli.prepare)
        assert (answer.code, answer.err) == (0, "")


def test_a_pipe_in_place_of_a_file_does_not_hang(call, tmp_path):
    path = uw(tmp_path / "root").path(SLICE)
    path.unlink()
    os.mkfifo(path)
    answer = call("dataset=uw_madison", f"dataset.root={tmp_path / 'root'}", command=cli.prepare)
    assert answer.code == 3
