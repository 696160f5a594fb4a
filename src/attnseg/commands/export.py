"""Exports a finished run for other programs: ONNX, torch.export, safetensors.

attnseg export run=DIR int8=true
"""

from attnseg.commands.command import Command, deferred
from attnseg.export.options import Export

COMMAND = Command("export", __doc__, Export, deferred("attnseg.export.export:export"))
