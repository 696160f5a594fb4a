"""Searches options for the best validation score, by many trials; processes may share them.

attnseg search experiment=demo search=optimizer search.trials=30
attnseg search experiment=demo search=tuned_attention search.trials=12
attnseg search experiment=demo 'search.space={optimizer.lr:{low:1e-4,high:1e-2,log:true},attn:{choices:[qkv,kv]}}'
"""  # noqa: E501

from collections.abc import Sequence

from attnseg.commands.command import Command, Invocation, deferred
from attnseg.config.training import Config, parse_config
from attnseg.errors import require
from attnseg.search.options import Search


def run(options: Search, invocation: Invocation) -> None:
    """Search as configured; exit with the code of a trial that ends the search."""
    require("search", "search", "optuna")

    def compose_training(more: Sequence[str]) -> Config:
        raw = invocation.compose([*invocation.overrides, *more])
        return parse_config({key: value for key, value in raw.items() if key != "search"})

    def compose_trial(more: Sequence[str]) -> Config:
        return compose_training(["trainer.open_test=false", *more])

    overrides = list(invocation.overrides)
    if options.study is None:
        run_search = deferred("attnseg.search.search:run_search")
        code = run_search(options, compose_trial, overrides, invocation.report)
    else:
        run_study = deferred("attnseg.search.tuned_study:run_tuned_study")
        compare = deferred("attnseg.study.compare:compare_study")
        composers = (compose_trial, compose_training)
        code = run_study(options, options.study, *composers, overrides, invocation.report, compare)
    if code:
        raise SystemExit(code)


COMMAND = Command("search", __doc__, Search, run_invocation=run, part="search")
