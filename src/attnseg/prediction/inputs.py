"""The search for images in a file or folder tree, their kinds determined by content.

An item becomes one result. It is a NIfTI file, or several that are channels of one image
(`NAME_0000.nii.gz`, `NAME_0001.nii.gz`); a DICOM series; a picture; or a scan folder of the
UW-Madison download. Hidden files are passed over.
"""

import gzip
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from attnseg.data.folders import find_companion, find_ending
from attnseg.data.readers.content import detect_content
from attnseg.data.readers.nifti import ENDINGS
from attnseg.data.readers.pictures import SUFFIXES
from attnseg.data.readers.uw_madison import find_scan_folder, sort_slices
from attnseg.errors import DataError, Problems, first_line
from attnseg.prediction.dicom_headers import SUFFIX as DICOM
from attnseg.prediction.dicom_headers import Frame, group_series
from attnseg.prediction.spec import InferenceSpec

Kind = Literal["nifti", "dicom", "picture", "scan"]
VOLUMES, DICOMS = ENDINGS[:2], (DICOM, f"{DICOM}.gz")
CHANNEL = re.compile(r"(.+)_([0-9]{4})")


@dataclass(frozen=True)
class Item:
    """An image, or several files that make up one.

    Attributes:
        kind: kind of the files.
        name: path of its results below `masks/`, `overlays/` and so on, without a suffix.
        files: the files that it is read from, in order.
        frames: headers of the slices of a DICOM series, in order, once it has been decoded.
    """

    kind: Kind
    name: str
    files: tuple[Path, ...]
    frames: tuple[Frame, ...] = ()

    @property
    def place(self) -> Path:
        """File or folder that messages name."""
        several = self.kind in ("dicom", "scan") and len(self.files) > 1
        return self.files[0].parent if several else self.files[0]


@dataclass
class Inputs:
    """The result of a search.

    Attributes:
        items: the images to be segmented, sorted by name.
        problems: a line for each file that cannot be segmented.
        skipped: files of other kinds.
    """

    items: list[Item] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    skipped: list[Path] = field(default_factory=list)


