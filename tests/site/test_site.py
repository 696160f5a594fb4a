"""The documentation site is built without a warning, and no link or block is broken."""

import ast
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from scripts import build_site
from tests.browser.chromium import PROGRAM, Chromium

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]
OUTSIDE = ("http:", "https:", "mailto:")
CHECKS = {"python": ast.parse, "yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}

# What of a page ends outside of the screen, and of everything on the way there that scrolls.
CUT = """(() => {
    const wide = document.documentElement.clientWidth, found = [];
    if (document.documentElement.scrollWidth > wide) found.push('the page scrolls sideways');
    const parts = '.md-content :is(table, pre, img, p, li, h1, h2, h3)';
    for (const part of document.querySelectorAll(parts)) {
        let right = part.getBoundingClientRect().right;
        for (let node = part.parentElement; node; node = node.parentElement) {
            const edge = node.getBoundingClientRect().right;
            const flow = getComputedStyle(node).overflowX;
            if (flow === 'auto' || flow === 'scroll') right = Math.min(right, edge);
            else if (flow !== 'visible' && right > edge + 1) right = Infinity;
        }
        if (right > wide + 1) found.push(`${part.tagName}: ${part.textContent.slice(0, 40)}`);
    }
    return found;
})()"""


class Page(HTMLParser):
    """Links, identifiers, and what a browser loads for a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.names, self.loaded = set(), {""}, set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.names |= {own[key] for key in ("id", "name") if own.get(key)}
        if tag == "a" and own.get("href"):
            self.links.add(own["href"])
        if own.get("src"):
            self.loaded.add(own["src"])
        if tag == "link" and own.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(own["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    build_site.build_site(folder)  # ends the process at a warning
    return folder


def broken(site):
    """Links and loaded files that lead nowhere, and whatever is loaded from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links begin at the top of a server
        for address in page.links | page.loaded:
            parts = urlsplit(address)
            if address.startswith(OUTSIDE):
                if address in page.loaded:
                    yield f"{path.name}: loads {address}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if parts.scheme == "data" or parts.scheme == "javascript":
                continue
            if not target.is_file():
                yield f"{path.relative_to(site)}: {address}"
            elif target in pages and unquote(parts.fragment) not in pages[target].names:
                yield f"{path.relative_to(site)}: no {parts.fragment} in {target.name}"


def test_no_link_is_broken_and_nothing_comes_from_elsewhere(site):
    assert len(list(site.rglob("*.html"))) > 80
    assert list(broken(site)) == []


@pytest.mark.browser
@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")
def test_nothing_is_cut_on_a_phone_or_a_desktop(site):
    browser, cut, scrolled = Chromium(), {}, 0
    try:
        for width in (390, 1280):
            for path in sorted(site.rglob("*.html")):
                browser.open(path, width)
                if found := browser.ask(CUT):
                    cut[f"{path.relative_to(site)}, {width} pixels"] = found
                tables = "[...document.querySelectorAll('.md-content table')]"
                wide = f"{tables}.filter(t => t.scrollWidth > {width}).length"
                scrolled += browser.ask(wide)
    finally:
        browser.close()
    assert cut == {}
    assert scrolled > 20, "no table was wide enough"


def test_every_page_of_the_documentation_is_in_the_navigation(site):
    config = yaml.safe_load((ROOT / "docs/site.yaml").read_text())
    listed = json.dumps(config["nav"])
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    missing = {page for page in pages if page not in listed and "attentions/" not in page}
    assert not missing, "give each a place in docs/site.yaml"


def test_every_block_of_code_can_be_read():
    wrong = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for kind, text in re.findall(r"(?ms)^```(\w+)\n(.*?)^```", path.read_text()):
            try:
                CHECKS.get(kind, str)(text)
            except Exception as error:
                wrong.append(f"{path.name}: {kind}: {error}")
    assert not wrong
