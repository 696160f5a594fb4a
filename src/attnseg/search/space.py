"""The space of a search in Optuna's terms: drawing of parameters, sampler and pruner."""

import hashlib
import json

import optuna

from attnseg.search.options import Choices, Search


def draw_parameters(options: Search, trial: optuna.Trial) -> optuna.Trial:
    """Draw a trial's parameters; Optuna returns those that were drawn before unchanged."""
    for key, node in options.space.items():
        if isinstance(node, Choices):
            trial.suggest_categorical(key, node.choices)
        elif isinstance(node.low, int) and isinstance(node.high, int):
            step = 1 if node.step is None else int(node.step)
            trial.suggest_int(key, node.low, node.high, step=step, log=node.log)
        else:
            trial.suggest_float(key, node.low, node.high, step=node.step, log=node.log)
    return trial


def make_sampler(options: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a trial, seeded by the search's seed and the trial's number."""
    digest = hashlib.sha256(f"{options.seed}:{number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    if options.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(n_startup_trials=options.startup, seed=seed)


def make_pruner(options: Search) -> optuna.pruners.BasePruner:
    """Return the pruner, which ends trials whose validation curve lags behind."""
    if options.pruner == "median":
        return optuna.pruners.MedianPruner(options.startup, options.warmup + 1)
    if options.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=options.warmup + 1, bootstrap_count=options.startup
        )
    return optuna.pruners.NopPruner()


def format_value(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, str):
        return value if value.replace("_", "").isalnum() else f"'{value}'"
    return json.dumps(value)
