"""What there is to segment: files and folder trees, their kinds found by content.

An item is what becomes one result: a NIfTI file, or several that are channels of one image
(`NAME_0000.nii.gz`, `NAME_0001.nii.gz`); a DICOM series; a picture; or a scan folder of the
UW-Madison download. Hidden files are passed over.
"""

import gzip
import os
import re
import stat
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from attnseg.data.readers.pictures import SUFFIXES
from attnseg.data.readers.uw_madison import SCAN_FOLDER_NAME, SLICE_FILE_NAME, parse_slice_name
from attnseg.errors import DataError, Problems, first_line
from attnseg.predict.dicom import SUFFIX as DICOM
from attnseg.predict.dicom import group
from attnseg.predict.spec import InferenceSpec

Kind = Literal["nifti", "dicom", "picture", "scan"]
VOLUMES = (".nii", ".nii.gz")
PICTURES = {  # how each format begins, by Pillow's name
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
CHANNEL = re.compile(r"(.+)_(\d{4})")
HEAD = 352  # bytes of a NIfTI header, up to the word that says so


@dataclass(frozen=True)
class Item:
    """What becomes one result.

    Attributes:
        kind: what it is.
        name: of its results, below the folder of each sort of result; without a suffix.
        files: all that it is read from, in order.
    """

    kind: Kind
    name: str
    files: tuple[Path, ...]

    @property
    def place(self) -> Path:
        """What messages name."""
        folder = self.kind == "dicom" or self.kind == "scan"
        return self.files[0].parent if folder and len(self.files) > 1 else self.files[0]


@dataclass
class Found:
    """What a search found.

    Attributes:
        items: to be segmented, by name.
        problems: what cannot be, a line each.
        others: files of other kinds.
    """

    items: list[Item] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    others: list[Path] = field(default_factory=list)


def find(place: Path, output: Path, spec: InferenceSpec) -> Found:
    """List what there is to segment.

    Args:
        place: a file, or a folder with all below it.
        output: folder that is passed over.
        spec: says whether slices are scans, and how many channels an image has.

    Raises:
        DataError: nothing is there.
    """
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; correct input")
    root = place if place.is_dir() else place.parent
    found = Found()
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for path in walk(place, output.resolve()) if place.is_dir() else [place]:
        with found.problems.gathered():
            kind = kind_of(path)
            if kind is None:
                found.others.append(path)
            else:
                by_kind[kind].append(path)
    if spec.volumetric and spec.channels == 1:
        slices = {path for path in by_kind["picture"] if scan_of(path)}
        found.items += _scans(slices, root, found.problems)
        by_kind["picture"] = [path for path in by_kind["picture"] if path not in slices]
    for name, files in _channels(by_kind["nifti"], root, spec.channels):
        found.items.append(Item("nifti", name, files))
    for path in by_kind["picture"]:
        found.items.append(Item("picture", _name(path, root), (path,)))
    series, others = group(by_kind["dicom"], found.problems)
    found.others += others
    for folder, uid, paths, alone in series:
        name = _name(folder / "x", root).rpartition("/")[0] or root.absolute().name or "series"
        if not alone:
            name += f"/{uid}"
        found.items.append(Item("dicom", name, paths))
    if not found.items and not found.problems.found:
        raise DataError(f"{place}: no NIfTI file, DICOM series or picture in it; correct input")
    found.items = _told_apart(found.items, found.problems)
    return found


def walk(root: Path, skip: Path) -> Iterator[Path]:
    """Yield the files below a folder by name; each folder once, however links lead to it.

    Args:
        root: folder.
        skip: folder that is not entered, resolved.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = Path(folder, name)
            try:
                state = path.stat()
            except OSError:  # gone since it was listed
                continue
            identity = state.st_dev, state.st_ino
            if name.startswith(".") or path.resolve() == skip or identity in seen:
                continue
            seen.add(identity)
            if not root.resolve().is_relative_to(path.resolve()):  # a link upwards
                kept.append(name)
        folders[:] = kept
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def kind_of(path: Path) -> str | None:
    """Return what a file is by its content: nifti, dicom or picture; `None` for anything else.

    Raises:
        DataError: it cannot be read, or is not what the end of its name says.
    """
    if not path.name.isprintable():  # or no text at all
        raise DataError(f"{path.parent}: a file of the name {path.name!a}; rename it")
    expected = path.name.lower().endswith((*VOLUMES, *SUFFIXES, DICOM))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise DataError(f"{path}: not a file; remove it")
        with path.open("rb") as file:
            head = file.read(HEAD)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as stream:
                head = stream.read(HEAD)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if not expected:
            return None
        raise DataError(f"{path}: damaged ({first_line(error)}); restore the file") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; restore it or remove it") from error
    if head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") or head[4:7] == b"n+2":
        if not path.name.lower().endswith(VOLUMES):
            raise DataError(f"{path}: a NIfTI file by its content; name it .nii or .nii.gz")
        return "nifti"
    if head[128:132] == b"DICM":
        return "dicom"
    if picture_format(head):
        return "picture"
    if expected:
        what = "empty" if not head else "no NIfTI, DICOM or picture by its content"
        raise DataError(f"{path}: {what}; restore the file or remove it")
    return None


def picture_format(head: bytes) -> str | None:
    """Return Pillow's name of a picture's format by how it begins; `None` if it is none."""
    return next((name for magic, name in PICTURES.items() if head.startswith(magic)), None)


def scan_of(path: Path) -> Path | None:
    """Return the scan folder `caseN_dayM` that a slice of the UW-Madison download lies in."""
    folder = path.absolute().parent
    if folder.name == "scans" and SCAN_FOLDER_NAME.fullmatch(folder.parent.name):
        return path.parent if SLICE_FILE_NAME.fullmatch(path.name) else None
    return None


def _scans(slices: set[Path], root: Path, problems: Problems) -> Iterator[Item]:
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in slices:
        by_folder[path.parent].append(path)
    for folder in sorted(by_folder):
        with problems.gathered():
            files = sorted(
                by_folder[folder], key=lambda path: (parse_slice_name(path)[0], path.name)
            )
            scan = folder.absolute().parent
            inside = scan.is_relative_to(root.absolute()) and scan != root.absolute()
            name = scan.relative_to(root.absolute()).as_posix() if inside else scan.name
            yield Item("scan", name, tuple(files))


def _channels(
    paths: Sequence[Path], root: Path, channels: int
) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Yield name and files of each image; files count as channels if there is one numbered 0000."""
    numbered: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in paths:
        name = _name(path, root)
        match = CHANNEL.fullmatch(name)
        if match:
            numbered[match[1]][match[2]] = path
    for path in paths:
        name = _name(path, root)
        match = CHANNEL.fullmatch(name)
        group = numbered[match[1]] if match else {}
        together = "0000" in group and (channels > 1 or len(group) == 1)
        if not match or not together:
            yield name, (path,)
        elif match[2] == "0000":
            yield match[1], tuple(group[number] for number in sorted(group))


def _name(path: Path, root: Path) -> str:
    """Return a file's path below the root without its suffix."""
    relative = path.relative_to(root)
    lower = relative.name.lower()
    suffix = next((s for s in (*VOLUMES[::-1], *SUFFIXES, DICOM) if lower.endswith(s)), "")
    stem = relative.name[: len(relative.name) - len(suffix)] or relative.name
    return PurePosixPath(*relative.parts[:-1], stem).as_posix()


def _told_apart(items: list[Item], problems: Problems) -> list[Item]:
    """Return the items by name; those of equal names keep the suffix of their file."""
    counts = Counter(item.name.casefold() for item in items)
    apart = []
    for item in items:
        if counts[item.name.casefold()] > 1 and item.kind in ("nifti", "picture"):
            item = replace(item, name=f"{item.name}.{item.files[0].name.partition('.')[2]}")
        apart.append(item)
    taken: dict[str, Item] = {}
    for item in sorted(apart, key=lambda item: item.name):
        if other := taken.get(item.name):
            problems.found.append(
                f"{item.place}: its result would have the name of that of {other.place}; rename it"
            )
        else:
            taken[item.name] = item
    return list(taken.values())
