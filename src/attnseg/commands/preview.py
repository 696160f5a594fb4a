"""Draws what the network sees of a dataset, augmented.

attnseg preview dataset=uw_madison dataset.root=DIR augment=strong
"""

from attnseg.commands.command import Command
from attnseg.config.training import Config


def run(options: Config) -> None:
    """Draw a contact sheet and print its path."""
    from attnseg.preparation.preview import draw_contact_sheet

    print(draw_contact_sheet(options))


COMMAND = Command("preview", __doc__, Config, run, config="train")
