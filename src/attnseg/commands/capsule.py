"""Packs a finished run as one file that can be verified and predicts without torch.

attnseg capsule run=DIR output=FILE.zip
"""

from attnseg.commands.command import Command, deferred
from attnseg.export.options import Capsule

COMMAND = Command("capsule", __doc__, Capsule, deferred("attnseg.export.capsule:pack_run"))
