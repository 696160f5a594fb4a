"""Probes attentions: from options to a chart, with a table on the terminal."""

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from attnseg.config.budget import match_budget
from attnseg.config.errors import nearest
from attnseg.config.training import Config, Model
from attnseg.errors import ConfigError
from attnseg.probes.probe import find_probe, list_probes
from attnseg.probes.skeleton import SKELETON
from attnseg.probing.battery import (
    CellStore,
    choose_machine,
    describe_subject,
    late_learners,
    make_plan,
    plan_cells,
    run_battery,
)  # fmt: skip
from attnseg.probing.chart import PAGE, Entries, score_text, write_chart
from attnseg.probing.options import ProbeOptions
from attnseg.probing.run import Cell, Subject
from attnseg.probing.verdicts import collect_entries

log = logging.getLogger(__name__)

SETR = "attnseg.models.setr.SETR"
SIDE = 32  # height and width at which costs are counted and matched, in pixels of the probes


def probe_attentions(
    options: ProbeOptions,
    configs: Mapping[str, Config],
    about: Mapping[str, str],
    own_model: bool,
    predicted: bool,
    command: str,
) -> Entries:
    """Train what is missing, and write the chart to `probes/` in the folder of outputs.

    Args:
        options: attentions, probes and machine.
        configs: a configuration for each attention, with its options and its model.
        about: a line about each attention.
        own_model: whether the configured model is probed, instead of the probes' own small SETR.
        predicted: whether results are compared with what the attentions' classes declare.
        command: the command line, for the page.

    Returns:
        The results by attention and probe.
    """
    plan, names = options.probe, choose_probes(options.probe.probes)
    device, jobs = choose_machine(plan.device, plan.jobs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    skeleton = make_plan(SKELETON, plan.steps)
    side = SIDE * plan.enlarge
    subjects, traits = [], {}
    for name, config in configs.items():
        model = config.model if own_model else make_small_model(config.model)
        model = match_budget(model, config.attn, 1, 3, (side, side))
        subjects.append(Subject(name, model, config.attn))
        own = describe_subject(subjects[-1], about[name], side)
        traits[name] = own if predicted else replace(own, sees={})
    common = Cell(subjects[0], "", 0, skeleton, plan.enlarge, False, device, plan.precision)
    folder = Path(options.paths.outputs, "probes")
    store = CellStore(folder / "cells")
    cells = plan_cells(subjects, names, plan.seeds, common)
    log.info("%d trainings, %d at a time, on %s", len(cells), jobs, device)
    started = time.monotonic()
    cells = run_battery(cells, plan.seeds, store, jobs, plan.budget)
    torch.set_num_threads(threads)
    entries = collect_entries(cells, store, traits)
    if not entries:
        raise ConfigError("budget: no training was finished; give more time")
    late, early = late_learners(cells, plan.seeds[0], store)
    facts = {
        "command": command,
        "model": options.choices["model"] if own_model else f"SETR, {SKELETON.model}",
        "training": f"{skeleton.steps} steps of {skeleton.batch} new pictures at most",
        "seeds": ", ".join(map(str, plan.seeds)),
        "machine": f"{device}, {platform.machine()}, {jobs} at a time, PyTorch {torch.__version__}",
        "seconds": f"{time.monotonic() - started:.0f} for what was missing",
        "late learners": f"{late} of {early} first seeds at chance at half of their steps were "
        "above it in the end; another seed gives up there only if the first one failed",
    }
    write_chart(folder, entries, traits, store, facts)
    print_chart(entries, list(traits), names)
    log.info("Written: %s", folder / PAGE)
    return entries


def choose_probes(names: Sequence[str]) -> list[str]:
    """Return the names of probes, all for `all`; refuse one that does not exist."""
    known = list_probes()
    if list(names) == ["all"]:
        return known
    for name in names:
        if name not in known:
            raise ConfigError(f"probes: no {name!r}; {nearest(name, known)}")
    return list(names)


def make_small_model(model: Model) -> Model:
    """Return the probes' own model, with the cost that another one is to be matched to."""
    options = {"_target_": SETR, "pretrained": None, "match": model.match, **SKELETON.model}
    return Model.model_validate(options)


def print_chart(entries: Entries, attentions: Sequence[str], probes: Sequence[str]) -> None:
    """Print the scores; an exclamation mark follows those that disagree with the declaration."""
    table = Table(
        caption="mean score ± half of the 95 % interval; ! where it was predicted otherwise"
    )
    table.add_column("attention", no_wrap=True)
    for probe in probes:
        table.add_column(probe.replace("_", "\n"), justify="right")
    for name in attentions:
        row = [entries.get((name, probe)) for probe in probes]
        table.add_row(name, *("-" if e is None else score_text(e) + "!" * e.surprises for e in row))
    for key in ("chance", "ceiling"):
        table.add_row(key, *(f"{getattr(find_probe(probe), key):.2f}" for probe in probes))
    Console().print(table)
