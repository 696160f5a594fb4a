"""What a search has found: a table, the importance of the parameters, plots, the best one."""

import csv
import logging
import math
import shlex
import sys
import warnings
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

log = logging.getLogger(__name__)
SHOWN = 10  # trials in the printed table
ENOUGH = 10  # completed trials from which importance is more than a guess
MARKS = {
    TrialState.COMPLETE: ("o", "C0", "completed"),
    TrialState.PRUNED: ("x", "0.5", "pruned, the last value"),
}
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "open",
}


def report(
    study: optuna.Study,
    folder: Path,
    choices: Mapping[str, str],
    keys: Sequence[str],
    monitor: str,
    words: Sequence[str],
) -> int:
    """Print and write what there is.

    Args:
        study: of the search.
        folder: for `trials.csv`, `search.png` and `experiment/best.yaml`.
        choices: the name chosen in each group of the configuration.
        keys: what was searched.
        monitor: name of the value that decides.
        words: overrides of the command line.

    Returns:
        How many trials have ended.
    """
    trials = study.get_trials(deepcopy=False)
    up = study.direction == optuna.study.StudyDirection.MAXIMIZE
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    order = sorted(done, key=lambda trial: -_value(trial) if up else _value(trial))
    rest = [trial for trial in trials if trial.state != TrialState.COMPLETE]
    write_csv(folder / "trials.csv", trials, keys, monitor)
    weights = importance(study, done, keys)
    show([*order, *rest], keys, monitor, weights)
    draw(folder / "search.png", trials, order, keys, monitor, weights, up)
    if order:
        write_best(folder, order[0], len(trials), choices, monitor, words)
    log.info("Written: %s", folder)
    return sum(trial.state.is_finished() for trial in trials)


def _value(trial: FrozenTrial) -> float:
    return math.nan if trial.value is None else trial.value


def importance(
    study: optuna.Study, done: Sequence[FrozenTrial], keys: Sequence[str]
) -> dict[str, float]:
    """Return each parameter's share in what makes trials good (PED-ANOVA); empty if unknown."""
    varying = [key for key in keys if len({trial.params[key] for trial in done}) > 1]
    if len(done) < ENOUGH or len({trial.value for trial in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, params=varying)


def show(
    trials: Sequence[FrozenTrial],
    keys: Sequence[str],
    monitor: str,
    weights: Mapping[str, float],
) -> None:
    """Print the best trials and, if known, the importance of the parameters."""
    table = Table()
    names = [key.rpartition(".")[2] for key in keys]
    named = names if len(set(names)) == len(names) else keys
    for column in ("trial", "status", f"best {monitor}", "epochs", *named, "run"):
        table.add_column(column, justify="left" if column in ("status", "run") else "right")
    for trial in trials[:SHOWN]:
        table.add_row(
            str(trial.number + 1),
            STATES.get(trial.state, ""),
            "" if trial.value is None else f"{trial.value:.4f}",
            str(len(trial.intermediate_values)),
            *(_short(trial.params.get(key, "")) for key in keys),
            Path(trial.user_attrs.get("run", "")).name,
        )
    console = Console()
    console.print(table)
    counts = [sum(trial.state == state for trial in trials) for state in STATES]
    said = [f"{n} {name}" for n, name in zip(counts, STATES.values(), strict=True) if n]
    hidden = f"; the first {SHOWN} are shown" if len(trials) > SHOWN else ""
    console.print(f"{', '.join(said) or 'no trials'}{hidden}", highlight=False)
    shares = ", ".join(f"{key} {weight:.2f}" for key, weight in weights.items())
    unknown = f"given from {ENOUGH} completed trials on"
    console.print(f"Importance: {shares or unknown}", highlight=False)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, trials: Sequence[FrozenTrial], keys: Sequence[str], monitor: str) -> None:
    """Write a row per trial."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "status", monitor, "epochs", *keys, "run", "reason"])
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
    folder: Path,
    best: FrozenTrial,
    count: int,
    choices: Mapping[str, str],
    monitor: str,
    words: Sequence[str],
) -> None:
    """Write the best trial's parameters as an experiment, and print the command that uses it."""
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
    file = folder / "experiment" / "best.yaml"
    file.parent.mkdir(exist_ok=True)
    head = f"# @package _global_\n# Best of {count} trials by {monitor}, {_value(best):.4f}.\n"
    write_text(file, head + text)
    own = ("search", "experiment", "trainer.open_test")
    kept = [word for word in words if not word.lstrip("+~").startswith(own)]
    program = ["python", "train.py"] if sys.argv[0].endswith(".py") else ["attnseg", "train"]
    command = [*program, "--config-dir", str(folder), "experiment=best", *kept]
    log.info("To train the best and open the test set: %s", shlex.join(command))


