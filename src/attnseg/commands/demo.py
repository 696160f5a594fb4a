"""Trains on generated scans and draws a prediction: in a minute, or better in four.

attnseg demo                  TransUNet, two epochs
attnseg demo full=true        SETR, 15 epochs: what the README shows
attnseg demo attn=qkv         another attention; `attnseg train --help` lists all options
"""

import logging

from attnseg.commands.command import Command, Invocation, deferred
from attnseg.config.training import Config
from attnseg.runs.run_folder import RunFolder

QUICK, FULL = "demo_quick", "demo"  # in configs/experiment
log = logging.getLogger(__name__)


def run(options: Config, invocation: Invocation) -> None:
    """Announce the demo, train, and name the picture and the next command."""
    quick = options.choices["experiment"] == QUICK
    log.info(
        "One-minute demo; `attnseg demo full=true` trains for four minutes."
        if quick
        else "Four-minute demo; `attnseg demo` takes one minute."
    )
    log.info(
        "It generates scans in %s/, trains on some patients, is tested once on others, and writes "
        "to %s/. Nothing is downloaded.",
        options.paths.data,
        options.paths.outputs,
    )
    train = deferred("attnseg.training.train:train")
    folder = RunFolder(train(options, invocation.on_folder))
    log.info("Picture of the median test case: %s", folder.previews / "median.png")
    log.info("Next: attnseg %s", "demo full=true" if quick else f"explain run={folder}")
    log.info("Your own data: attnseg prepare dataset=nnunet dataset.root=DIR")


def as_training(arguments: list[str]) -> list[str]:
    """Replace `full=true` by the experiment of the full demo, and its absence by the quick one."""
    full = "full=true" in arguments
    others = [argument for argument in arguments if argument not in ("full=true", "full=false")]
    return [f"experiment={FULL if full else QUICK}", *others]


COMMAND = Command(
    "demo", __doc__, Config, run_invocation=run, config="train", translate=as_training,
    conveniences=("full=true",),
)  # fmt: skip
