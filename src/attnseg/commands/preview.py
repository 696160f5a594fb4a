"""Draws what the network sees of a dataset, augmented.

attnseg preview dataset=uw_madison dataset.root=DIR augment=strong
"""

from attnseg.commands.command import Command, deferred
from attnseg.config.training import Config


def run(options: Config) -> None:
    """Draw a contact sheet and print its path."""
    print(deferred("attnseg.preparation.preview:draw_contact_sheet")(options))


COMMAND = Command("preview", __doc__, Config, run, config="train")
