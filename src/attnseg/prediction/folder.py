"""Segmentation of every image in a folder: decode, segment, clean, write, update the manifest."""

import contextlib
import hashlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from attnseg.data.notices import counting_warnings
from attnseg.data.reader import shape_text
from attnseg.data.readers.nifti import list_nifti_files
from attnseg.energy import EnergyMeter
from attnseg.errors import (
    AttnsegError,
    CheckpointError,
    ConfigError,
    DataError,
    ResourceError,
    first_line,
    listed,
)
from attnseg.memory import free_memory
from attnseg.prediction.images import read_item
from attnseg.prediction.inputs import Inputs, Item, find_inputs
from attnseg.prediction.manifest import Facts, Manifest, digest_files
from attnseg.prediction.overlay import draw_overlay
from attnseg.prediction.postprocess import Rule, clean_mask
from attnseg.prediction.results import ResultWriter, volumes_ml
from attnseg.prediction.scan import Scan
from attnseg.prediction.segment import Segmented, Segmenter
from attnseg.prediction.spec import InferenceSpec
from attnseg.progress import track

log = logging.getLogger(__name__)

VERSION = 3  # raised whenever the same input and options would give another result
PACKAGES = (
    "attnseg", "numpy", "scipy", "opencv-python-headless", "nibabel", "pydicom", "highdicom",
    "pillow", "torch", "onnxruntime",
)  # fmt: skip
SHARED = ("classes", "multilabel", "values", "channels", "window", "volumetric", "plane")
# Memory per voxel while an item is worked on: masks, their copies in file order, label maps.
BYTES_PER_CLASS, BYTES_PER_PROBABILITY = 3, 8
ERROR_LOG = "errors.log"  # tracebacks of failures that are nobody's fault but ours
MOST_UNWRITTEN = 3  # results in a row that cannot be written before the rest is given up
OnSegmented = Callable[[Item, Scan, Segmented], None]


@dataclass(frozen=True)
class OutputOptions:
    """The results that are written for each item.

    Attributes:
        rules: postprocessing of the masks, by class.
        probabilities: whether to write the probabilities of the classes.
        uncertainty: whether to write the uncertainty of each voxel.
        overlays: whether to draw the masks on the image.
        output_type: file format of the masks of DICOM series (see `ResultWriter`).
    """

    rules: Mapping[str, Rule]
    probabilities: bool = False
    uncertainty: bool = False
    overlays: bool = True
    output_type: str = "dicom_seg"


def segment_folder(
    segmenter: Segmenter,
    specs: Sequence[InferenceSpec],
    options: OutputOptions,
    source: Path,
    output: Path,
    backend: str,
    gpus: Sequence[str] | None = None,
    on_segmented: OnSegmented = lambda *_: None,
) -> None:
    """Segment every image in a file or folder; write the results and a manifest.

    Args:
        segmenter: one network or several.
        specs: the inference specs of these networks.
        options: the results to write.
        source: file or folder that is searched for images.
        output: folder of the results.
        backend: name of the library that runs the networks, for the manifest.
        gpus: names of the GPUs that compute, whose energy is noted; `None` for CPUs.
        on_segmented: called with each item once its results are written.

    Raises:
        ConfigError: networks that do not fit each other, or an output that is not safe.
        DataError: some of the input cannot be segmented; the rest is done.
        CheckpointError: the network answers none of the input.
        ResourceError: some of the output cannot be written; the rest is done if there is room.
    """
    spec = check_specs_agree(specs)
    check_output(source, output)
    inputs = find_inputs(source, output, spec)
    if skipped := inputs.skipped:
        log.info("Passed over, of other kinds: %d files, %s the first", len(skipped), skipped[0])
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    settings = describe_settings(segmenter, specs, options, backend)
    with Manifest(output, digest_settings(settings)) as manifest:
        run = FolderRun(segmenter, options, spec, find_root(source), manifest, on_segmented)
        with EnergyMeter(gpus) as meter, counting_warnings():
            items = run.segment_items(inputs)
        seconds = round(time.monotonic() - clock, 2)
        with run.gathering_failures(inputs, output):
            manifest.close(
                {
                    "input": str(source),
                    "command": sys.argv,
                    "started": started,
                    "seconds": seconds,
                    "energy": meter.describe(),
                    "versions": installed_versions(),
                    "settings": manifest.settings,
                    **settings,
                    "items": items,
                    "failed": inputs.problems.found,
                    "passed_over": [str(path.relative_to(run.root)) for path in skipped],
                }
            )
    log.info("%d items in %.0f s%s: %s", len(items), seconds, meter.note, output)
    if failed := inputs.problems.found:
        error = listed(DataError(*failed), "input", f"{len(items)} others are done: {output}")
        raise run.choose_kind(items)(str(error)) from error


