"""All of a folder, item by item: decode, segment, clean, write, note."""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from attnseg.data.reader import shape_text
from attnseg.errors import ConfigError, DataError, listed
from attnseg.memory import free_memory
from attnseg.predict import overlay
from attnseg.predict.images import read_item
from attnseg.predict.inputs import Found, Item, find
from attnseg.predict.postprocess import Rule, clean
from attnseg.predict.record import Facts, Record, files_digest
from attnseg.predict.results import Results, volumes_ml
from attnseg.predict.scan import Scan
from attnseg.predict.segment import Segmenter
from attnseg.predict.spec import InferenceSpec
from attnseg.progress import track

log = logging.getLogger(__name__)

VERSION = 1  # raised whenever the same input and options would give another result
PACKAGES = (
    "attnseg", "numpy", "scipy", "opencv-python-headless", "nibabel", "pydicom", "highdicom",
    "pillow", "torch", "onnxruntime",
)  # fmt: skip
SAME = ("classes", "multilabel", "channels", "window", "volumetric", "plane")
# Per voxel while an item is worked on: masks, their copies in the order of the file, labels.
BYTES_PER_CLASS, BYTES_PER_PROBABILITY = 3, 8


@dataclass(frozen=True)
class Wanted:
    """What is wanted beside masks, and what happens to these.

    Attributes:
        rules: by class.
        probabilities: whether to write them.
        uncertainty: whether to write it.
        overlays: whether to draw them.
    """

    rules: Mapping[str, Rule]
    probabilities: bool = False
    uncertainty: bool = False
    overlays: bool = True


def predict(
    segmenter: Segmenter,
    specs: Sequence[InferenceSpec],
    wanted: Wanted,
    place: Path,
    output: Path,
    backend: str,
) -> None:
    """Segment all there is, and leave masks and a manifest.

    Args:
        segmenter: of one network or several.
        specs: of these networks.
        wanted: of each item.
        place: file or folder.
        output: folder.
        backend: what the networks run on, for the manifest.

    Raises:
        ConfigError: networks that do not fit each other, or an output that is not safe.
        DataError: some of the input cannot be segmented; the rest is done.
        ResourceError: the output cannot be written.
    """
    spec = common(specs)
    check_output(place, output)
    found = find(place, output, spec)
    if found.others:
        log.info(
            "Passed over, of other kinds: %d files, %s the first",
            len(found.others),
            found.others[0],
        )
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    decides = decisive(segmenter, specs, wanted, backend)
    settings = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    root = place if place.is_dir() else place.parent
    with Record(output, settings) as record:
        work = Work(segmenter, wanted, spec, root, record)
        items = work.all(found)
        seconds = round(time.monotonic() - clock, 2)
        manifest = {
            "input": str(place),
            "command": sys.argv,
            "started": started,
            "seconds": seconds,
            "versions": versions(),
            "settings": settings,
            **decides,
            "items": items,
            "failed": found.problems.found,
            "passed_over": [str(path.relative_to(root)) for path in found.others],
        }
        record.close(manifest)
    log.info("%d items in %.0f s: %s", len(items), seconds, output)
    if found.problems.found:
        raise listed(
            DataError(*found.problems.found), "input", f"{len(items)} others are done: {output}"
        )


