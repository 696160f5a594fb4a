"""The store of prepared cases: decoded and validated once, then read slice by slice from disk.

A case is a folder with `image.npy` and `mask.npy` (memory-mapped when read), `counts.npy` (pixels
of each class in each slice), `signatures.npy` (see `duplicates`) and `case.json`. It is written to
a temporary folder that is then renamed. A case is therefore complete or absent, and two processes
may prepare the same dataset.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from attnseg.data.duplicates import Signatures, compute_signatures
from attnseg.data.labels import IGNORE, Labels, digest_masks
from attnseg.data.reader import Case, CaseRef, Reader, check_case
from attnseg.data.slicing import scale_intensities
from attnseg.errors import DataError, Problems, ResourceError
from attnseg.progress import Bar

log = logging.getLogger(__name__)

STORE_VERSION = 3  # to be raised whenever the content of prepared cases changes
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
        return scale_intensities(self.image[index], self.low, self.high)

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


@lru_cache(maxsize=4096)
def _map_array(path: Path, digest: str) -> NDArray[Any]:
    """Return a memory-mapped array.

    The digest is part of the cache's key: a case that was prepared again has the same path.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: damaged since it was prepared ({error}); delete {path.parent.parent}, and it "
            "is prepared again"
        ) from error
    return array


def prepare_cases(reader: Reader, refs: Sequence[CaseRef], folder: Path) -> list[StoredCase]:
    """Decode and validate the cases that are not in the store yet or have changed since.

    All of `refs`, which come from `reader.cases()`, are returned in their order.

    Raises:
        DataError: cases are broken; lists every problem. The sound ones are prepared nevertheless.
        ResourceError: the store cannot be written.
    """
    sources = {ref.case: _source_digest(reader, ref) for ref in refs}
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

        def prepare_case(ref: CaseRef) -> StoredCase | DataError:
            try:
                case = reader.read(ref)
                check_case(case, ref, reader)
                return _write_case(case, ref, folder, sources[ref.case], reader.labels)
            except DataError as error:
                return error

        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            with Bar("Preparing", len(missing), "cases") as bar:
                for ref, result in zip(missing, pool.map(prepare_case, missing), strict=True):
                    if isinstance(result, DataError):
                        problems.found.extend(result.problems)
                    else:
                        stored[ref.case] = result
                    bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)
    for problem in problems.found:
        log.debug("error: %s", problem)
    problems.stop()
    return [case for ref in refs if (case := stored[ref.case]) is not None]


def _case_folder(folder: Path, ref: CaseRef) -> Path:
    """Return a case's folder; characters that file names cannot hold are percent-encoded."""
    return folder / ("case-" + quote(ref.case, safe=" "))


def _source_digest(reader: Reader, ref: CaseRef) -> str:
    """Return a digest that changes with a case's files, table rows, patient or role."""
    text = json.dumps([reader.source(ref), ref.patient, ref.role])
    digest = hashlib.sha256(text.encode())
    for path in ref.files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; restore it") from error
        if not stat.S_ISREG(status.st_mode):  # Reading from a pipe would block.
            raise DataError(f"{path}: not a file; restore it")
        digest.update(f"{path.name},{status.st_size},{status.st_mtime_ns};".encode())
    return digest.hexdigest()


def _load_case(folder: Path, source: str) -> StoredCase | None:
    """Return a stored case; `None` if it is absent, incomplete or prepared from another source."""
    try:
        values = json.loads((folder / "case.json").read_text())
        case = StoredCase(folder=folder, **{name: _as_tuples(v) for name, v in values.items()})
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return case if case.source == source else None


def _as_tuples(value: Any) -> Any:  # noqa: ANN401
    """Return nested lists as nested tuples; JSON has lists only."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _write_case(case: Case, ref: CaseRef, folder: Path, source: str, labels: Labels) -> StoredCase:
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
        source=source,
    )
    arrays = {"image": image, "mask": mask, "counts": counts}
    arrays["signatures"] = compute_signatures(image)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)
        description = asdict(stored)
        del description["folder"]
        (part / "case.json").write_text(json.dumps(description, indent=1))
        _replace_folder(part, stored.folder)
    except OSError as error:  # NumPy's own says neither the file nor the cause.
        raise ResourceError(
            f"{stored.folder}: {error.strerror or error}; check the path, permissions and space"
        ) from error
    finally:
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
        # Without the lock, two processes could delete each other's case. It is held for an instant
        # and released by the kernel, even if the process dies; some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if target.exists():
            if _read_description(part) == _read_description(target):
                return  # Another process has just prepared the same case.
            outdated = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
            os.replace(target, outdated)
            shutil.rmtree(outdated)
        os.replace(part, target)
    finally:
        os.close(handle)


def _read_description(folder: Path) -> bytes:
    try:
        return (folder / "case.json").read_bytes()
    except FileNotFoundError:
        return b""
