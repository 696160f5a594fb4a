"""Exports a finished run for other programs: ONNX, torch.export, safetensors, MONAI.

attnseg export run=DIR int8=true
attnseg export run=DIR formats=monai
"""

from attnseg.commands.command import Command, deferred
from attnseg.export.options import Export

COMMAND = Command("export", __doc__, Export, deferred("attnseg.export.export:export"))
