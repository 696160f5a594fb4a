"""Packs a finished run as one file that can be verified and predicts without torch.

attnseg capsule run=DIR output=FILE.zip
"""

from attnseg.commands.command import Command
from attnseg.export.options import Capsule


def run(options: Capsule) -> None:
    """Pack a capsule."""
    from attnseg.export.capsule import pack_run

    pack_run(options)


COMMAND = Command("capsule", __doc__, Capsule, run)