@dataclass
class FolderRun:
    """Segments one item after the other.

    Attributes:
        segmenter: one network or several.
        options: the results to write.
        spec: the first network's inference spec, with which the others agree.
        root: folder that paths in the manifest are relative to.
        manifest: manifest of the output folder.
        on_segmented: called with each item once its results are written.
        failures: the class of each error that was raised, foreseen or not.
    """

    segmenter: Segmenter
    options: OutputOptions
    spec: InferenceSpec
    root: Path
    manifest: Manifest
    on_segmented: OnSegmented
    failures: list[type[Exception]] = field(default_factory=list)

    def segment_items(self, inputs: Inputs) -> list[Facts]:
        """Segment every item that is not done yet; add problems to those of the inputs.

        Whatever one item raises is a problem of that item alone.

        Returns:
            The manifest's entries of all items without a problem, those of an earlier run included.
        """
        entries, earlier = [], 0
        for item in track(inputs.items, "Segmenting", "items"):
            with self.gathering_failures(inputs, item.place):
                digest = _digest_item(item)
                if entry := self.manifest.find_done(item.name, digest):
                    earlier += 1
                else:
                    entry = self._segment_item(item, digest)
                    self.manifest.add(entry)
                entries.append(entry)
            last = self.failures[-MOST_UNWRITTEN:]
            if len(last) == MOST_UNWRITTEN and all(issubclass(e, ResourceError) for e in last):
                left = len(inputs.items) - len(entries) - len(self.failures)
                inputs.problems.found.append(
                    f"{self.manifest.output}: {MOST_UNWRITTEN} results in a row could not be "
                    f"written, and {left} inputs are left; free space or set output, and repeat "
                    "the command"
                )
                break
        if earlier:
            log.info("%d items were done before", earlier)
        return entries

    @contextlib.contextmanager
    def gathering_failures(self, inputs: Inputs, place: Path) -> Iterator[None]:
        """Add whatever is raised within to the problems of the inputs, under the name of `place`.

        A mistake in the configuration concerns all items and is let through.
        """
        try:
            yield
        except ConfigError:
            raise
        except DataError as error:
            self.failures.append(type(error))
            inputs.problems.found.extend(error.problems)
        except AttnsegError as error:
            self.failures.append(type(error))
            named = isinstance(error, ResourceError)
            inputs.problems.found.append(str(error) if named else f"{place}: {error}")
        except Exception as error:
            self.failures.append(type(error))
            reason = f"{type(error).__name__}: {first_line(error)[:200]}"
            kept = self.manifest.output / ERROR_LOG
            with contextlib.suppress(OSError), kept.open("a") as file:
                file.write(f"{place}\n{''.join(traceback.format_exception(error))}\n")
            inputs.problems.found.append(
                f"{place}: cannot be segmented ({reason}); this is a bug of ours, please report it "
                f"with {kept}"
            )

    def choose_kind(self, done: Sequence[Facts]) -> type[AttnsegError]:
        """Return the kind of error that ends a command of which some items have failed."""
        if any(issubclass(kind, ResourceError) for kind in self.failures):
            return ResourceError
        broken = [issubclass(kind, CheckpointError) for kind in self.failures]
        return CheckpointError if broken and all(broken) and not done else DataError

    def _segment_item(self, item: Item, digest: str) -> Facts:
        """Segment an item and write its results; return its entry in the manifest."""
        clock = time.monotonic()
        options, classes = self.options, self.spec.classes
        try:
            item, scan = read_item(item, self.spec)
            self._check_feasible(item, scan)
            writer = ResultWriter(self.manifest.output, item, scan, self.spec, options.output_type)
            writer = writer.adapted()
            warnings = scan.differences_from_training(self.spec)
            for warning in warnings:
                log.warning("%s: %s", item.name, warning)
            segmented = self.segmenter(scan, options.probabilities, options.uncertainty)
            for mask, name in zip(segmented.masks, classes, strict=True):
                mask[:] = clean_mask(mask, options.rules[name], scan.spacing)
            identity = digest + self.manifest.settings
            files = writer.write_masks(segmented.masks, installed_versions()["attnseg"], identity)
            if segmented.probabilities is not None:
                files += writer.write_values("probabilities", segmented.probabilities)
            if segmented.uncertainty is not None:
                files += writer.write_values("uncertainty", segmented.uncertainty)
            if options.overlays:
                files += writer.write_overlay(draw_overlay(scan, segmented.masks, classes))
            self.on_segmented(item, scan, segmented)
        except MemoryError as error:
            raise DataError(
                f"{item.place}: not enough memory; lower batch_size, crop it or use a machine that "
                "has more"
            ) from error
        counts = [int(np.count_nonzero(mask)) for mask in segmented.masks]
        volumes = volumes_ml(counts, scan.spacing)
        return {
            "name": item.name,
            "kind": item.kind,
            "files": [str(path.relative_to(self.root)) for path in item.files],
            "digest": digest,
            "settings": self.manifest.settings,
            "shape": list(scan.shape),
            "spacing_mm": None if scan.spacing is None else list(scan.spacing),
            "voxels": dict(zip(classes, counts, strict=True)),
            "ml": None if volumes is None else dict(zip(classes, volumes, strict=True)),
            "warnings": [*warnings, *scan.warnings],
            "seconds": round(time.monotonic() - clock, 3),
            "outputs": self.manifest.digest_results(files),
        }

    def _check_feasible(self, item: Item, scan: Scan) -> None:
        """Refuse an item whose masks cannot be cleaned as asked, or would not fit into memory.

        The check comes first because the system ends a process that takes too much memory.
        """
        if scan.spacing is None and any(rule.min_ml > 0 for rule in self.options.rules.values()):
            raise DataError(
                f"{item.place}: pixels of unknown size, of which postprocess.min_ml says nothing; "
                "use postprocess.min_pixels"
            )
        with np.errstate(over="ignore"):
            ranges = np.array(scan.high, np.float32) - np.array(scan.low, np.float32)
        if not np.isfinite(ranges).all():
            raise DataError(
                f"{item.place}: intensities from {scan.low[0]:.3g} to {scan.high[0]:.3g} are too "
                "far apart; correct them"
            )
        classes = len(self.spec.classes)
        each = BYTES_PER_CLASS + BYTES_PER_PROBABILITY * self.options.probabilities
        needed = int(np.prod(scan.shape, dtype=np.int64)) * classes * each
        free = free_memory()
        if free is not None and needed > free:
            raise DataError(
                f"{item.place}: {shape_text(scan.shape)} voxels and {classes} classes need "
                f"{needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; crop it or use "
                "a machine that has more"
            )


