"""Tests a GPU in at most eight minutes: rates, equality, determinism, speed and memory.

attnseg check-gpu
attnseg check-gpu json=gpu.json page=gpu.md
attnseg check-gpu sections=[machine,determinism] budget=120
attnseg check-gpu device=cpu         a rehearsal with tiny networks
"""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat

from attnseg.commands.command import Command
from attnseg.config.errors import nearest
from attnseg.config.nodes import CommandOptions, Folder, Names
from attnseg.errors import ConfigError
from attnseg.files import write_text
from attnseg.progress import loading_note


class CheckGPU(CommandOptions):
    """Options of `attnseg check-gpu`.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal.
        budget: seconds for all sections together.
        sections: names of those to run; none stands for all.
        json_file: file for everything that was found.
        page: file for a page in Markdown.
        folder: for phantoms, run folders and a log; `None` is a temporary one, kept if a section
            fails.
    """

    device: Literal["cuda", "cpu"]
    budget: PositiveFloat
    sections: Names
    json_file: Folder | None = Field(alias="json")
    page: Folder | None
    folder: Folder | None


def run(options: CheckGPU) -> None:
    """Run the sections, and exit with 3 if one fails."""
    with loading_note():
        from attnseg.gpu import acceptance
    known = {section.name: section for section in acceptance.SECTIONS}
    for name in options.sections:
        if name not in known:
            raise ConfigError(f"sections: {name!r} is not allowed; {nearest(name, list(known))}")
    chosen = [known[name] for name in options.sections or known]
    folder = options.folder or tempfile.mkdtemp(prefix="attnseg-check-gpu-")
    Path(folder).mkdir(parents=True, exist_ok=True)
    failed = False
    try:
        report = acceptance.run_acceptance(options.device, folder, options.budget, chosen)
        failed = any(section["problems"] for section in report["sections"])
    finally:
        if not (failed or options.folder):
            shutil.rmtree(folder, ignore_errors=True)
    if options.json_file:
        write_text(Path(options.json_file), acceptance.report_to_json(report))
    if options.page:
        write_text(Path(options.page), acceptance.format_report(report))
    if failed:
        print(f"files: {folder}")
        raise SystemExit(3)


COMMAND = Command("check-gpu", __doc__, CheckGPU, run, config="check_gpu")
