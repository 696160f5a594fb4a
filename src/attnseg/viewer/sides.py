"""The networks or written predictions that a page shows, each a side with cases of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from attnseg.config.errors import parse_options
from attnseg.config.prediction import Postprocess
from attnseg.data.folders import find_ending
from attnseg.errors import AttnsegError
from attnseg.prediction.folder import OutputOptions, segment_folder
from attnseg.prediction.inputs import Item
from attnseg.prediction.manifest import MANIFEST
from attnseg.prediction.postprocess import Rule
from attnseg.prediction.scan import Scan
from attnseg.prediction.segment import Member, Segmented, Segmenter
from attnseg.prediction.spec import InferenceSpec
from attnseg.runs.predictors import build_rules, open_capsule, open_torch_networks
from attnseg.runs.run_folder import RunFolder
from attnseg.viewer.options import View
from attnseg.viewer.shown import Shown
from attnseg.viewer.uploads import KINDS, Upload


@dataclass(frozen=True)
class SeenCase:
    """One segmented image.

    Attributes:
        name: as the person at the page knows it.
        facts: its entry in the manifest.
        masks: the files that hold its masks, by the names under which they are saved.
        load: returns what is drawn.
    """

    name: str
    facts: dict[str, Any]
    masks: dict[str, Path]
    load: Callable[[], Shown]


@dataclass
class Side:
    """What one network or folder shows.

    Attributes:
        title: file or folder that it comes from.
        spec: of the network.
        cases: segmented images, by their names.
        lines: a line for each image that could not be segmented.
    """

    title: str
    spec: InferenceSpec
    cases: dict[str, SeenCase] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Predicting(Side):
    """A side whose network segments what is dropped, by the code of `attnseg predict`."""

    segmenter: Segmenter
    rules: dict[str, Rule]
    backend: str = "onnx"

    def segment(self, upload: Upload, output: Path, output_type: str) -> None:
        """Segment an upload into a new folder; whatever fails becomes a line."""
        kept: dict[str, Shown] = {}

        def keep(item: Item, scan: Scan, segmented: Segmented) -> None:
            kept[item.name] = Shown.from_slices(scan, segmented, self.spec)

        options = OutputOptions(self.rules, uncertainty=True, output_type=output_type)
        self.cases, self.lines = {}, []
        try:
            segment_folder(
                self.segmenter, [self.spec], options, upload.folder, output, self.backend,
                on_segmented=keep,
            )  # fmt: skip
        except AttnsegError as error:
            self.lines = [str(error)]
        facts: dict[str, Any] = {"items": [], "failed": []}
        if (output / MANIFEST).exists():
            facts = json.loads((output / MANIFEST).read_text())
        self.lines = [upload.original(line) for line in facts["failed"] or self.lines]
        for entry in facts["items"]:
            shown, name = kept[entry["name"]], name_case(entry, upload)
            while name in self.cases:
                name += " (again)"
            masks = name_masks(entry, output, stem_of(name, entry))
            entry["warnings"] = [upload.original(line) for line in entry["warnings"]]
            self.cases[name] = SeenCase(name, entry, masks, partial(_same, shown))


def _same(shown: Shown) -> Shown:
    return shown


def name_case(entry: dict[str, Any], upload: Upload) -> str:
    """Return the name of an item as the person who dropped it knows it."""
    if entry["kind"] == "scan":
        return PurePosixPath(entry["name"]).name
    names = [upload.names[upload.folder / file] for file in entry["files"]]
    if entry["kind"] != "dicom":
        return names[0]
    return f"DICOM series of {len(names)} files, {min(names)} the first"


def stem_of(name: str, entry: dict[str, Any]) -> str:
    """Return the beginning of the names under which an item's results are saved."""
    if entry["kind"] == "dicom":
        return "series"
    name = PurePosixPath(name).name
    return name[: len(name) - len(find_ending(name, KINDS))]


def name_masks(entry: dict[str, Any], output: Path, stem: str) -> dict[str, Path]:
    """Return the files of an item's masks by the names under which they are saved.

    Files that lie elsewhere than in the folder of all results are left out.
    """
    own = PurePosixPath(entry["name"]).name
    paths = [output / name for name in entry["outputs"] if name.startswith("masks/")]
    return {
        f"{stem}_masks{path.name.removeprefix(own)}": path
        for path in paths
        if path.resolve().is_relative_to(output.resolve())
    }


def open_sides(options: View) -> list[Predicting]:
    """Open the networks that the options name; torch is imported for runs only.

    Raises:
        AttnsegError: what the person at the terminal can mend.
    """
    sides = []
    for capsule in options.capsules:
        spec, network, own = open_capsule(capsule, options.threads)
        rules = build_rules(parse_options(Postprocess, own), spec.classes)
        segmenter = Segmenter(spec.labels, [Member(network, spec.view)])
        sides.append(Predicting(title_of(capsule, options), spec, segmenter=segmenter, rules=rules))
    if options.run is not None:
        specs, networks = open_torch_networks(
            [RunFolder(options.run)], options.threads, options.device
        )
        segmenter = Segmenter(specs[0].labels, [Member(networks[0], specs[0].view)])
        rules = {name: Rule() for name in specs[0].classes}
        sides.append(
            Predicting(options.run, specs[0], segmenter=segmenter, rules=rules, backend="torch")
        )
    return sides


def title_of(capsule: str, options: View) -> str:
    """Return a capsule's name, with its folder if both have the same name."""
    names = [Path(each).name for each in options.capsules]
    return Path(capsule).name if len(set(names)) == len(names) else capsule
