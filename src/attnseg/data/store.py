"""The store of prepared cases: decoded and validated once, then read slice by slice from disk.

A case is a folder with `image.npy`, `mask.npy`, `counts.npy` (pixels of each class in each slice),
`signatures.npy` (see `duplicates`) and `case.json`. A slice is read from its file, which is opened
each time; whole arrays are memory-mapped. A case is written to a temporary folder that is then
renamed, and is therefore complete or absent; two processes may prepare the same dataset. Modes
follow the umask: who shares a folder can read its cases.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from attnseg.data.duplicates import Signatures, compute_signatures
from attnseg.data.labels import IGNORE, Labels, digest_masks
from attnseg.data.parallel import work_on_files
from attnseg.data.reader import Case, CaseRef, Reader, check_case
from attnseg.data.readers.nifti import list_nifti_files
from attnseg.data.slicing import scale_intensities
from attnseg.errors import DataError, Problems, ResourceError
from attnseg.files import (
    explain_write_error,
    file_digest,
    make_temporary_folder,
    remove_abandoned,
    write_text,
)

log = logging.getLogger(__name__)

CASE_FILE = "case.json"
TEMPORARY = PART, OUTDATED = ".part-", ".old-"  # beginnings of the names of temporary folders
ATTEMPTS = 10  # at putting a case in its place
STORE_VERSION = 3  # to be raised whenever the content of prepared cases changes
Header = tuple[tuple[int, ...], np.dtype[Any], int]  # shape, type and offset of an array
LOST = "deleted or prepared anew while this command used it; start the command again"
LONGEST_NAME = 240  # bytes; file systems allow 255
PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)  # the outer ones are scaled to 0 and 1


@dataclass(frozen=True)
class StoredCase:
    """A prepared case.

    Attributes:
        folder: folder of its arrays.
        patient: name of the patient.
        case: name of the case.
        role: `train`, `val` or `test`; `None` unless the dataset assigns roles itself.
        files: the files it was read from.
        shape: slices, height, width.
        spacing: voxel size along S, H, W, mm; `None` if unknown.
        affine: affine of the file (see `Case`).
        low: intensity that becomes 0, per channel.
        high: intensity that becomes 1, per channel.
        percentiles: intensities at `PERCENTILES`, per channel.
        voxels: number of voxels of each class.
        overlaps: number of voxels that two classes share, `[classes][classes]`.
        pixels: SHA-256 of the image alone.
        mask_digests: of the classes that are present, from `digest_masks`.
        digest: SHA-256 of image, mask and spacing.
        source: digest of the files and table rows it was prepared from.
        changed: digest of the times at which the inodes of its files changed.
        contents: digest of the contents of its files; empty if an older version prepared it.
    """

    folder: Path
    patient: str
    case: str
    role: str | None
    files: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    affine: tuple[tuple[float, ...], ...] | None
    low: tuple[float, ...]
    high: tuple[float, ...]
    percentiles: tuple[tuple[float, ...], ...]
    voxels: tuple[int, ...]
    overlaps: tuple[tuple[int, ...], ...]
    pixels: str
    mask_digests: tuple[str, ...]
    digest: str
    source: str
    changed: str = ""
    contents: str = ""

    @property
    def image(self) -> NDArray[np.generic]:
        """Image `[S, H, W, C]`, memory-mapped."""
        return _map_array(self.folder / "image.npy", self.digest)

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Mask `[S, H, W]` (see `Case.mask`), memory-mapped."""
        return _map_array(self.folder / "mask.npy", self.digest)

    def scaled(self, index: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Return slices scaled from `low`..`high` to 0..1: `[H, W, C]`, or `[n, H, W, C]`."""
        wanted = np.atleast_1d(index)
        slices = read_slices(self.folder / "image.npy", self.digest, wanted)
        return scale_intensities(
            slices.reshape(*np.shape(index), *slices.shape[1:]), self.low, self.high
        )

    def mask_slice(self, index: int) -> NDArray[np.uint8]:
        """Return a slice of the mask, `[H, W]`."""
        slices = read_slices(self.folder / "mask.npy", self.digest, np.array([index]))
        return np.asarray(slices[0], np.uint8)

    @property
    def counts(self) -> NDArray[np.int32]:
        """Pixels of each class in each slice, `[S, classes]`."""
        return np.asarray(np.load(self.folder / "counts.npy", allow_pickle=False))

    @property
    def signatures(self) -> Signatures:
        """Both signatures of each slice, `[2 S, 1024]` (see `compute_signatures`)."""
        return np.asarray(np.load(self.folder / "signatures.npy", allow_pickle=False))

    def file(self, index: int) -> str:
        """Return the file that a slice was read from."""
        return self.files[index] if len(self.files) == self.shape[0] else self.files[0]


def _map_array(path: Path, digest: str) -> NDArray[Any]:
    """Return an array of a case with this digest, memory-mapped for as long as it is in use.

    A map holds its file open. Maps are therefore not kept: there may be more cases than a process
    may have open files.

    Raises:
        DataError: the array is damaged, or was deleted or replaced after its case was loaded.
    """
    with _opened(path, digest) as (file, (shape, dtype, offset)):
        return np.memmap(file, dtype, "r", offset, shape)


def read_slices(path: Path, digest: str, indices: NDArray[np.intp]) -> NDArray[Any]:
    """Return slices of an array; for single ones, this is faster than a map that is not kept.

    Raises:
        DataError: as `_map_array`.
    """
    with _opened(path, digest) as (file, (shape, dtype, offset)):
        slices = np.empty((len(indices), *shape[1:]), dtype)
        for at, index in enumerate(indices.tolist()):
            place = slices[at].reshape(-1).view(np.uint8)
            if os.preadv(file.fileno(), [place], offset + index * place.nbytes) != place.nbytes:
                raise ValueError("cut off")
        return slices


@contextlib.contextmanager
def _opened(path: Path, digest: str) -> Iterator[tuple[BinaryIO, Header]]:
    """Open the file of an array, and read its header unless that is known."""
    try:
        with path.open("rb", buffering=0) as file:
            state = os.fstat(file.fileno())
            yield file, _read_header(path, digest, state.st_size, state.st_mtime_ns)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: damaged since it was prepared ({error}); delete {path.parent.parent}, and it "
            "is prepared again"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: {LOST}") from error


@cache
def _read_header(path: Path, digest: str, size: int, changed: int) -> Header:
    """Return the header of an array that has this state and belongs to this case."""
    if digest.encode() not in (path.parent / CASE_FILE).read_bytes():
        raise DataError(f"{path}: {LOST}")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.shape, array.dtype, array.offset


def prepare_cases(reader: Reader, refs: Sequence[CaseRef], folder: Path) -> list[StoredCase]:
    """Decode and validate the cases that are not in the store yet or have changed since.

    All of `refs`, which come from `reader.cases()`, are returned in their order.

    Raises:
        DataError: cases are broken; lists every problem. The sound ones are prepared nevertheless.
        ResourceError: the store cannot be written, or a process that prepared was killed.
    """
    sources = {ref.case: _state_of_source(reader, ref) for ref in refs}
    stored = {ref.case: _load_case(_case_folder(folder, ref), sources[ref.case]) for ref in refs}
    missing = [ref for ref in refs if stored[ref.case] is None]
    problems = Problems()
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"{folder}: cannot be written ({error.strerror}); set paths.data"
            ) from error
        for name in TEMPORARY:
            remove_abandoned(folder, name)

        def prepare_case(ref: CaseRef) -> StoredCase:
            case = reader.read(ref)
            check_case(case, ref, reader)
            return _write_case(case, ref, folder, sources[ref.case], reader.labels)

        prepared = work_on_files(prepare_case, missing, "Preparing", "cases", folder, problems)
        stored |= {ref.case: case for ref, case in zip(missing, prepared, strict=True)}
    for problem in problems.found:
        log.debug("error: %s", problem)
    problems.stop()
    return [case for ref in refs if (case := stored[ref.case]) is not None]


def _case_folder(folder: Path, ref: CaseRef) -> Path:
    """Return a case's folder; characters that file names cannot hold are percent-encoded."""
    name = quote(ref.case, safe=" ")
    if len(name) > LONGEST_NAME:
        name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()}"
    return folder / f"case-{name}"


