"""Draws where a token of finished runs attends, layer by layer.

attnseg explain run=DIR
attnseg explain runs=[DIR,DIR] case=NAME slice=10 point=[60,40]
"""

from attnseg.commands.command import Command, deferred
from attnseg.explain.options import Explain

COMMAND = Command("explain", __doc__, Explain, deferred("attnseg.explain.explain:explain_runs"))
