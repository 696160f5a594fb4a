"""The report of a search: table, importance of parameters, plots, and the best trial's options."""

import csv
import logging
import math
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from attnseg.files import write_text
from attnseg.search.shared_search import SharedSearch

log = logging.getLogger(__name__)
PRINTED_TRIALS = 10
ENOUGH_TRIALS = 10  # With fewer completed trials, importance is little more than a guess.
TRIAL_MARKERS = {
    TrialState.COMPLETE: ("o", "C0", "completed"),
    TrialState.PRUNED: ("x", "0.5", "pruned, the last value"),
}
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "open",
}


def write_report(search: SharedSearch, study: optuna.Study, overrides: Sequence[str]) -> int:
    """Print the best trials, write files, and return the number of trials that have ended.

    The search's folder receives `trials.csv`, `search.png` and `experiment/best.yaml`.
    """
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    order = sorted(done, key=_score, reverse=search.maximize)
    rest = [trial for trial in trials if trial.state != TrialState.COMPLETE]
    write_csv(search, trials)
    importance = parameter_importance(study, done, list(search.options.space))
    print_trials(search, [*order, *rest], importance)
    draw_search(search, trials, order[:1], importance)
    if order:
        write_best(search, order[0], len(trials), overrides)
    log.info("Written: %s", search.folder)
    return sum(trial.state.is_finished() for trial in trials)


def _score(trial: FrozenTrial) -> float:
    return math.nan if trial.value is None else trial.value


def parameter_importance(
    study: optuna.Study, done: Sequence[FrozenTrial], keys: Sequence[str]
) -> dict[str, float]:
    """Return each parameter's importance for good scores (PED-ANOVA); empty with too few trials."""
    varying = [key for key in keys if len({trial.params[key] for trial in done}) > 1]
    if len(done) < ENOUGH_TRIALS or len({trial.value for trial in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, params=varying)


def print_trials(
    search: SharedSearch, trials: Sequence[FrozenTrial], importance: Mapping[str, float]
) -> None:
    """Print the best trials and the importance of the parameters."""
    table, keys = Table(), list(search.options.space)
    names = [key.rpartition(".")[2] for key in keys]
    columns = names if len(set(names)) == len(names) else keys
    for column in ("trial", "status", f"best {search.monitor}", "epochs", *columns, "run"):
        table.add_column(column, justify="left" if column in ("status", "run") else "right")
    for trial in trials[:PRINTED_TRIALS]:
        table.add_row(
            str(trial.number + 1),
            STATES.get(trial.state, ""),
            "" if trial.value is None else f"{trial.value:.4f}",
            str(len(trial.intermediate_values)),
            *(_format_cell(trial.params.get(key, "")) for key in keys),
            Path(trial.user_attrs.get("run", "")).name,
        )
    console = Console()
    console.print(table)
    hidden = f"; the first {PRINTED_TRIALS} are shown" if len(trials) > PRINTED_TRIALS else ""
    console.print(f"{count_states(trials) or 'no trials'}{hidden}", highlight=False)
    shares = ", ".join(f"{key} {weight:.2f}" for key, weight in importance.items())
    unknown = f"given from {ENOUGH_TRIALS} completed trials on"
    console.print(f"Importance: {shares or unknown}", highlight=False)


def _format_cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count_states(trials: Sequence[FrozenTrial]) -> str:
    """Return the number of trials in each state, as text; states without trials are left out."""
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{counts[state]} {name}" for state, name in STATES.items() if counts[state])


def write_csv(search: SharedSearch, trials: Sequence[FrozenTrial]) -> None:
    """Write a row per trial."""
    keys = list(search.options.space)
    with (search.folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "status", search.monitor, "epochs", *keys, "run", "reason"])
        for trial in trials:
            writer.writerow(
                [
                    trial.number + 1,
                    STATES.get(trial.state, ""),
                    trial.value,
                    len(trial.intermediate_values),
                    *(trial.params.get(key) for key in keys),
                    trial.user_attrs.get("run"),
                    trial.user_attrs.get("reason"),
                ]
            )