def find_inputs(source: Path, output: Path, spec: InferenceSpec) -> Inputs:
    """Find all images that can be segmented.

    Args:
        source: a file, or a folder with everything below it.
        output: folder that is not searched.
        spec: says whether slices are scans, and how many channels an image has.

    Raises:
        DataError: there is none.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; correct input")
    root = source if source.is_dir() else source.parent
    inputs = Inputs()
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files(source, output.resolve()) if source.is_dir() else [source]:
        with inputs.problems.gathered(path):
            # The voxels of a pair are found by its header.
            header = find_companion(path, ".img", ".hdr")
            if header is not None and detect_kind(header) == "nifti":
                if source.is_dir():
                    continue
                path = header
            kind = detect_kind(path)
            if kind is None:
                inputs.skipped.append(path)
            else:
                by_kind[kind].append(path)
    if spec.volumetric and spec.channels == 1:
        slices = {path for path in by_kind["picture"] if find_scan_folder(path)}
        inputs.items += _group_scans(slices, root, inputs.problems)
        by_kind["picture"] = [path for path in by_kind["picture"] if path not in slices]
    for name, files in _group_channels(by_kind["nifti"], root, spec.channels, inputs.problems):
        inputs.items.append(Item("nifti", name, files))
    for path in by_kind["picture"]:
        inputs.items.append(Item("picture", _result_name(path, root), (path,)))
    series, skipped = group_series(by_kind["dicom"], inputs.problems)
    inputs.skipped += skipped
    for folder, uid, paths, alone in series:
        inside = folder.relative_to(root).as_posix()
        name = inside if folder != root else root.absolute().name or "series"
        inputs.items.append(Item("dicom", name if alone else f"{name}/{uid}", paths))
    if not inputs.items and not inputs.problems.found:
        raise DataError(f"{source}: no NIfTI file, DICOM series or picture in it; correct input")
    inputs.items = _make_names_unique(inputs.items, inputs.problems)
    return inputs


def walk_files(root: Path, skip: Path) -> Iterator[Path]:
    """Yield the files below a folder by name, each folder once, however many links lead to it.

    The folder `skip`, a resolved path, is not searched.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = Path(folder, name)
            try:
                state = path.stat()
            except OSError:  # It was removed since it was listed.
                continue
            identity = state.st_dev, state.st_ino
            if name.startswith(".") or path.resolve() == skip or identity in seen:
                continue
            seen.add(identity)
            if not root.resolve().is_relative_to(path.resolve()):  # Otherwise it is a link upwards.
                kept.append(name)
        folders[:] = kept
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def detect_kind(path: Path) -> str | None:
    """Return the kind of a file by its content, nifti, dicom or picture; `None` for any other.

    Raises:
        DataError: it cannot be read, or its content is not of the kind that its suffix says.
    """
    if not path.name.isprintable():  # It may not even be text.
        raise DataError(f"{path.parent}: a file of the name {path.name!a}; rename it")
    expected = path.name.lower().endswith((*VOLUMES, *SUFFIXES, *DICOMS))
    try:
        content = detect_content(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if not expected:
            return None
        raise DataError(f"{path}: damaged ({first_line(error)}); restore the file") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; restore it or remove it") from error
    if content.form == "single" and not path.name.lower().endswith(VOLUMES):
        raise DataError(f"{path}: a NIfTI file by its content; name it .nii or .nii.gz")
    if content.packed and content.kind == "picture":
        raise DataError(f"{path}: {content.form} compressed by gzip; unpack it (gunzip)")
    if content.kind is None and expected:
        if content.form == "gzip":
            raise DataError(f"{path}: compressed twice by gzip; unpack it once (gunzip)")
        what = "empty" if content.empty else "no NIfTI, DICOM or picture by its content"
        raise DataError(f"{path}: {what}; restore the file or remove it")
    return content.kind


def _group_scans(slices: set[Path], root: Path, problems: Problems) -> Iterator[Item]:
    """Yield the scans of the UW-Madison download that slices belong to."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in slices:
        by_folder[path.parent].append(path)
    for folder in sorted(by_folder):
        with problems.gathered(folder):
            files = sort_slices(by_folder[folder])
            scan = folder.absolute().parent
            inside = scan.is_relative_to(root.absolute()) and scan != root.absolute()
            name = scan.relative_to(root.absolute()).as_posix() if inside else scan.name
            yield Item("scan", name, tuple(files))


def _group_channels(
    paths: Sequence[Path], root: Path, channels: int, problems: Problems
) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Yield name and files of each image; numbered files are its channels if 0000 is there.

    Numbers with a gap are a problem: another channel could be taken for the one that is missing.
    """
    names = [_result_name(path, root) for path in paths]
    matches = [CHANNEL.fullmatch(name) for name in names]
    numbered: dict[str, dict[str, Path]] = defaultdict(dict)
    for path, match in zip(paths, matches, strict=True):
        if match and channels > 1 and (other := numbered[match[1]].get(match[2])):
            problems.found.append(f"{path}: {other.name} is the same channel; keep one file")
        elif match:
            numbered[match[1]][match[2]] = path
    for path, name, match in zip(paths, names, matches, strict=True):
        group = numbered[match[1]] if match else {}
        together = "0000" in group and (channels > 1 or len(group) == 1)
        if not match or not together:
            yield name, (path,)
        elif len(group) == 1:
            yield match[1], (path,)
        elif path != group["0000"]:
            continue
        elif max(group) != f"{len(group) - 1:04d}":
            problems.found.append(
                f"{path}: its image has the channels {', '.join(sorted(group))}, with a gap; add "
                "the missing file or remove the others"
            )
        else:
            yield match[1], tuple(group[number] for number in sorted(group))


def _result_name(path: Path, root: Path) -> str:
    """Return a file's path below the root without its suffix."""
    relative = path.relative_to(root)
    stem = relative.name.removesuffix(_suffix_of(relative.name)) or relative.name
    return PurePosixPath(*relative.parts[:-1], stem).as_posix()


def _suffix_of(name: str) -> str:
    """Return the suffix of a file's name as it is spelt; empty if it is none of ours."""
    suffix = find_ending(name, (*ENDINGS, *SUFFIXES, *DICOMS))
    return name[len(name) - len(suffix) :]


def _make_names_unique(items: list[Item], problems: Problems) -> list[Item]:
    """Return the items by name; where names are equal, files add their suffix, as in `a_nii_gz`."""
    counts = Counter(item.name.casefold() for item in items)
    renamed = [
        replace(item, name=item.name + _suffix_of(item.files[0].name).replace(".", "_"))
        if counts[item.name.casefold()] > 1 and item.kind in ("nifti", "picture")
        else item
        for item in items
    ]
    taken: dict[str, Item] = {}
    for item in sorted(renamed, key=lambda item: item.name):
        if other := taken.get(item.name):
            problems.found.append(
                f"{item.place}: its result would have the name of that of {other.place}; rename it"
            )
        else:
            taken[item.name] = item
    return list(taken.values())
