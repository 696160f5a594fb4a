"""Opens a local page on which a network is tried: drop an image, see its masks, save them.

attnseg view capsule=FILE
attnseg view capsule=FILE,FILE         two networks side by side
attnseg view run=DIR
attnseg view predictions=DIR           what attnseg predict has written
"""

import re
from pathlib import Path

from attnseg.commands.command import Command, deferred
from attnseg.viewer.options import View


def as_list(arguments: list[str]) -> list[str]:
    """Let `capsule=A,B` stand for `capsule=[A,B]`, unless it is the name of one file."""
    return [
        re.sub(r"^capsule=([^\[\]]+,[^\[\]]+)$", r"capsule=[\1]", given)
        if not Path(given.partition("=")[2]).exists()
        else given
        for given in arguments
    ]


COMMAND = Command("view", __doc__, View, deferred("attnseg.viewer.view:view"), translate=as_list)
