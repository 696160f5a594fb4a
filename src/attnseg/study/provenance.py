"""Where the numbers of a comparison come from, run by run."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from attnseg.runs.finished import Run, Variant

SHORT = 10  # digits of a digest or commit


def of_runs(variants: Sequence[Variant]) -> list[dict[str, str]]:
    """Return a row per run: what was run when, where, from which code, and how long it took."""
    ordered = [(v, run) for v in variants for run in sorted(v.runs, key=lambda run: run.seed)]
    return [_row(variant, run) for variant, run in ordered]


def _row(variant: Variant, run: Run) -> dict[str, str]:
    facts = run.facts
    seconds: Mapping[str, Any] = facts.get("seconds", {})
    return {
        "variant": variant.name,
        "seed": str(run.seed),
        "run": run.folder.name,
        "started": str(facts.get("started", "-"))[:16].replace("T", " "),
        "code": _code(facts.get("git")),
        "best epoch": str(facts.get("best_epoch", "-")),
        "training, s": _seconds(seconds.get("fit")),
        "in all, s": _seconds(seconds.get("total")),
        "test set opened": str(facts["test_set"]["openings"]),
    }


def _code(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "-"
    return str(git["commit"])[:SHORT] + (", modified" if git["modified"] else "")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def shared(variants: Sequence[Variant]) -> dict[str, str]:
    """Return what belongs to all runs, or every value that it has among them."""
    runs = [run for variant in variants for run in variant.runs]
    found = {
        "data": [run.facts["data_digest"][:SHORT] for run in runs],
        "split": [run.fold[:SHORT] for run in runs],
        "test set": [run.facts["test_set"]["digest"][:SHORT] for run in runs],
        "metric profile": [f"{run.profile['name']} {run.profile['digest']}" for run in runs],
        "machine": [_machine(run.facts.get("machine", {})) for run in runs],
        "versions": [_versions(run.facts.get("versions", {})) for run in runs],
    }
    return {name: "; ".join(dict.fromkeys(values)) for name, values in found.items()}


def _machine(machine: Mapping[str, Any]) -> str:
    words = [str(machine[key]) for key in ("device", "system") if key in machine]
    if "threads" in machine:
        words.insert(1, f"{machine['threads']} threads")
    return ", ".join(words) or "-"


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "-"


def commands(variants: Sequence[Variant]) -> dict[str, str]:
    """Return the command line of each run, by variant and seed."""
    return {
        f"{variant.name}, seed {run.seed}, {run.folder.name}": shlex.join(run.facts["command"])
        for variant in variants
        for run in variant.runs
        if "command" in run.facts
    }
