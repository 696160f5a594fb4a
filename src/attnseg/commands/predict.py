"""Segments images; masks come back in their size, place, orientation and kind of file.

attnseg predict run=DIR input=PATH output=DIR
attnseg predict study=outputs/uw_madison/setr/kv input=PATH output=DIR flips=[h]
"""

from attnseg.commands.command import Command, deferred
from attnseg.config.prediction import Predict

COMMAND = Command(
    "predict", __doc__, Predict, deferred("attnseg.runs.predictors:predict_as_configured")
)
