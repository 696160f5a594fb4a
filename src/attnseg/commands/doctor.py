"""Examines this machine and installation, and says what to do about each problem.

attnseg doctor
attnseg doctor format=json > machine.json
attnseg doctor paths.outputs=DIR
"""

from typing import Literal

from attnseg.commands.command import Command
from attnseg.config.nodes import CommandOptions
from attnseg.config.training import Paths
from attnseg.doctor.examine import examine


class Doctor(CommandOptions):
    """Options of `attnseg doctor`.

    Attributes:
        format: a table, or a JSON list for programs.
        paths: the folders that commands write to.
    """

    format: Literal["table", "json"]
    paths: Paths


def run(options: Doctor) -> None:
    """Print what was found, and exit with the code of the worst problem."""
    folders = {f"paths.{name}": folder for name, folder in options.paths.model_dump().items()}
    if code := examine(folders, options.format == "json"):
        raise SystemExit(code)


COMMAND = Command("doctor", __doc__, Doctor, run)