@dataclass(frozen=True)
class _Source:
    """The files and facts from which a case is prepared.

    Attributes:
        digest: of names, sizes and times of its files, its table rows, patient and role.
        changed: of the times at which the inodes of the files changed. Unlike the time of a file,
            which `cp -p`, `rsync -t` and `tar` set, it cannot be chosen; but other things than new
            content alter it.
        files: the files themselves.
    """

    digest: str
    changed: str
    files: tuple[Path, ...]


def _state_of_source(reader: Reader, ref: CaseRef) -> _Source:
    """Return a case's source, from the state of its files alone."""
    text = json.dumps([reader.source(ref), ref.patient, ref.role])
    digest, changed = hashlib.sha256(text.encode()), hashlib.sha256()
    files = tuple(file for path in ref.files for file in list_nifti_files(path))
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; restore it") from error
        if not stat.S_ISREG(status.st_mode):  # Reading from a pipe would block.
            raise DataError(f"{path}: not a file; restore it")
        digest.update(f"{path.name},{status.st_size},{status.st_mtime_ns};".encode())
        changed.update(f"{status.st_ctime_ns};".encode())
    return _Source(digest.hexdigest(), changed.hexdigest()[:16], files)


def _load_case(folder: Path, source: _Source) -> StoredCase | None:
    """Return a stored case; `None` if it is absent, incomplete or prepared from another source.

    If only the inodes of its files changed, as by `chmod`, their contents decide.
    """
    try:
        values = json.loads((folder / CASE_FILE).read_text())
        case = StoredCase(folder=folder, **{name: _as_tuples(v) for name, v in values.items()})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
    if case.source != source.digest:
        return None
    if not case.contents or case.changed == source.changed:
        return case
    if _digest_contents(source.files) != case.contents:
        log.info("%s: a file has other content but the same time and size", case.case)
        return None
    case = replace(case, changed=source.changed)
    with contextlib.suppress(OSError):  # The store may be another person's.
        write_text(folder / CASE_FILE, _format_case(case))
    return case


