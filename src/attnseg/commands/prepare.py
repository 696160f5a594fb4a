"""Decodes, checks and describes a dataset, and lists all that is wrong with it.

attnseg prepare dataset=uw_madison dataset.root=DIR
"""

from attnseg.commands.command import Command
from attnseg.config.training import Config


def run(options: Config) -> None:
    """Prepare a dataset."""
    from attnseg.preparation.prepare import prepare_dataset

    prepare_dataset(options)


COMMAND = Command("prepare", __doc__, Config, run, config="train")
