"""Lists all runs: done, training, cut off, stopped, failed.

attnseg status
attnseg status paths.outputs=DIR
"""

from pathlib import Path

from pydantic import BaseModel

from attnseg.commands.command import Command


class Outputs(BaseModel):
    """The folder that holds all runs."""

    outputs: str


def run(options: Outputs) -> None:
    """Print the state of every run."""
    from attnseg.runs.status import print_status

    print_status(Path(options.outputs))


COMMAND = Command("status", __doc__, Outputs, run, config="train", part="paths")