def _digest_contents(files: Sequence[Path]) -> str:
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()


def _format_case(case: StoredCase) -> str:
    description = asdict(case)
    del description["folder"]
    return json.dumps(description, indent=1)


def _as_tuples(value: Any) -> Any:  # noqa: ANN401
    """Return nested lists as nested tuples; JSON has lists only."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _write_case(
    case: Case, ref: CaseRef, folder: Path, source: _Source, labels: Labels
) -> StoredCase:
    """Compute all that a stored case holds, and write it to the store."""
    image, mask = np.ascontiguousarray(case.image), np.ascontiguousarray(case.mask)
    percentiles = np.percentile(image, PERCENTILES, axis=(0, 1, 2)).T
    low, high = intensity_window(case.window, percentiles)
    if case.window is None and (percentiles[:, -1] <= percentiles[:, 0]).any():
        log.warning("%s: every voxel has nearly the same intensity", ref.case)
    pixels = hashlib.sha256(repr((image.shape, image.dtype.str)).encode() + image.tobytes())
    digest = hashlib.sha256(repr((pixels.hexdigest(), case.spacing)).encode() + mask.tobytes())
    counts, overlaps = _count_voxels(mask, labels)
    stored = StoredCase(
        folder=_case_folder(folder, ref),
        patient=ref.patient,
        case=ref.case,
        role=ref.role,
        files=tuple(str(path) for path in ref.files),
        shape=mask.shape,
        spacing=case.spacing,
        affine=None if case.affine is None else _as_tuples(case.affine.tolist()),
        low=low,
        high=high,
        percentiles=_as_tuples(percentiles.tolist()),
        voxels=tuple(counts.sum(0).tolist()),
        overlaps=_as_tuples(overlaps.tolist()),
        pixels=pixels.hexdigest(),
        mask_digests=digest_masks(labels.mask_of(mask, k) for k in range(len(labels))),
        digest=digest.hexdigest(),
        source=source.digest,
        changed=source.changed,
        contents=_digest_contents(source.files),
    )
    arrays = {"image": image, "mask": mask, "counts": counts}
    arrays["signatures"] = compute_signatures(image)
    part = None
    try:
        part = make_temporary_folder(folder, PART)
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)
        (part / CASE_FILE).write_text(_format_case(stored))
        _replace_folder(part, stored.folder)
    except OSError as error:  # NumPy's own says neither the file nor the cause.
        raise explain_write_error(stored.folder, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    return stored


def intensity_window(
    fixed: tuple[float, float] | None, percentiles: NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the intensities that are scaled to 0 and 1, per channel.

    They are those that the dataset fixes, or else the outer ones of the percentiles `[C, n]`, which
    ascend; where these are equal, their distance becomes 1, or the least that float32 can tell.
    """
    if fixed is not None:
        low, high = ((value,) * len(percentiles) for value in fixed)
        return low, high
    lowest, highest = percentiles[:, 0], percentiles[:, -1]
    least = np.nextafter(lowest.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    apart = np.where(highest <= lowest, lowest + 1, highest)
    return tuple(lowest.tolist()), tuple(np.where(apart < least, least, apart).tolist())


def _count_voxels(
    mask: NDArray[np.uint8], labels: Labels
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return `StoredCase.counts` and `StoredCase.overlaps` of a label map."""
    classes, values = len(labels), (IGNORE if labels.ignore else labels.largest_value) + 1
    counts = np.zeros((len(mask), classes), np.int32)
    overlaps = np.zeros((classes, classes), np.int64)
    members = labels.split(np.arange(values)).T.astype(np.int64)
    for index, plane in enumerate(mask):
        histogram = np.bincount(plane.ravel(), minlength=values)
        counts[index] = histogram @ members
        overlaps += members.T @ (histogram[:, None] * members)
    np.fill_diagonal(overlaps, 0)
    return counts, overlaps


def _replace_folder(part: Path, target: Path) -> None:
    """Rename `part` to `target`; delete an outdated case that is there."""
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        # The lock keeps processes from undoing each other's work. It is held for an instant and
        # released by the kernel, even if the process dies. Some file systems have no locks; there,
        # a process that comes second tries again.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        for attempt in range(ATTEMPTS):
            if target.exists():
                if _read_description(part) == _read_description(target):
                    return  # Another process has just prepared the same case.
                outdated = make_temporary_folder(target.parent, OUTDATED)
                with contextlib.suppress(FileNotFoundError):  # Another process was faster.
                    os.replace(target, outdated / target.name)
                shutil.rmtree(outdated, ignore_errors=True)
            try:
                os.replace(part, target)
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or attempt == ATTEMPTS - 1:
                    raise
    finally:
        os.close(handle)


def _read_description(folder: Path) -> bytes:
    try:
        return (folder / CASE_FILE).read_bytes()
    except FileNotFoundError:
        return b""