def draw(
    path: Path,
    trials: Sequence[FrozenTrial],
    order: Sequence[FrozenTrial],
    keys: Sequence[str],
    monitor: str,
    weights: Mapping[str, float],
    up: bool,
) -> None:
    """Draw values over trials, curves over epochs, and values over each parameter."""
    count = 2 + len(keys)
    columns = 2 if count == 4 else 3
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows), dpi=100, layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    _draw_history(axes[0], trials, monitor, up)
    _draw_curves(axes[1], trials, order, monitor)
    for axis, key in zip(axes[2:], keys, strict=False):
        _draw_parameter(axis, trials, key)
        axis.set_xlabel(f"{key} (importance {weights[key]:.2f})" if key in weights else key)
        axis.set_ylabel(f"best {monitor}")
    counts = ", ".join(
        f"{sum(trial.state == state for trial in trials)} {name}"
        for state, name in STATES.items()
        if any(trial.state == state for trial in trials)
    )
    figure.suptitle(f"{path.parent.name}: {counts}", fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def _ended(trials: Sequence[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == state and trial.value is not None]


def _draw_history(axis: Axes, trials: Sequence[FrozenTrial], monitor: str, up: bool) -> None:
    for state, (marker, colour, label) in MARKS.items():
        if shown := _ended(trials, state):
            numbers = [trial.number + 1 for trial in shown]
            axis.plot(numbers, [_value(t) for t in shown], marker, color=colour, label=label)
    best: list[float] = []
    done = _ended(trials, TrialState.COMPLETE)
    for trial in done:
        best.append((max if up else min)([_value(trial), *best[-1:]]))
    if best:
        numbers = [*(trial.number + 1 for trial in done), len(trials)]
        axis.step(numbers, [*best, best[-1]], where="post", color="C1", label="best so far")
    axis.set_xlabel("trial")
    axis.set_ylabel(f"best {monitor}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, framealpha=0.4)


def _draw_curves(
    axis: Axes, trials: Sequence[FrozenTrial], order: Sequence[FrozenTrial], monitor: str
) -> None:
    for trial in trials:
        curve = sorted(trial.intermediate_values.items())
        pruned = trial.state == TrialState.PRUNED
        colour, style = ("0.7", "--") if pruned else ("C0", "-")
        steps = [epoch for epoch, _ in curve]
        axis.plot(steps, [v for _, v in curve], style, color=colour, linewidth=0.8)
        if pruned and curve:
            axis.plot(*curve[-1], "x", color="0.5")
    if order:
        curve = sorted(order[0].intermediate_values.items())
        label = f"trial {order[0].number + 1}, the best"
        axis.plot([e for e, _ in curve], [v for _, v in curve], color="C1", label=label)
        axis.legend(fontsize=8, framealpha=0.4)
    axis.set_xlabel("epoch")
    axis.set_ylabel(monitor)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_parameter(axis: Axes, trials: Sequence[FrozenTrial], key: str) -> None:
    categorical = False
    for state, (marker, colour, _) in MARKS.items():
        shown = [trial for trial in _ended(trials, state) if key in trial.params]
        if not shown:
            continue
        drawn = [trial.distributions[key] for trial in shown]
        categorical |= any(isinstance(one, CategoricalDistribution) for one in drawn)
        values = [str(t.params[key]) if categorical else t.params[key] for t in shown]
        heights = [_value(trial) for trial in shown]
        axis.plot(values, heights, marker, color=colour, clip_on=False)
        for one in drawn[:1]:
            if isinstance(one, FloatDistribution | IntDistribution):
                if one.log:
                    axis.set_xscale("log")
                axis.set_xlim(one.low, one.high)
