"""Writes the model card of a capsule from `templates/model_card.md.j2`."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attnseg.evaluation.summary import format_interval, format_value
from attnseg.metrics.profiles.profile import Profile
from attnseg.prediction.spec import InferenceSpec
from attnseg.runs.facts import RunFacts


def render_model_card(
    spec: InferenceSpec,
    facts: RunFacts,
    metrics: Mapping[str, Any],
    counts: Mapping[str, tuple[int, int]],
    profile: Profile,
    use: str | None,
) -> str:
    """Return the model card of a run as Markdown.

    Args:
        spec: inference spec of the network.
        facts: content of `run.json`.
        metrics: content of `metrics.json`.
        counts: numbers of patients and cases by role.
        profile: metric profile that the metrics follow.
        use: the intended use, as Markdown; `None` if its makers have not stated one.
    """
    environment = Environment(
        loader=PackageLoader("attnseg.export"),
        autoescape=True,  # Names of a run are text, not HTML for a page that shows the card.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    split = "test" if "test" in metrics else "val"
    scored = metrics.get(split, {})
    smallest, largest = (
        " x ".join(f"{side:g}" for side in sides) for sides in spec.spacing or ((), ())
    )
    return environment.get_template("model_card.md.j2").render(
        spec=spec,
        facts=facts,
        metrics={"watermark": None, **metrics},
        counts=counts,
        profile=profile,
        use=use.strip() if use else None,
        size=f"{spec.size[0]}x{spec.size[1]}",
        tables=[_tabulate_split(n, metrics[n], profile) for n in ("test", "val") if n in metrics],
        openings=facts.test_set["openings"] if split == "test" else None,
        split=split,
        patients=scored.get("patients", 0),
        smallest=smallest,
        largest=largest,
        missed_classes=[
            (name, row["missed"], row.get("cases", 0))
            for name, row in scored.get("classes", {}).items()
            if row.get("missed", 0)
        ],
        commit=git["commit"] + ", modified" * git["modified"] if (git := facts.git) else "unknown",
        versions=", ".join(f"{name} {number}" for name, number in facts.versions.items()),
    )


def _tabulate_split(split: str, summary: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """Return the table of a split as labels of columns and rows of cells."""
    shown = [metric for metric in profile.metrics if metric.shown]
    rows = []
    for name, row in {**summary["classes"], "mean": summary["mean"]}.items():
        cells = []
        for metric in shown:
            value = row.get(metric.name)
            cell = "-" if value is None else format_value(metric, value)
            if ends := row.get("interval", {}).get(metric.name):
                low, high = (format_value(metric, end) for end in ends)
                cell += f" [{format_interval(low, high)}]"
            cells.append(cell)
        counted = ", ".join(str(row.get(key, 0)) for key in ("undefined", "missed", "spurious"))
        rows.append((name, cells, counted))
    labels = [profile.label(metric) for metric in shown]
    totals = {"cases": summary["cases"], "patients": summary["patients"]}
    return {"split": split, "labels": labels, "rows": rows, **totals}
