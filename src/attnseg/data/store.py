"""Prepared cases on disk: decoded and validated once, then read slice by slice without decoding.

A case is a folder with `image.npy`, `mask.npy` (memory-mapped when read) and `case.json`. It is
written beside its place and renamed, so that a case is there whole or not at all, and two processes
may prepare the same dataset.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnseg.data.reader import Case, CaseRef, Reader
from attnseg.errors import DataError, ResourceError
from attnseg.progress import Bar

log = logging.getLogger(__name__)

VERSION = 1  # raised whenever a prepared case would hold something else
PERCENTILES = (0.5, 99.5)  # of a scan's voxels: what becomes 0 and 1


@dataclass(frozen=True)
class StoredCase:
    """A prepared case.

    Attributes:
        folder: where its arrays are.
        patient: whose it is.
        case: its name.
        shape: slices, height, width.
        spacing: voxel size along S, H, W, mm.
        low: intensity that becomes 0.
        high: intensity that becomes 1.
        voxels: mask voxels of each class.
        digest: SHA-256 of image, mask and spacing.
        source: digest of what it was prepared from.
    """

    folder: Path
    patient: str
    case: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    low: float
    high: float
    voxels: tuple[int, ...]
    digest: str
    source: str

    @property
    def image(self) -> NDArray[np.generic]:
        """Image `[S, H, W, C]`, memory-mapped."""
        return _open(self.folder / "image.npy")

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Mask `[S, H, W]` (see `Case.mask`), memory-mapped."""
        return _open(self.folder / "mask.npy")


@lru_cache(maxsize=4096)
def _open(path: Path) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def prepare(reader: Reader, refs: Sequence[CaseRef], folder: Path) -> list[StoredCase]:
    """Decode and validate the cases that are not in the store yet or have changed since.

    Args:
        reader: of the dataset.
        refs: cases wanted, from `reader.cases()`.
        folder: the store.

    Returns:
        A stored case for each of `refs`, in their order.

    Raises:
        DataError: the first broken case; the log names all of them.
        ResourceError: the store cannot be written.
    """
    sources = {ref.case: _source_digest(reader, ref) for ref in refs}
    stored = {ref.case: _load(folder / ref.case, sources[ref.case]) for ref in refs}
    missing = [ref for ref in refs if stored[ref.case] is None]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"{folder}: cannot be written ({error.strerror}); set paths.data"
            ) from error
        problems: list[DataError] = []

        def work(ref: CaseRef) -> StoredCase | DataError:
            try:
                return _write(reader.read(ref), ref, folder, sources[ref.case], reader)
            except DataError as error:
                return error

        with Bar("Preparing", len(missing), "cases") as bar, ThreadPoolExecutor() as pool:
            for ref, result in zip(missing, pool.map(work, missing), strict=True):
                if isinstance(result, DataError):
                    problems.append(result)
                else:
                    stored[ref.case] = result
                bar.advance()
        for problem in problems:
            log.debug("error: %s", problem)
        if problems:
            more = f" ({len(problems) - 1} more in the log)" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}")
    return [case for ref in refs if (case := stored[ref.case]) is not None]


def _source_digest(reader: Reader, ref: CaseRef) -> str:
    digest = hashlib.sha256(reader.source(ref).encode())
    for path in ref.files:
        stat = path.stat()
        digest.update(f"{path.name},{stat.st_size},{stat.st_mtime_ns};".encode())
    return digest.hexdigest()


def _load(folder: Path, source: str) -> StoredCase | None:
    try:
        values = json.loads((folder / "case.json").read_text())
    except FileNotFoundError:
        return None
    for name in ("shape", "spacing", "voxels"):
        values[name] = tuple(values[name])
    case = StoredCase(folder=folder, **values)
    return case if case.source == source else None


def _write(case: Case, ref: CaseRef, folder: Path, source: str, reader: Reader) -> StoredCase:
    image, mask = np.ascontiguousarray(case.image), np.ascontiguousarray(case.mask)
    low, high = (float(value) for value in np.percentile(image, PERCENTILES))
    if high <= low:
        log.warning("%s: every voxel has nearly the same intensity", ref.case)
        high = low + 1
    digest = hashlib.sha256(repr((image.shape, image.dtype.str, case.spacing)).encode())
    digest.update(image.tobytes())
    digest.update(mask.tobytes())
    values = [(mask >> i) & 1 if reader.multilabel else mask == i + 1 for i in _classes(reader)]
    stored = StoredCase(
        folder=folder / ref.case,
        patient=ref.patient,
        case=ref.case,
        shape=mask.shape,
        spacing=case.spacing,
        low=low,
        high=high,
        voxels=tuple(int(np.count_nonzero(value)) for value in values),
        digest=digest.hexdigest(),
        source=source,
    )
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        np.save(part / "image.npy", image, allow_pickle=False)
        np.save(part / "mask.npy", mask, allow_pickle=False)
        described = asdict(stored)
        del described["folder"]
        (part / "case.json").write_text(json.dumps(described, indent=1))
        _replace_folder(part, stored.folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return stored


def _classes(reader: Reader) -> range:
    return range(len(reader.classes))


def _replace_folder(part: Path, target: Path) -> None:
    """Rename `part` to `target`; what was there, an outdated case, goes first."""
    if target.exists():
        outdated = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
        os.replace(target, outdated)
        shutil.rmtree(outdated)
    try:
        os.replace(part, target)
    except OSError:
        if not target.exists():  # else another process was first, with the same content
            raise