@dataclass(frozen=True)
class Work:
    """The work on one item after the other.

    Attributes:
        segmenter: of one network or several.
        wanted: of each item.
        spec: what the networks have in common.
        root: folder that paths in the manifest start from.
        record: of what is done.
    """

    segmenter: Segmenter
    wanted: Wanted
    spec: InferenceSpec
    root: Path
    record: Record

    def all(self, found: Found) -> list[Facts]:
        """Do every item; return what is noted of those that went well."""
        noted, earlier = [], 0
        for item in track(found.items, "Segmenting", "items"):
            with found.problems.gathered():
                digest = self._digest(item)
                if facts := self.record.done(item.name, digest):
                    earlier += 1
                else:
                    facts = self._one(item, digest)
                    self.record.add(facts)
                noted.append(facts)
        if earlier:
            log.info("%d items were done before", earlier)
        return noted

    def _digest(self, item: Item) -> str:
        try:
            return files_digest(item.files)
        except OSError as error:
            raise DataError(f"{item.place}: {error.strerror}; restore it") from error

    def _one(self, item: Item, digest: str) -> Facts:
        """Segment an item and write its results; return what is noted of it."""
        clock = time.monotonic()
        wanted, classes = self.wanted, self.spec.classes
        try:
            item, scan = read_item(item, self.spec)
            self._check(item, scan)
            warnings = scan.unlike(self.spec)
            for warning in warnings:
                log.warning("%s: %s", item.name, warning)
            made = self.segmenter(scan, wanted.probabilities, wanted.uncertainty)
            for mask, name in zip(made.masks, classes, strict=True):
                mask[:] = clean(mask, wanted.rules[name], scan.spacing)
            results = Results(self.record.output, item, scan, self.spec)
            identity = digest + self.record.settings
            files = results.write_masks(made.masks, versions()["attnseg"], identity)
            if made.probabilities is not None:
                files += results.write_values("probabilities", made.probabilities)
            if made.uncertainty is not None:
                files += results.write_values("uncertainty", made.uncertainty)
            if wanted.overlays:
                files += results.write_overlay(overlay.draw(scan, made.masks, classes))
        except MemoryError as error:
            raise DataError(
                f"{item.place}: not enough memory; lower batch_size, crop it or use a machine that "
                "has more"
            ) from error
        counts = [int(np.count_nonzero(mask)) for mask in made.masks]
        volumes = volumes_ml(counts, scan.spacing)
        return {
            "name": item.name,
            "kind": item.kind,
            "files": [str(path.relative_to(self.root)) for path in item.files],
            "digest": digest,
            "settings": self.record.settings,
            "shape": list(scan.shape),
            "spacing_mm": None if scan.spacing is None else list(scan.spacing),
            "voxels": dict(zip(classes, counts, strict=True)),
            "ml": None if volumes is None else dict(zip(classes, volumes, strict=True)),
            "warnings": warnings,
            "seconds": round(time.monotonic() - clock, 3),
            "outputs": self.record.digests(files),
        }

    def _check(self, item: Item, scan: Scan) -> None:
        """Refuse what cannot be cleaned as wanted, or would not fit into memory.

        Raises:
            DataError: names the item; before the system ends the process.
        """
        if scan.spacing is None and any(rule.min_ml > 0 for rule in self.wanted.rules.values()):
            raise DataError(
                f"{item.place}: pixels of unknown size, of which postprocess.min_ml says nothing; "
                "use postprocess.min_pixels"
            )
        classes = len(self.spec.classes)
        each = BYTES_PER_CLASS + BYTES_PER_PROBABILITY * self.wanted.probabilities
        needed = int(np.prod(scan.shape, dtype=np.int64)) * classes * each
        free = free_memory()
        if free is not None and needed > free:
            raise DataError(
                f"{item.place}: {shape_text(scan.shape)} voxels and {classes} classes need "
                f"{needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; crop it or use "
                "a machine that has more"
            )


def common(specs: Sequence[InferenceSpec]) -> InferenceSpec:
    """Return the first spec, if the others fit it.

    Raises:
        ConfigError: names two runs and what differs.
    """
    first = specs[0]
    for other in specs[1:]:
        for name in SAME:
            mine, its = getattr(first, name), getattr(other, name)
            if mine != its:
                raise ConfigError(
                    f"run: {first.run} has {name} {_text(mine)} and {other.run} {_text(its)}; "
                    "runs that vote must agree"
                )
    return first


def check_output(place: Path, output: Path) -> None:
    """Refuse an output that is the input or holds it: nothing of the input is ever overwritten.

    Raises:
        ConfigError: says so.
    """
    root = (place if place.is_dir() else place.parent).resolve()
    if root.is_relative_to(output.resolve()):
        raise ConfigError(f"output: {output} is or holds the input; give another folder")


def decisive(
    segmenter: Segmenter, specs: Sequence[InferenceSpec], wanted: Wanted, backend: str
) -> Facts:
    """Return all that decides the results but the input, as plain containers."""
    return {
        "version": VERSION,
        "backend": backend,
        "recipes": [spec.model_dump() for spec in specs],
        "flips": sorted(segmenter.flips),
        "tiles": segmenter.tiles,
        **asdict(wanted),
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part, as far as it is installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
