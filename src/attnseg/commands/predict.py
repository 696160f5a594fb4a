"""Segments images; masks come back in their size, place, orientation and kind of file.

attnseg predict run=DIR input=PATH output=DIR
attnseg predict study=outputs/uw_madison/setr/kv input=PATH output=DIR flips=[h]
"""

from attnseg.commands.command import Command
from attnseg.config.prediction import Predict


def run(options: Predict) -> None:
    """Segment as configured."""
    from attnseg.runs.predictors import predict_as_configured

    predict_as_configured(options)


COMMAND = Command("predict", __doc__, Predict, run)
