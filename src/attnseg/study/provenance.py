"""Origin of each run in a comparison: code, data, machine, versions and command."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study.wording import count_text

DIGEST_LENGTH = 10  # shown characters of a digest or commit


def list_run_origins(variants: Sequence[Variant]) -> list[dict[str, str]]:
    """Return one row per run: seed, start, commit, best epoch, seconds and test-set openings."""
    return [
        _describe_run(variant, run)
        for variant in variants
        for run in sorted(variant.runs, key=lambda run: run.seed)
    ]


def _describe_run(variant: Variant, run: RunFolder) -> dict[str, str]:
    facts = run.facts
    return {
        "variant": variant.name,
        "seed": str(run.seed),
        "run": run.name,
        "started": (facts.started or "-")[:16].replace("T", " "),
        "code": _commit_text(facts.git),
        "best epoch": str(facts.best_epoch or "-"),
        "training, s": _seconds_text(facts.seconds.get("fit")),
        "total, s": _seconds_text(facts.seconds.get("total")),
        "test set opened": str(facts.test_set["openings"]),
    }


def _commit_text(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "-"
    return str(git["commit"])[:DIGEST_LENGTH] + (", modified" if git["modified"] else "")


def _seconds_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def list_shared_facts(variants: Sequence[Variant]) -> dict[str, str]:
    """Return facts that are mostly the same for all runs, such as data; all values if they vary."""
    runs = [run for variant in variants for run in variant.runs]
    facts = {
        "data": [run.facts.data_digest[:DIGEST_LENGTH] for run in runs],
        "split": [run.fold[:DIGEST_LENGTH] for run in runs],
        "test set": [run.facts.test_set["digest"][:DIGEST_LENGTH] for run in runs],
        "metric profile": [f"{run.profile['name']} {run.profile['digest']}" for run in runs],
        "machine": [_machine_text(run.facts.machine) for run in runs],
        "versions": [_versions_text(_list_versions(run)) for run in runs],
    }
    return {name: "; ".join(dict.fromkeys(values)) for name, values in facts.items()}


def _machine_text(machine: Mapping[str, Any]) -> str:
    items = [str(machine[key]) for key in ("device", "system") if key in machine]
    if "threads" in machine:
        items.insert(1, f"{machine['threads']} threads")
    return ", ".join(items) or "-"


def _list_versions(run: RunFolder) -> dict[str, str]:
    """Return the versions of packages and plugins; of a plugin that is a file, its digest."""
    plugins = run.facts.plugins.items()
    return run.facts.versions | {
        name: facts.get("version") or facts.get("digest", "-") for name, facts in plugins
    }


def _versions_text(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "-"


def list_commands(variants: Sequence[Variant]) -> dict[str, str]:
    """Return the command line of each run, labelled by variant, seed and folder."""
    return {
        f"{variant.name}, seed {run.seed}, {run.name}": shlex.join(run.facts.command)
        for variant in variants
        for run in variant.runs
        if run.facts.command is not None
    }


def list_splits(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return the division of patients in each split: its text, and a bar for each role."""
    runs = {run.fold: run for variant in variants for run in variant.runs}
    splits = []
    for run in runs.values():
        if not run.split_file.is_file():
            continue
        by_role = run.split.groupby("role", sort=False)
        patients, cases = by_role["patient"].nunique(), by_role.size()
        texts = [
            f"{role}: {count_text(patients[role], 'patient')}, {count_text(cases[role], 'case')}"
            for role in cases.index
        ]
        ends = (480 * patients.cumsum() / patients.sum()).to_list()
        bars = [
            {"x": f"{start:.1f}", "width": f"{max(1.0, end - start - 2):.1f}", "text": text}
            for start, end, text in zip([0.0, *ends], ends, texts, strict=False)
        ]
        splits.append({"text": "; ".join(texts), "bars": bars})
    return splits


def list_excluded(variants: Sequence[Variant]) -> list[str]:
    """Return the cases that any run excluded by its configuration."""
    runs = [run for variant in variants for run in variant.runs]
    nodes = [run.raw_config.get("dataset") for run in runs]
    lists = [node.get("exclude") or [] for node in nodes if isinstance(node, Mapping)]
    return sorted({str(case) for own in lists for case in own})


def list_rules(run: RunFolder) -> dict[str, str]:
    """Return the rules of a run's metric profile, and its options that are set."""
    own = {key: value for key, value in run.profile.items() if key not in ("name", "digest")}
    return {
        key.replace("_", " "): str(value)
        for key, value in own.items()
        if isinstance(value, str | int | float)
    }
