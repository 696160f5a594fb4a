"""Documents of capsules and bundles: the model card, and other templates of this folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attnseg.config.build import build
from attnseg.config.nodes import Component
from attnseg.data.splits import ROLES
from attnseg.errors import ConfigError
from attnseg.evaluation.summary import format_interval, format_value
from attnseg.metrics.profiles.profile import Profile
from attnseg.prediction.spec import InferenceSpec
from attnseg.runs.run_folder import RunFolder

NO_LICENCE = (
    "These weights have no licence. Ask their makers before you use the weights or pass them on.\n"
    "The data that the weights were trained on have terms of their own.\n"
)


def read_text(key: str, path: str | None) -> str | None:
    """Return the content of the text file that an option names, if it names one."""
    if path is None:
        return None
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read as text; name a text file") from error
    if not text.strip():
        raise ConfigError(f"{key}: {path} is empty")
    return text


def render_template(name: str, **values: object) -> str:
    """Return a Markdown template of this room, filled in."""
    environment = Environment(
        loader=PackageLoader("attnseg.export"),
        autoescape=True,  # Names of a run are text, not HTML for a page that shows the file.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{name}.md.j2").render(**values)


def render_model_card(run: RunFolder, spec: InferenceSpec, use: str | None) -> str:
    """Return the model card of a run as Markdown.

    Args:
        run: the finished run.
        spec: inference spec of its network.
        use: the intended use, as Markdown; `None` if its makers have not stated one.
    """
    facts, metrics, profile = run.facts, run.metrics, build_profile(run.raw_config)
    split = "test" if "test" in metrics else "val"
    scored = metrics.get(split, {})
    smallest, largest = (
        " x ".join(f"{side:g}" for side in sides) for sides in spec.spacing or ((), ())
    )
    return render_template(
        "model_card",
        spec=spec,
        facts=facts,
        metrics={"watermark": None, **metrics},
        counts=_count_cases(run),
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


def build_profile(raw_config: Mapping[str, Any]) -> Profile:
    """Build the metric profile of a run."""
    ((name, node),) = raw_config["profile"].items()
    profile: Profile = build(f"profile.{name}", Component.model_validate(node))
    return profile


def _count_cases(run: RunFolder) -> dict[str, tuple[int, int]]:
    """Return the numbers of patients and cases of each role."""
    by_role = {role: run.split[run.split["role"] == role] for role in ROLES}
    return {role: (int(own["patient"].nunique()), len(own)) for role, own in by_role.items()}


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
