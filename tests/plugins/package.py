"""The package of docs/extending.md, written to a folder and installed without pip."""

import re
import tomllib
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()
BLOCKS = {
    name: text
    for name, text in re.findall(r"(?ms)^```\w+\n# (\S+\.(?:py|yaml|toml))\n(.*?)^```", PAGE)
}


def install_package(folder: Path) -> Path:
    """Write the page's package to a folder, with the metadata that an installer would make of it.

    The folder is to be put on `sys.path` or `PYTHONPATH`.
    """
    for name, text in BLOCKS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "my_attn/__init__.py").touch()
    project = tomllib.loads(BLOCKS["pyproject.toml"])["project"]
    metadata = folder / f"my_attn-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = project["entry-points"]["attnseg.plugins"]
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[attnseg.plugins]", *lines, ""]))
    return folder
