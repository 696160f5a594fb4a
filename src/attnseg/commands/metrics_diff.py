"""Shows how the same predictions of a run score under several metric profiles.

attnseg metrics_diff run=DIR profiles=strict,transunet,monai
"""

import re

from attnseg.commands.command import Command
from attnseg.evaluation.options import Evaluate


def run(options: Evaluate) -> None:
    """Compare the profiles."""
    from attnseg.evaluation.compare_profiles import metrics_diff

    metrics_diff(options)


def as_profile(words: list[str]) -> list[str]:
    """Let `profiles=` stand for `profile=`."""
    return [re.sub("^profiles=", "profile=", word) for word in words]


COMMAND = Command("metrics_diff", __doc__, Evaluate, run, config="evaluate", translate=as_profile)
