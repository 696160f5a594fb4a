"""Scores a finished run, or a folder of masks, under one metric profile or several.

attnseg evaluate run=DIR profile=strict,transunet
attnseg evaluate pred=DIR truth=DIR
attnseg metrics_diff run=DIR profiles=strict,transunet,monai
"""

from attnseg.commands.command import Command
from attnseg.evaluation.options import Evaluate


def run(options: Evaluate) -> object:
    """Score and return a row per case, class and metric."""
    from attnseg.evaluation.evaluate import evaluate

    return evaluate(options)


COMMAND = Command("evaluate", __doc__, Evaluate, run)
