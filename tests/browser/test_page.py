"""The comparison's page in a real browser: used by keys, on a phone, without a network."""

import json
import re

import pytest

from attnseg.study.compare import compare_runs
from tests.browser.chromium import PROGRAM, Chromium
from tests.study.folders import add_pictures, make_run
from tests.study.test_page import EVIL, values

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium"),
]
SHOWN = "document.getElementById('case-name').textContent"
LISTED = "[...document.querySelectorAll('#list .case-title')].map(n => n.textContent)"
AT_ONCE = "behavior: 'instant'"
PIXELS = """[...document.querySelectorAll('.pictures canvas')].map(c => {
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let coloured = 0;
    for (let i = 0; i < d.length; i += 4)
        coloured += Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > 24;
    return coloured / (d.length / 4);
})"""


@pytest.fixture(scope="module")
def browser():
    chromium = Chromium()
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of three variants, two seeds and eight cases."""
    root = tmp_path_factory.mktemp("page")
    for at, attn in enumerate(("qkv", "kv", "kv_pos")):
        for seed in (0, 1):
            folder = make_run(root / "runs", attn, values(9 * at + seed), seed=seed)
            add_pictures(folder, shift=2 * at)
    compare_runs([f"{root}/runs/*/*"], outputs=root / "out")
    return root / "out" / "comparison.html"


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    """A page all of whose names are attacks, long ones at that."""
    root = tmp_path_factory.mktemp("evil")
    for attn in ("qkv", "kv"):
        found = {
            (f"p{i}", f"c{i}-{EVIL * 3}", f"{EVIL}{k}"): 0.5 + 0.01 * i
            for i in range(3)
            for k in range(2)
        }
        name = f"{attn}{EVIL * 2}".replace("/", "")
        folder = make_run(root / "runs", attn, {}, config={"model": {"size": name}}, model=name)
        rows = ["split,patient,case,class,metric,value,profile"]
        quoted = [[p, c, k] for p, c, k in found]
        rows += [
            ",".join(
                '"' + cell.replace('"', '""') + '"'
                for cell in ("test", *names, "dice", str(value), "strict")
            )
            for names, value in zip(quoted, found.values(), strict=True)
        ]
        add_pictures_named(folder, found)
        (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    compare_runs([f"{root}/runs/*/*"], outputs=root / "out", by=["model.size"], baseline=name)
    return root / "out" / "comparison.html"


def add_pictures_named(folder, found):
    """Add pictures of cases whose names a line of plain CSV cannot hold."""
    plain = "\n".join(f"test,p,{i},{k},dice,0,strict" for i in range(3) for k in "ab")
    (folder / "cases.csv").write_text(f"split,patient,case,class,metric,value,profile\n{plain}\n")
    add_pictures(folder)
    index = json.loads((folder / "pictures" / "index.json").read_text())
    for entry, name in zip(index["cases"], dict.fromkeys(c for _, c, _ in found), strict=True):
        entry["case"] = name
    index["classes"] = list(dict.fromkeys(k for _, _, k in found))
    (folder / "pictures" / "index.json").write_text(json.dumps(index))


def test_it_runs_without_complaints_and_without_a_network(browser, page):
    browser.open(page)
    assert browser.complaints == []
    assert browser.requests == []
    assert browser.ask("document.querySelectorAll('.pictures canvas').length") == 4
    assert all(share > 0.02 for share in browser.ask(PIXELS))


def test_nothing_foreign_can_be_loaded(browser, page):
    browser.open(page)
    refused = browser.ask(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', "
        "event => done(event.violatedDirective)); "
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'})); })"
    )
    assert refused == "img-src"
    browser.ask("document.body.insertAdjacentHTML('beforeend', '<p style=\"color:red\">')")
    assert browser.ask("getComputedStyle(document.body.lastElementChild).color") != "rgb(255, 0, 0)"
    browser.ask(
        "{ const node = document.createElement('script'); node.textContent = 'window.ran = 1'; "
        "document.body.append(node); }"
    )
    assert browser.ask("window.ran === undefined")


def test_orders(browser, page):
    browser.open(page)
    data = browser.ask("JSON.parse(document.getElementById('data').textContent).cases")

    def listed(order):
        browser.ask(
            f"{{ const order = document.getElementById('order'); order.value = '{order}'; "
            "order.dispatchEvent(new Event('change')); }"
        )
        return browser.ask(LISTED)

    spread, worst = ({c["case"]: c[key] for c in data} for key in ("spread", "worst"))
    assert browser.ask(LISTED) == sorted(spread, key=lambda name: -spread[name])
    assert listed("worst") == sorted(worst, key=worst.get)
    assert listed("name") == [f"p{i}_day0" for i in range(8)]
    assert browser.ask(SHOWN).startswith("p0_day0")


def test_arrow_keys_go_through_the_cases(browser, page):
    browser.open(page)
    names = browser.ask(LISTED)
    browser.ask("document.getElementById('list').focus()")
    shown = []
    keys = ("ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowDown", "Home", "ArrowLeft")
    for key in keys:
        browser.press(key)
        shown.append(names.index(browser.ask(SHOWN).split(",")[0]))
    assert shown == [1, 2, 1, 7, 7, 0, 0]
    selected = "[...document.querySelectorAll('#list [aria-selected=true]')].map(n => n.id)"
    assert browser.ask(selected) == ["case-0"]
    assert browser.ask("document.getElementById('list').getAttribute('aria-activedescendant')") == (
        "case-0"
    )
    browser.ask("document.activeElement.blur()")
    browser.ask(f"scrollTo({{top: 0, {AT_ONCE}}})")
    browser.press("ArrowRight")  # the cases are out of sight
    assert browser.ask(SHOWN).startswith(names[0])
    browser.ask(f"document.getElementById('cases').scrollIntoView({{{AT_ONCE}}})")
    browser.press("ArrowRight")
    assert browser.ask(SHOWN).startswith(names[1])
    browser.ask("document.querySelector('input[name=mode]').focus()")
    browser.press("ArrowRight")  # moves among the kinds of masks, not the cases
    assert browser.ask(SHOWN).startswith(names[1])


def test_masks_as_areas_outlines_errors_or_not_at_all(browser, page):
    browser.open(page)
    shares = {}
    for mode in ("overlay", "outline", "errors", "none"):
        browser.ask(f"document.querySelector('[value={mode}]').click()")
        browser.settle()
        shares[mode] = browser.ask(PIXELS)
    truth, exact, *_, missed = zip(*shares.values(), strict=True)
    assert truth[0] > 3 * truth[1] > 0
    assert exact[2] == 0  # the prediction that is the truth has no errors
    assert missed[2] > 0.01
    assert truth[3] == exact[3] == missed[3] == 0
    browser.ask("document.querySelector('[value=overlay]').click()")
    for box in range(2):
        browser.ask(f"document.querySelectorAll('#classes-shown input')[{box}].click()")
    browser.settle()
    assert browser.ask(PIXELS) == [0, 0, 0, 0]
    browser.ask("document.activeElement.blur()")
    browser.ask(f"document.getElementById('cases').scrollIntoView({{{AT_ONCE}}})")
    browser.press("s")
    assert browser.ask("[...document.getElementsByName('slice')].findIndex(i => i.checked)") == 1


def test_everything_is_reached_by_tab_and_seen(browser, page):
    browser.open(page)
    reached = []
    for _ in range(60):
        browser.press("Tab")
        reached.append(
            browser.ask(
                "[document.activeElement.className || document.activeElement.id || "
                "document.activeElement.tagName, "
                "getComputedStyle(document.activeElement).outlineStyle]"
            )
        )
    names = [name for name, _ in reached]
    assert names[0] == "skip"
    assert {"list", "order", "box", "large", "SUMMARY", "A"} <= set(names)
    assert all(outline != "none" for name, outline in reached if name not in ("BODY", "main"))
    browser.open(page)
    browser.press("Tab")
    browser.press("Enter")
    assert browser.ask("document.activeElement.id") == "main"


@pytest.mark.parametrize("which", ["page", "evil_page"])
@pytest.mark.parametrize("width", [375, 320])
def test_no_sideways_scrolling_on_a_phone(browser, request, which, width):
    browser.open(request.getfixturevalue(which), width=width)
    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    tables = "[...document.querySelectorAll('.box')].some(b => b.scrollWidth > b.clientWidth)"
    assert browser.ask(tables)


def test_light_and_dark(browser, page):
    papers, figures = {}, {}
    for dark in (False, True):
        browser.open(page, dark=dark)
        figures[dark] = browser.ask(
            "[...document.querySelectorAll('.drawing')].map(figure => "
            "getComputedStyle(figure.querySelector('text')).fill)"
        )
        papers[dark] = browser.ask(
            "['background-color', 'color'].map(name => "
            "getComputedStyle(document.body).getPropertyValue(name))"
        )
    assert len(figures[False]) == len(figures[True]) == 6
    for light, dark in zip(figures[False], figures[True], strict=True):
        assert light == "rgb(89, 97, 108)"  # --soft
        assert dark == "rgb(165, 173, 184)"
    brightness = {
        dark: [sum(map(int, re.findall(r"\d+", colour))) for colour in found]
        for dark, found in papers.items()
    }
    assert brightness[False][0] > 700 > 150 > brightness[False][1]
    assert brightness[True][1] > 600 > 150 > brightness[True][0]


def test_names_do_not_run(browser, evil_page):
    browser.ask("window.alert = () => { document.title = 'ran'; }")
    browser.open(evil_page)
    assert browser.complaints == []  # neither did the policy have anything to refuse
    assert browser.requests == []
    assert (
        browser.ask("document.querySelectorAll('img, script:not(#data):not(:last-of-type)').length")
        == 0
    )
    assert EVIL in browser.ask(SHOWN)
    assert browser.ask("document.querySelectorAll('.pictures canvas').length") == 3
