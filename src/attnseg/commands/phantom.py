"""Makes a dataset's phantom, at dataset.root if that is given.

attnseg phantom dataset=synapse phantom_size=tiny
"""

from attnseg.commands.command import Command
from attnseg.config.training import Config


def run(options: Config) -> None:
    """Make the phantom and print its path."""
    from attnseg.preparation.datasets import make_phantom

    print(make_phantom(options))


def without_root(arguments: list[str]) -> list[str]:
    """Leave the dataset's root open where none is given: the phantom has a folder of its own."""
    given = any(argument.startswith("dataset.root=") for argument in arguments)
    return arguments if given else [*arguments, "dataset.root=null"]


COMMAND = Command("phantom", __doc__, Config, run, config="train", translate=without_root)
