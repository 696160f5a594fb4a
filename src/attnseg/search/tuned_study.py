"""A study with equal tuning: the same search for each variant, then the winners are compared.

Variants whose options were tuned with different effort differ in the effort, too. Here each variant
has the same space, sampler, seed of the sampler and number of trials; the best trial of each is
trained anew with every seed, and only these runs open the test set.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from attnseg.config.training import Config, Study
from attnseg.errors import ConfigError, InUseError
from attnseg.files import write_text
from attnseg.processes.fork import run_in_child
from attnseg.progress import format_seconds
from attnseg.runs.run_folder import RunFolder
from attnseg.search.options import Search, TunedStudy
from attnseg.search.search import continue_search, count_ended, open_search
from attnseg.search.shared_search import Compose, SharedSearch
from attnseg.search.trial import trial_overrides
from attnseg.training.train import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuningCost:
    """What the tuning of one variant has cost, and its winner."""

    variant: str
    trials: int
    pruned: int
    failed: int
    epochs: int  # over all trials
    seconds: float  # over all runs of trials
    best: float  # validation score of the winner
    winner: str  # its options


Compare = Callable[[Sequence[str], Study, Path, Sequence[str]], object]


@dataclass(frozen=True)
class TunedVariant:
    """A variant with its search."""

    name: str
    choices: tuple[str, ...]  # overrides that make it
    search: SharedSearch

    def winner_file(self, seed: int) -> Path:
        """The file with the folder of the winner's run of a seed; there once it is trained."""
        return self.search.folder / f"winner-seed-{seed}"


def run_tuned_study(
    options: Search,
    study: TunedStudy,
    compose_trial: Compose,
    compose_winner: Compose,
    overrides: Sequence[str],
    report_error: Callable[[Exception], int],
    compare: Compare,
) -> int:
    """Search for each variant, train the winners, compare them; return the exit code.

    Repeated, the command goes on; several processes share the work. `compare` is `compare_study`.
    For the other arguments, see `run_search`; `compose_winner` leaves the test set to be opened.
    """
    variants = open_variants(options, study, compose_trial, overrides, report_error)
    for variant in variants:
        if code := continue_search(variant.search, [*overrides, *variant.choices]):
            return code
    ended = [count_ended(variant.search.open_study()) for variant in variants]
    if options.report or min(ended) < options.trials:
        return 0
    for variant, seed in product(variants, study.seeds):
        code = run_in_child(
            partial(train_winner, variant, seed, study.compare, compose_winner, report_error)
        )
        if code:
            return abs(code)
    winners = [variant.winner_file(seed) for variant, seed in product(variants, study.seeds)]
    if missing := sum(not winner.is_file() for winner in winners):
        log.info("%d of %d winners are trained by other processes", missing, len(winners))
        return 0
    costs = [sum_costs(variant) for variant in variants]
    print_costs(costs)
    outputs = variants[0].search.base.paths.outputs
    folder = Path(outputs, "comparisons", options.name or "tuned")
    runs = [winner.read_text() for winner in winners]
    compare(runs, study.compare, folder, write_cost_notes(costs))
    pd.DataFrame(costs).to_csv(folder / "tuning.csv", index=False, lineterminator="\n")
    return 0


def open_variants(
    options: Search,
    study: TunedStudy,
    compose: Compose,
    overrides: Sequence[str],
    report_error: Callable[[Exception], int],
) -> list[TunedVariant]:
    """Return the variants with their searches, which differ in the variants' choices alone.

    Raises:
        ConfigError: a key of the variants is searched or set, too, or another comparison is set.
    """
    if compose(()).compare is not None:
        raise ConfigError("compare: the study declares its own; use search.study.compare instead")
    overridden = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for key in study.variants:
        for place, keys in (("in search.space", options.space), ("set", overridden)):
            if key in keys:
                raise ConfigError(
                    f"{key}: {place}, and in search.study.variants; leave it out of one of them"
                )
    variants = []
    for values in product(*study.variants.values()):
        choices = tuple(f"{key}={value}" for key, value in zip(study.variants, values, strict=True))
        name = "-".join(values)
        own = {"name": f"{options.name}-{name}" if options.name else None}

        def compose_variant(more: Sequence[str], choices: Sequence[str] = choices) -> Config:
            return compose([*choices, *more])

        search = open_search(
            options.model_copy(update=own), compose_variant, [*overrides, *choices], report_error
        )
        variants.append(TunedVariant(name, choices, search))
    return variants


def train_winner(
    variant: TunedVariant,
    seed: int,
    declared: Study,
    compose: Compose,
    report_error: Callable[[Exception], int],
) -> int:
    """Train a variant's best trial with a seed, in this process; return the exit code.

    The run records the comparison that is declared, as those of a sweep do.
    """
    best = trial_overrides(best_trial(variant))
    log.info("== Winner of %s, seed %d: %s", variant.name, seed, " ".join(best))
    try:
        config = compose([*variant.choices, *best, f"seed={seed}"])
        folder = train(config.model_copy(update={"compare": declared}))
    except InUseError as error:
        log.info("In another process: %s", str(error).partition(";")[0])
        return 0
    except Exception as error:
        return report_error(error)
    write_text(variant.winner_file(seed), str(folder))
    return 0


def best_trial(variant: TunedVariant) -> optuna.trial.FrozenTrial:
    """Return a variant's best trial.

    Raises:
        ConfigError: no trial was completed.
    """
    try:
        return variant.search.open_study().best_trial
    except ValueError as error:
        raise ConfigError(
            f"search.study: no trial of {variant.name} was completed; widen or mend search.space"
        ) from error


def sum_costs(variant: TunedVariant) -> TuningCost:
    """Add up what a variant's search has cost."""
    search, trials = variant.search, variant.search.open_study().get_trials(deepcopy=False)
    names = {trial.user_attrs["run"] for trial in trials if "run" in trial.user_attrs}
    runs = [RunFolder(Path(search.base.paths.outputs, name)) for name in names]
    states = [trial.state for trial in trials]
    best = best_trial(variant)
    return TuningCost(
        variant.name,
        trials=len(trials),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        epochs=sum(len(trial.intermediate_values) for trial in trials),
        seconds=sum(run.facts.seconds.get("total", 0.0) for run in runs if run.exists),
        best=math.nan if best.value is None else best.value,
        winner=" ".join(trial_overrides(best)),
    )


def print_costs(costs: Sequence[TuningCost]) -> None:
    """Print a row for each variant."""
    table = Table(title="Tuning", title_justify="left")
    for column in ("variant", "trials", "pruned", "failed", "epochs", "time", "best", "winner"):
        table.add_column(column, justify="left" if column in ("variant", "winner") else "right")
    for cost in costs:
        counts = map(str, (cost.trials, cost.pruned, cost.failed, cost.epochs))
        score = f"{cost.best:.4f}"
        table.add_row(cost.variant, *counts, format_seconds(cost.seconds), score, cost.winner)
    Console().print(table)


def write_cost_notes(costs: Sequence[TuningCost]) -> list[str]:
    """Return sentences on the tuning for the notes of the comparison."""
    total = sum(cost.seconds for cost in costs)
    notes = [
        f"Each variant was tuned by {costs[0].trials} trials of the same space; the winners were "
        f"trained anew. The tuning took {format_seconds(total)} of training in all."
    ]
    return notes + [
        f"Tuning of {c.variant}: {c.epochs} epochs, {c.pruned} trials pruned, {c.failed} failed, "
        f"{format_seconds(c.seconds)}; winner {c.winner}."
        for c in costs
    ]
