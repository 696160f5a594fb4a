"""Draws where a token of finished runs attends, layer by layer.

attnseg explain run=DIR
attnseg explain runs=[DIR,DIR] case=NAME slice=10 point=[60,40]
"""

from attnseg.commands.command import Command
from attnseg.explain.options import Explain


def run(options: Explain) -> None:
    """Draw attention maps."""
    from attnseg.explain.explain import explain_runs

    explain_runs(options)


COMMAND = Command("explain", __doc__, Explain, run)
