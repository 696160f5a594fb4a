"""Trains a segmentation model, validates it every epoch, and tests it once on unseen patients.

attnseg train --cfg job          show the configuration and leave
attnseg train -m attn=qkv,kv     one run for each value
attnseg train --hydra-help       more about the command line
"""

from attnseg.commands.command import Command, Invocation, deferred
from attnseg.config.training import Config


def run(options: Config, invocation: Invocation) -> None:
    """Train as configured."""
    deferred("attnseg.training.train:train")(options, invocation.on_folder)


COMMAND = Command("train", __doc__, Config, run_invocation=run)
