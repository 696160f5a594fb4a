"""Scores a finished run, or a folder of masks, under one metric profile or several.

attnseg evaluate run=DIR profile=strict,transunet
attnseg evaluate pred=DIR truth=DIR
attnseg metrics_diff run=DIR profiles=strict,transunet,monai
"""

from attnseg.commands.command import Command, deferred
from attnseg.evaluation.options import Evaluate

COMMAND = Command("evaluate", __doc__, Evaluate, deferred("attnseg.evaluation.evaluate:evaluate"))
