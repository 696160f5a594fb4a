"""The model card: what a trained network is, how good it was on whom, and what it is not for."""

from collections.abc import Mapping
from typing import Any

from attnseg.evaluation.summary import between, number
from attnseg.metrics.profiles.profile import Profile
from attnseg.predict.spec import InferenceSpec
from attnseg.runs.facts import RunFacts

NO_USE = (
    "Whoever made this capsule has not said. Research on images like those it was trained on is "
    "what its numbers are about; it is no medical device, and nobody has tested it as one."
)


def model_card(
    spec: InferenceSpec,
    facts: RunFacts,
    metrics: Mapping[str, Any],
    counts: Mapping[str, tuple[int, int]],
    profile: Profile,
    use: str | None,
) -> str:
    """Return the model card as Markdown.

    Args:
        spec: of the network.
        facts: of `run.json`.
        metrics: of `metrics.json`.
        counts: patients and cases by role.
        profile: that the metrics follow.
        use: what it is meant for; `None` if nobody said.
    """
    size = f"{spec.size[0]}x{spec.size[1]}"
    lines = [
        f"# {spec.model} with {spec.attn} attention, {spec.dataset}",
        "",
        f"Segments {', '.join(spec.classes)} in "
        + ("scans, slice by slice" if spec.volumetric else "pictures")
        + (", overlapping classes" if spec.multilabel else ", one class per pixel")
        + f". {facts.parameters['total'] / 1e6:.2f} M parameters, "
        f"{facts.macs / 1e9:.2f} GMAC per {size} slice.",
        "",
        "## Intended use",
        "",
        use.strip() if use else NO_USE,
        "",
        "## Data",
        "",
        f"Dataset {spec.dataset}, data digest `{spec.data_digest}`, split digest "
        f"`{spec.split_digest}`. No patient is in two roles.",
        "",
        "| role | patients | cases |",
        "|---|---|---|",
        *(f"| {role} | {patients} | {cases} |" for role, (patients, cases) in counts.items()),
        "",
        *preprocessing(spec),
        "",
        "## Results",
        "",
        f"Metric profile {profile.title}: {profile.rules.get('unit', 'see profile.json')}. "
        "Brackets are 95 % intervals over patients.",
    ]
    if watermark := metrics.get("watermark"):
        lines += ["", f"**{watermark}**"]
    for split in ("test", "val"):
        if split in metrics:
            lines += ["", *results(split, metrics[split], profile)]
    lines += ["", *openings(facts, metrics), "", "## Limits", "", *limits(spec, metrics)]
    return "\n".join([*lines, "", "## Provenance", "", *provenance(spec, facts), ""])


def preprocessing(spec: InferenceSpec) -> list[str]:
    """Return how images become the network's input, in words."""
    window = (
        "between the 0.5 and 99.5 percentiles of each case"
        if spec.window is None
        else f"between {spec.window[0]:g} and {spec.window[1]:g}"
    )
    seen = "" if spec.slices == 1 else f", {spec.slices} slices at once"
    return [
        f"Images of {spec.channels} channel{'s' * (spec.channels > 1)}{seen}; intensities "
        f"{window} become 0 to 1; resized to {spec.size[0]}x{spec.size[1]}; `recipe.json` has "
        "it as data."
    ]


def results(split: str, summary: Mapping[str, Any], profile: Profile) -> list[str]:
    """Return the table of a split."""
    shown = [metric for metric in profile.metrics if metric.shown]
    lines = [
        f"{split}: {summary['cases']} cases of {summary['patients']} patients"
        + (", which chose the weights." if split == "val" else "."),
        "",
        "| class | "
        + " | ".join(profile.label(metric) for metric in shown)
        + " | undefined, missed, spurious |",
        "|---|" + "---|" * (len(shown) + 1),
    ]
    for name, row in {**summary["classes"], "mean": summary["mean"]}.items():
        cells = []
        for metric in shown:
            value = row.get(metric.name)
            cell = "-" if value is None else number(metric, value)
            if ends := row.get("interval", {}).get(metric.name):
                low, high = (number(metric, end) for end in ends)
                cell += f" [{between(low, high)}]"
            cells.append(cell)
        counted = ", ".join(str(row.get(key, 0)) for key in ("undefined", "missed", "spurious"))
        lines.append(f"| {name} | {' | '.join(cells)} | {counted} |")
    return lines


def openings(facts: RunFacts, metrics: Mapping[str, Any]) -> list[str]:
    """Return how often the test set was looked at."""
    count = facts.test_set["openings"]
    if "test" not in metrics:
        return ["The test set was not opened by this run: the weights were chosen and are reported "
                "on validation cases."]  # fmt: skip
    return [
        f"The test set had been opened {count} time{'s' * (count != 1)} when this run ended, by "
        "this run and others on the same machine; every opening beyond the first makes the test "
        "figures a little too good."
    ]


def limits(spec: InferenceSpec, metrics: Mapping[str, Any]) -> list[str]:
    """Return what the figures do not say."""
    split = "test" if "test" in metrics else "val"
    found = metrics.get(split, {})
    lines = [
        f"- The figures are of {found.get('patients', 0)} patients of {spec.dataset}; other "
        "scanners, protocols and patients were not tried.",
        f"- Slices are resized to {spec.size[0]}x{spec.size[1]}; what is smaller than a pixel "
        "of that is lost.",
        "- It segments whatever it is given, and has no way to say that an image is unlike those "
        "it was trained on.",
    ]
    if spec.spacing is not None:
        low, high = (" x ".join(f"{side:g}" for side in ends) for ends in spec.spacing)
        lines.append(f"- Trained on voxels from {low} to {high} mm (slice, row, column).")
    classes = found.get("classes", {})
    for name, row in classes.items():
        if missed := row.get("missed", 0):
            lines.append(f"- {name} was missed in {missed} of {row.get('cases', 0)} {split} cases.")
    if spec.dataset.endswith("phantom"):
        lines.insert(0, "- Trained on made-up images: of no use on real ones.")
    return lines


def provenance(spec: InferenceSpec, facts: RunFacts) -> list[str]:
    """Return what was run, with what."""
    git = facts.git
    commit = "none known" if not git else git["commit"] + (", modified" * bool(git["modified"]))
    versions = ", ".join(f"{name} {found}" for name, found in facts.versions.items())
    return [
        f"- Run {spec.run}, started {facts.started}, seed {facts.seed}",
        f"- Weights: SHA-256 `{spec.weights_sha256}`, best epoch {facts.best_epoch}",
        f"- Code: commit {commit}",
        f"- Versions: {versions}",
    ]
