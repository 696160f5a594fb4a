"""Capsules: a trained network in one file, with everything needed to use and to verify it.

A capsule is a zip archive of data alone; nothing in it runs. `manifest.json` lists every other file
with size and SHA-256, and the archive's last 64 bytes are the SHA-256 of all before them, so that a
single flipped bit is noticed. A stranger may have made it, so names and sizes are checked before
anything is read, and nothing is unpacked to the disk.
"""

import hashlib
import io
import json
import logging
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnseg.errors import CheckpointError, first_line
from attnseg.prediction.network import Network
from attnseg.prediction.onnx import OnnxNetwork
from attnseg.prediction.spec import InferenceSpec

log = logging.getLogger("attnseg.prediction")

VERSION = 1
MANIFEST, MODEL, SPEC = "manifest.json", "model.onnx", "recipe.json"
GOLDEN_INPUT, GOLDEN_OUTPUT = "golden/input.npy", "golden/output.npy"
PARTS = (
    MODEL, SPEC, "postprocessing.json", "profile.json", "metrics.json", "MODEL_CARD.md",
    "LICENSE", GOLDEN_INPUT, GOLDEN_OUTPUT,
)  # fmt: skip
TOLERANCE = 1e-4  # of logits, because other processors round differently
MOST_TOLERANCE = 1e-2  # largest tolerance that a manifest may ask for
MOST_FILES = 64
MOST_BYTES = 8 << 30
MOST_TEXT = 64 << 20
MOST_RATIO = 200  # largest compression ratio of a file
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
SHA256 = re.compile("[0-9a-f]{64}")
DIGITS = 64  # hexadecimal digits of the seal
ADVICE = "get the file again from where it was made"


class Entry(NamedTuple):
    """The manifest's entry for a file."""

    sha256: str
    size: int  # bytes


