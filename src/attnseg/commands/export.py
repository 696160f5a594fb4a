"""Exports a finished run for other programs: ONNX, torch.export, safetensors.

attnseg export run=DIR int8=true
"""

from attnseg.commands.command import Command
from attnseg.export.options import Export


def run(options: Export) -> None:
    """Export a run."""
    from attnseg.export.export import export

    export(options)


COMMAND = Command("export", __doc__, Export, run)
