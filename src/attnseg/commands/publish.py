"""Publishes a capsule in a folder or on the Hugging Face Hub.

attnseg publish capsule=FILE.zip to=hf://owner/name
"""

from attnseg.commands.command import Command
from attnseg.config.nodes import CommandOptions, Folder


class Publish(CommandOptions):
    """The capsule that is published, and where."""

    capsule: Folder
    to: Folder


def run(options: Publish) -> None:
    """Publish a capsule."""
    from attnseg.prediction.hub import publish_capsule

    publish_capsule(options.capsule, options.to)


COMMAND = Command("publish", __doc__, Publish, run)