class Capsule:
    """An opened capsule, checked as a whole; its files are checked again when they are read.

    Attributes:
        path: path of the capsule.
        digest: SHA-256 that seals it.
        manifest: content of `manifest.json`.
        spec: how images become masks.

    Raises:
        CheckpointError: not a capsule, damaged, or made to harm; methods raise it for a file of
            the capsule that is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = check_seal(path)
        with self._archive() as archive:
            entries = check_entries(archive, path)
            self.manifest = self._parse(self._bounded(archive, entries[MANIFEST], MOST_TEXT))
            self._parts = check_manifest(self.manifest, set(entries), path)
            for name, part in self._parts.items():
                if entries[name].file_size != part.size:
                    raise self._bad(name, "not of the size in the manifest")
        self.spec = InferenceSpec.from_json(self.text(SPEC), f"{path}, {SPEC}")

    @property
    def names(self) -> list[str]:
        """Names of all files but the manifest, sorted."""
        return sorted(self._parts)

    def read(self, name: str) -> bytes:
        """Return a file's content, which must have the size and digest of the manifest."""
        part = self._parts[name]
        with self._archive() as archive:
            data = self._bounded(archive, archive.getinfo(name), part.size)
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise self._bad(name, "not the file of the manifest")
        return data

    def text(self, name: str) -> str:
        """Return the content of a text file."""
        try:
            return self.read(name).decode()
        except UnicodeDecodeError as error:
            raise self._bad(name, "not text") from error

    def values(self, name: str) -> dict[str, Any]:
        """Return the object that a JSON file holds."""
        return self._parse(self.read(name), name)

    def array(self, name: str) -> NDArray[np.float32]:
        """Return the array of four dimensions that a file in NumPy's format holds."""
        try:
            array = np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise self._bad(name, f"no array ({first_line(error)[:80]})") from error
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 4:
            raise self._bad(name, "not four dimensions of 32-bit numbers")
        return array

    def network(self, threads: int = 0) -> Network:
        """Load the network; `threads` is as for `OnnxNetwork`."""
        return OnnxNetwork(self.read(MODEL), threads, self.spec, f"{self.path}, {MODEL}")

    def replay(self, threads: int = 0) -> float:
        """Compute the golden output again; return the largest difference of the logits.

        A difference beyond the manifest's tolerance is an error.
        """
        images, expected = self.array(GOLDEN_INPUT), self.array(GOLDEN_OUTPUT)
        spec = self.spec
        if images.shape[1:] != (spec.in_channels, *spec.size) or not 1 <= len(images) <= 64:
            raise self._bad(GOLDEN_INPUT, "not of the spec's shape")
        if expected.shape != (len(images), spec.labels.channels, *spec.size):
            raise self._bad(GOLDEN_OUTPUT, "not of the spec's shape")
        apart = float(np.abs(self.network(threads)(images) - expected).max())
        tolerance = float(self.manifest["tolerance"])
        if not apart <= tolerance:  # This refuses NaN, too.
            raise CheckpointError(
                f"{self.path}: logits differ from the golden ones by {apart:.2g}, more than "
                f"{tolerance}; do not use it on this machine, and tell who made it"
            )
        return apart

    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise CheckpointError(
                f"{self.path}: no readable archive ({first_line(error)[:80]}); {ADVICE}"
            ) from error

    def _bounded(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
        if entry.file_size > most:
            raise self._bad(entry.filename, f"{entry.file_size} bytes, more than {most}")
        try:
            with archive.open(entry) as file:
                return file.read(most + 1)
        except Exception as error:  # A malicious file can make zipfile raise anything.
            raise self._bad(entry.filename, f"cannot be read ({first_line(error)[:80]})") from error

    def _parse(self, data: bytes, name: str = MANIFEST) -> dict[str, Any]:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._bad(name, "no JSON") from error
        if not isinstance(values, dict):
            raise self._bad(name, "no object of keys and values")
        return values

    def _bad(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}, {name[:80]}: {what}; {ADVICE}")


def check_seal(path: Path) -> str:
    """Return the SHA-256 that ends a file, which must be that of everything before it."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise CheckpointError(f"{path}: not a capsule; give a file of attnseg capsule")
            left = path.stat().st_size - DIGITS
            file.seek(0)
            digest = hashlib.sha256()
            while block := file.read(max(0, min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            seal = file.read(DIGITS)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {(error.strerror or 'unreadable').lower()}; give a capsule as capsule=FILE"
        ) from error
    if seal != digest.hexdigest().encode():
        raise CheckpointError(f"{path}: changed since it was made, unlike its SHA-256; {ADVICE}")
    return digest.hexdigest()


def check_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of an archive by name; refuse one that could escape it or fill memory."""
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MOST_FILES or total > MOST_BYTES:
        raise CheckpointError(
            f"{path}: {len(entries)} files of {total / 1e9:.1f} GB, more than a capsule has; "
            f"{ADVICE}"
        )
    by_name: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name, fault = entry.filename, None
        # zipfile cuts a name at a NUL; orig_filename is what the archive really says.
        if entry.orig_filename != name or not NAME.fullmatch(name):
            fault = "a name that leads elsewhere"
        elif name.lower() in {other.lower() for other in by_name}:
            fault = "listed twice"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            fault = "a link or device"
        elif entry.flag_bits & 1 or entry.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            fault = "encrypted, or packed in another way than capsules are"
        elif entry.file_size > MOST_RATIO * max(entry.compress_size, 1):
            fault = f"{entry.file_size} bytes out of {entry.compress_size}"
        if fault is not None:
            raise CheckpointError(f"{path}: {entry.orig_filename[:80]!r}: {fault}; {ADVICE}")
        by_name[name] = entry
    if MANIFEST not in by_name:
        raise CheckpointError(f"{path}: no {MANIFEST}; give a file of attnseg capsule")
    return by_name


def check_manifest(values: Mapping[str, Any], entries: set[str], path: Path) -> dict[str, Entry]:
    """Return a manifest's entry for each file; refuse one that does not fit the archive."""

    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{path}, {MANIFEST}: {what}; {ADVICE}")

    if values.get("version") != VERSION:
        raise bad(f"version {str(values.get('version'))[:20]}, not {VERSION}")
    tolerance = values.get("tolerance")
    if not isinstance(tolerance, float) or not 0 < tolerance <= MOST_TOLERANCE:
        raise bad(f"a tolerance of {str(tolerance)[:20]}, not above 0 and at most {MOST_TOLERANCE}")
    files = values.get("files")
    if not isinstance(files, dict):
        raise bad("no list of files")
    if odd := sorted(set(files) ^ (entries - {MANIFEST})):
        raise bad(f"{odd[0][:80]!r} is in {'it' if odd[0] in files else 'the archive'} alone")
    if missing := sorted(set(PARTS) - set(files)):
        raise bad(f"no {missing[0]}")
    parts = {}
    for name, entry in files.items():
        complete = isinstance(entry, dict) and entry.keys() == {"sha256", "bytes"}
        digest, size = (entry["sha256"], entry["bytes"]) if complete else (None, None)
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise bad(f"no SHA-256 of {name[:80]}")
        if type(size) is not int or not 0 <= size <= MOST_BYTES:
            raise bad(f"no size of {name[:80]}")
        parts[name] = Entry(digest, size)
    return parts


def verify_capsule(path: Path, threads: int = 0) -> float:
    """Check a capsule with all its files, replay its golden input, and log a summary.

    Returns:
        The largest difference of the logits.
    """
    capsule = Capsule(path)
    for name in capsule.names:
        capsule.read(name)
    apart = capsule.replay(threads)
    spec = capsule.spec
    log.info("%s: %s with %s attention, run %s", path, spec.model, spec.attn, spec.run)
    log.info("classes: %s", ", ".join(spec.classes))
    log.info("%d files as in the manifest; sealed with %s", len(capsule.names), capsule.digest)
    allowed = capsule.manifest["tolerance"]
    log.info(
        "Golden input replayed: logits differ by %.1e at most, %.0e is allowed", apart, allowed
    )
    return apart


def pack_capsule(path: Path, parts: Mapping[str, bytes], facts: Mapping[str, Any]) -> bytes:
    """Return a capsule's bytes, which are the same for the same arguments.

    Args:
        path: where the capsule will be written, for messages.
        parts: every file but the manifest.
        facts: further keys of the manifest.
    """
    parts = dict(sorted(parts.items()))
    files = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in parts.items()
    }
    manifest = {"version": VERSION, "tolerance": TOLERANCE, **facts, "files": files}
    check_manifest(manifest, {MANIFEST, *parts}, path)
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {MANIFEST: text.encode(), **parts}.items():
            entry = zipfile.ZipInfo(name)  # It is dated 1980, whenever the capsule is made.
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            packed = zipfile.ZIP_STORED if name == MODEL else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, packed)
        archive.comment = b"0" * DIGITS
    return add_seal(buffer.getvalue())


def add_seal(data: bytes) -> bytes:
    """Return an archive whose last 64 bytes, its comment, are the SHA-256 of all before them."""
    body = data[:-DIGITS]
    return body + hashlib.sha256(body).hexdigest().encode()
