"""Builds the documentation site: `python -m scripts.build_site [FOLDER]`, by default `dist/site`.

The pages are those of `docs/`, the README and other pages at the top of the project, the reference,
which `scripts/reference.py` writes, and the files of code that pages link to. `docs/site.yaml` has
their order. A warning is an error. The site needs no other server, not even for fonts.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import yaml

from scripts.reference import write_pages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOP = ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")  # pages of GitHub's places
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[\w-]+)?\))")
RANGE = re.compile(r"\((\S+) to (\S+)\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml"}


def gather_pages(folder: Path) -> None:
    """Write all pages into a folder."""
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("*.yaml"))
    write_pages(folder / "reference")
    (folder / "project").mkdir()
    for name in TOP:
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        place = folder / "project" / f"{name.lower().replace('readme', 'overview')}.md"
        place.write_text(text, encoding="utf-8")
        _link_from(place, folder, ROOT / f"{name}.md")
    for place in [*folder.rglob("*.md")]:
        if place.parent.name not in ("project", "reference"):
            _link_from(place, folder, DOCS / place.relative_to(folder))
            _keep_ranges(place)


def _keep_ranges(place: Path) -> None:
    """Let no range such as (1.08 to 1.21) be broken in the narrow columns of a page's tables."""
    lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = (RANGE.sub("(\\1\u00a0to\u00a0\\2)", s) if s.startswith("|") else s for s in lines)
    place.write_text("".join(kept), encoding="utf-8")


def _link_from(place: Path, folder: Path, source: Path) -> None:
    """Let the links of a page, which fit its place in the project, fit its place on the site."""

    def move(match: re.Match[str]) -> str:
        linked = Path(os.path.normpath(source.parent / match[2]))
        target = _place_of(linked, folder)
        return f"{match[1]}{os.path.relpath(target, place.parent)}{match[3]}"

    text = place.read_text(encoding="utf-8")
    place.write_text(LINK.sub(move, text), encoding="utf-8")


def _place_of(linked: Path, folder: Path) -> Path:
    """Return the place on the site of a file of the project; code gets a page of its own."""
    if linked.is_relative_to(DOCS):
        return folder / linked.relative_to(DOCS)
    if linked.parent == ROOT and linked.stem in TOP:
        return folder / "project" / f"{linked.stem.lower().replace('readme', 'overview')}.md"
    own = linked.relative_to(ROOT)
    notebook = linked.suffix == ".ipynb"
    page = folder / f"{own.with_suffix('')}.md" if notebook else folder / "source" / f"{own}.md"
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        text = linked.read_text(encoding="utf-8")
        code = f"# {own}\n\n{_as_block(text, LANGUAGES.get(linked.suffix, 'text'))}"
        page.write_text(_read_notebook(text) if notebook else code, encoding="utf-8")
    return page


def _read_notebook(text: str) -> str:
    """Return a notebook as Markdown."""
    cells = json.loads(text)["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(_as_block(s, "python") if kind == "code" else s for kind, s in sources)


def _as_block(code: str, language: str) -> str:
    return f"````{language}\n{code}\n````\n"


def list_navigation(part: list[Any], folder: Path, listed: Set[str]) -> Iterator[Any]:
    """Yield the entries of a part of the navigation.

    `FOLDER/*` stands for all pages of a folder but those that are listed somewhere.
    """
    for entry in part:
        if isinstance(entry, str) and entry.endswith("/*"):
            pages = sorted((folder / entry).parent.glob("*.md"))
            names = [str(page.relative_to(folder)) for page in pages]
            yield from ({Path(name).stem: name} for name in names if name not in listed)
        elif isinstance(entry, dict):
            ((title, inner),) = entry.items()
            if isinstance(inner, list):
                inner = list(list_navigation(inner, folder, listed))
            yield {title: inner}
        else:
            yield entry


def build_site(target: Path) -> int:
    """Build the site; return the number of its pages."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        gather_pages(work / "docs")
        config = yaml.safe_load((DOCS / "site.yaml").read_text(encoding="utf-8"))
        listed = set(re.findall(r"[\w/]+\.md", json.dumps(config["nav"])))
        config["nav"] = list(list_navigation(config["nav"], work / "docs", listed))
        # JSON is YAML, too.
        (work / "mkdocs.yml").write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=work, env=os.environ | {"NO_COLOR": "1"})
        if done.returncode:
            sys.exit(done.returncode)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(work / "site", target)
    return sum(1 for _ in target.rglob("*.html"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist" / "site")
    built = parser.parse_args().folder
    if built.exists() and not (built / "sitemap.xml").exists() and any(built.iterdir()):
        parser.error(f"{built} holds something else than a site")
    print(f"{build_site(built)} pages: {built / 'index.html'}")
