"""Shows how the same predictions of a run score under several metric profiles.

attnseg metrics_diff run=DIR profiles=strict,transunet,monai
"""

import re

from attnseg.commands.command import Command, deferred
from attnseg.evaluation.options import Evaluate


def as_profile(arguments: list[str]) -> list[str]:
    """Let `profiles=` stand for `profile=`."""
    return [re.sub("^profiles=", "profile=", argument) for argument in arguments]


COMMAND = Command(
    "metrics_diff", __doc__, Evaluate, deferred("attnseg.evaluation.compare_profiles:metrics_diff"),
    config="evaluate", translate=as_profile,
)  # fmt: skip