def _digest_item(item: Item) -> str:
    try:
        return digest_files([file for path in item.files for file in list_nifti_files(path)])
    except OSError as error:
        raise DataError(f"{item.place}: {error.strerror}; restore it") from error


def check_specs_agree(specs: Sequence[InferenceSpec]) -> InferenceSpec:
    """Return the first spec; refuse specs whose networks cannot vote."""
    first = specs[0]
    for other in specs[1:]:
        for name in SHARED:
            mine, its = getattr(first, name), getattr(other, name)
            if mine != its:
                raise ConfigError(
                    f"run: {first.run} has {name} {_as_text(mine)} and {other.run} {_as_text(its)};"
                    " runs that vote must agree"
                )
    return first


def check_output(source: Path, output: Path) -> None:
    """Refuse an output that is the input or holds it, so that no input is ever overwritten."""
    if find_root(source).resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"output: {output} is or holds the input; give another folder")


def find_root(source: Path) -> Path:
    """Return the folder that paths in the manifest are relative to."""
    return source if source.is_dir() else source.parent


def digest_settings(settings: Facts) -> str:
    """Return the SHA-256 of everything but the input that determines the results."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def describe_settings(
    segmenter: Segmenter, specs: Sequence[InferenceSpec], options: OutputOptions, backend: str
) -> Facts:
    """Return everything but the input that determines the results, as plain containers."""
    return {
        "version": VERSION,
        "backend": backend,
        "recipes": [spec.model_dump() for spec in specs],
        "flips": sorted(segmenter.flips),
        "tiles": segmenter.tiles,
        **asdict(options),
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part, if installed."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