def write_best(
    search: SharedSearch, best: FrozenTrial, count: int, overrides: Sequence[str]
) -> None:
    """Write the best trial's parameters as an experiment, and print the command that uses it."""
    choices = search.base.choices
    groups = {key: value for key, value in best.params.items() if key in choices}
    defaults: list[Any] = [choices["experiment"]] if "experiment" in choices else []
    defaults += [{f"override /{key}": value} for key, value in groups.items()]
    values: dict[str, Any] = {}
    for key, value in best.params.items():
        if key not in groups:
            *path, name = key.split(".")
            node = values
            for part in path:
                node = node.setdefault(part, {})
            node[name] = value
    text = yaml.safe_dump({"defaults": defaults, **values} if defaults else values, sort_keys=False)
    file = search.folder / "experiment" / "best.yaml"
    file.parent.mkdir(exist_ok=True)
    score = f"{search.monitor}, {_score(best):.4f}"
    write_text(file, f"# @package _global_\n# Best of {count} trials by {score}.\n{text}")
    dropped = ("search", "experiment", "trainer.open_test")
    kept = [override for override in overrides if not override.lstrip("+~").startswith(dropped)]
    program = ["python", "train.py"] if sys.argv[0].endswith(".py") else ["attnseg", "train"]
    command = [*program, "--config-dir", str(search.folder), "experiment=best", *kept]
    log.info("To train the best and open the test set: %s", shlex.join(command))


def draw_search(
    search: SharedSearch,
    trials: Sequence[FrozenTrial],
    best: Sequence[FrozenTrial],  # One trial, or none if none is done.
    importance: Mapping[str, float],
) -> None:
    """Draw scores over trials, validation curves, and scores over each parameter."""
    keys, monitor = list(search.options.space), search.monitor
    count = 2 + len(keys)
    columns = 2 if count == 4 else 3
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows), dpi=100, layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    _draw_scores_by_trial(axes[0], trials, monitor, search.maximize)
    _draw_validation_curves(axes[1], trials, best, monitor)
    for axis, key in zip(axes[2:], keys, strict=False):
        _draw_scores_by_parameter(axis, trials, key)
        axis.set_xlabel(f"{key} (importance {importance[key]:.2f})" if key in importance else key)
        axis.set_ylabel(f"best {monitor}")
    figure.suptitle(f"{search.folder.name}: {count_states(trials)}", fontsize=9)
    figure.savefig(search.folder / "search.png", metadata={"Software": None})


def _ended(trials: Sequence[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == state and trial.value is not None]


def _draw_scores_by_trial(
    axis: Axes, trials: Sequence[FrozenTrial], monitor: str, maximize: bool
) -> None:
    for state, (marker, colour, label) in TRIAL_MARKERS.items():
        if shown := _ended(trials, state):
            numbers = [trial.number + 1 for trial in shown]
            axis.plot(numbers, [_score(t) for t in shown], marker, color=colour, label=label)
    best: list[float] = []
    done = _ended(trials, TrialState.COMPLETE)
    for trial in done:
        best.append((max if maximize else min)([_score(trial), *best[-1:]]))
    if best:
        numbers = [*(trial.number + 1 for trial in done), len(trials)]
        axis.step(numbers, [*best, best[-1]], where="post", color="C1", label="best so far")
    axis.set_xlabel("trial")
    axis.set_ylabel(f"best {monitor}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, framealpha=0.4)


def _draw_validation_curves(
    axis: Axes, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], monitor: str
) -> None:
    for trial in trials:
        curve = sorted(trial.intermediate_values.items())
        pruned = trial.state == TrialState.PRUNED
        colour, style = ("0.7", "--") if pruned else ("C0", "-")
        steps = [epoch for epoch, _ in curve]
        axis.plot(steps, [v for _, v in curve], style, color=colour, linewidth=0.8)
        if pruned and curve:
            axis.plot(*curve[-1], "x", color="0.5")
    for trial in best:
        curve = sorted(trial.intermediate_values.items())
        label = f"trial {trial.number + 1}, the best"
        axis.plot([e for e, _ in curve], [v for _, v in curve], color="C1", label=label)
        axis.legend(fontsize=8, framealpha=0.4)
    axis.set_xlabel("epoch")
    axis.set_ylabel(monitor)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_scores_by_parameter(axis: Axes, trials: Sequence[FrozenTrial], key: str) -> None:
    categorical = False
    for state, (marker, colour, _) in TRIAL_MARKERS.items():
        shown = [trial for trial in _ended(trials, state) if key in trial.params]
        if not shown:
            continue
        distributions = [trial.distributions[key] for trial in shown]
        categorical |= any(isinstance(one, CategoricalDistribution) for one in distributions)
        values = [str(t.params[key]) if categorical else t.params[key] for t in shown]
        heights = [_score(trial) for trial in shown]
        axis.plot(values, heights, marker, color=colour, clip_on=False)
        for one in distributions[:1]:
            if isinstance(one, FloatDistribution | IntDistribution):
                if one.log:
                    axis.set_xscale("log")
                axis.set_xlim(one.low, one.high)
