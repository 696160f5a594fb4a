"""Decodes, checks and describes a dataset, and lists all that is wrong with it.

attnseg prepare dataset=uw_madison dataset.root=DIR
"""

from attnseg.commands.command import Command, deferred
from attnseg.config.training import Config

COMMAND = Command(
    "prepare",
    __doc__,
    Config,
    deferred("attnseg.preparation.prepare:prepare_dataset"),
    config="train",
)
