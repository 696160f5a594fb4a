"""The page of `attnseg view` in a real browser, by mouse and keys."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from tests.browser.chromium import PROGRAM, Chromium
from tests.limits import HANG
from tests.prediction.made import organ
from tests.prediction.test_dicom import write as write_series
from tests.viewer.made import program
from tests.viewer.test_view import capsule, nifti, other, png, windowed  # noqa: F401 (fixtures)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium"),
]
SHOWN = "[...document.querySelectorAll('.frame img')].map(i => +i.dataset.at)"
COLOURED = """[...document.querySelectorAll('.frame img')].map(image => {
    const canvas = document.createElement('canvas'), pen = canvas.getContext('2d');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    pen.drawImage(image, 0, 0);
    const d = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    let blue = 0;
    for (let i = 0; i < d.length; i += 4) blue += d[i + 2] - d[i] > 24;
    return blue;
})"""
TEXT = "document.getElementById('{}')?.textContent"


@pytest.fixture
def browser(tmp_path):
    chromium = Chromium()
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    chromium.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    chromium.downloads = downloads
    yield chromium
    chromium.close()


def until(holds):
    end = time.monotonic() + HANG
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def visit(browser, address):
    """Open the address that the program prints."""
    browser.view(1280, 1000)
    browser.address = address
    browser.requests, browser.complaints = [], []
    browser.send("Page.navigate", url=address)
    until(lambda: is_ready(browser))


def load_again(browser):
    """Reload the page, and wait for the new one; the old one does not count as ready."""
    browser.ask("delete document.documentElement.dataset.ready")
    browser.send("Page.reload")
    until(lambda: is_ready(browser))


def is_ready(browser):
    try:
        return browser.ask("document.documentElement?.dataset.ready")
    except AssertionError as error:  # Nothing can be asked while one page replaces another.
        if "context" not in str(error):
            raise
        return False


def let_fall(browser, path: Path):
    """Drop a file or folder with the mouse."""
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.send("Input.dispatchDragEvent", type=kind, x=400, y=200, data=data)


def drop(browser, path: Path):
    """Drop a file or folder, and wait for its slices."""
    let_fall(browser, path)
    until(lambda: browser.ask("document.querySelector('.frame img')?.dataset.at") is not None)
    settle(browser)


def settle(browser):
    until(lambda: browser.ask("document.getElementById('status').textContent === ''"))
    until(
        lambda: browser.ask("document.querySelector('.frame img:not([aria-busy=false])') === null")
    )


def point(browser, selector, right, below, kind="click"):
    """Click at a place of an element, or turn the wheel there."""
    x, y = browser.ask(
        f"(() => {{ const box = document.querySelector({json.dumps(selector)}); "
        "box.scrollIntoView({block: 'center', behavior: 'instant'}); "
        "const at = box.getBoundingClientRect(); "
        f"return [at.left + {right} * at.width, at.top + {below} * at.height]; }})()"
    )
    if kind == "wheel":
        browser.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=100)
        return
    for step in ("mousePressed", "mouseReleased"):
        browser.send(
            "Input.dispatchMouseEvent", type=step, x=x, y=y, button="left", clickCount=1,
            buttons=int(step == "mousePressed"),
        )  # fmt: skip


def test_a_volume_is_tried_by_mouse_and_keys(browser, capsule, other, tmp_path):  # noqa: F811
    image = tmp_path / "liver of <b>O'Hara.nii"
    image.write_bytes(nifti(organ((24, 20, 12))))
    with program(tmp_path, f"capsule={capsule},{other}", "threads=1") as (process, address):
        visit(browser, address)
        assert "#" not in browser.ask("location.href")  # The token is gone.
        drop(browser, image)
        assert browser.ask("document.querySelectorAll('.frame img').length") == 6
        assert "O'Hara" in browser.ask("document.getElementById('case').selectedOptions[0].text")
        first = browser.ask(SHOWN)
        assert first[:3] == first[3:]
        # The wheel goes through one plane, on both sides.
        point(browser, ".frame", 0.5, 0.5, "wheel")
        until(lambda: browser.ask(SHOWN)[0] == first[0] + 1 == browser.ask(SHOWN)[3])
        # A click moves the two others.
        point(browser, ".frame", 0.9, 0.1)
        settle(browser)
        moved = browser.ask(SHOWN)
        assert moved[1] < first[1]
        assert moved[2] > first[2]
        # Keys: a slider, the layers, a class.
        browser.ask("document.querySelector('figcaption input').focus()")
        browser.press("Home")
        until(lambda: browser.ask(SHOWN)[0] == 0)
        browser.press("ArrowRight")
        until(lambda: browser.ask(SHOWN)[0] == 1)
        browser.ask("document.querySelector('[name=layer]:checked').focus()")
        before = browser.ask("document.querySelector('.frame img').src")
        browser.press("ArrowRight")
        assert browser.ask("document.querySelector('[name=layer]:checked').value") == "uncertainty"
        until(lambda: browser.ask("document.querySelector('.frame img').src") != before)
        browser.press("ArrowLeft")
        settle(browser)
        before = browser.ask("document.querySelector('.frame img').src")
        browser.ask("document.querySelector('#rows tr:nth-child(2) input').focus()")
        browser.press(" ")
        until(lambda: browser.ask("document.querySelector('.frame img').src") != before)
        settle(browser)
        hidden = browser.ask(COLOURED)
        browser.press(" ")
        settle(browser)
        assert all(now > before for now, before in zip(browser.ask(COLOURED), hidden, strict=True))
        rows = browser.ask("[...document.querySelectorAll('#rows tr')].map(r => r.innerText)")
        assert rows[1].split()[:2] == ["b", rows[1].split()[2]]  # The same volume on both sides.
        browser.ask("document.querySelector('#saves button').focus()")
        browser.press("Enter")
        (saved,) = until(lambda: [p for p in browser.downloads.iterdir() if p.suffix == ".nii"])
        assert saved.name.endswith("O'Hara_masks.nii")
        assert saved.stat().st_size > 352
        browser.screenshot(tmp_path / "volume.png")
        assert browser.complaints == []
        assert all(
            request.startswith((address.partition("#")[0], "blob:")) for request in browser.requests
        )
        assert len(browser.requests) > 20
        # Loading the page again goes on; closing it ends the program.
        load_again(browser)
        assert browser.ask("document.getElementById('result').hidden") is False
        browser.send("Page.navigate", url="about:blank")
        assert process.wait(60) == 0


def test_a_series_and_a_picture_are_dropped(browser, capsule, tmp_path):  # noqa: F811
    folder = tmp_path / "ct"
    write_series(folder, organ((5, 30, 28)))
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    (tmp_path / "p.png").write_bytes(png(pixels))
    with program(tmp_path, f"capsule={capsule}", "threads=1") as (process, address):
        visit(browser, address)
        drop(browser, folder)
        assert "DICOM series of 5 files" in browser.ask(
            "document.getElementById('case').selectedOptions[0].text"
        )
        assert browser.ask("document.querySelectorAll('.frame img').length") == 3
        browser.screenshot(tmp_path / "series.png")
        browser.ask("document.getElementById('pictures').replaceChildren()")
        drop(browser, tmp_path / "p.png")
        assert browser.ask("document.querySelectorAll('.frame img').length") == 1
        assert "Pixels" in browser.ask(TEXT.format("caption"))
        browser.screenshot(tmp_path / "picture.png")
        (tmp_path / "bad.nii").write_bytes(nifti()[:400])
        let_fall(browser, tmp_path / "bad.nii")
        until(lambda: "bad.nii" in browser.ask(TEXT.format("lines")))
        # The program ends, and the page says so.
        assert browser.complaints == []
        process.terminate()
        until(lambda: "has ended" in browser.ask(TEXT.format("ended")))


def test_the_windows_of_two_networks(browser, capsule, windowed, tmp_path):  # noqa: F811
    image = tmp_path / "a.nii"
    image.write_bytes(nifti(organ((24, 20, 12))))
    with program(tmp_path, f"capsule={capsule},{windowed}", "threads=1") as (_, address):
        visit(browser, address)
        drop(browser, image)
        white = browser.ask(TEXT.format("white-value"))
        assert re.fullmatch(r"[\d.]+ and 60", white)
        assert not white.startswith("60 ")
        browser.ask("document.getElementById('white').focus()")
        browser.press("Home")
        until(lambda: "and -100" in browser.ask(TEXT.format("white-value")))
        browser.ask("document.getElementById('reset').click()")
        assert browser.ask(TEXT.format("white-value")) == white
        assert browser.ask(TEXT.format("reset")) == "As each network sees it"


def test_an_address_works_once(browser, capsule, tmp_path):  # noqa: F811
    with program(tmp_path, f"capsule={capsule}", "threads=1") as (_, address):
        visit(browser, address)
        browser.ask("sessionStorage.clear()")  # as in another tab
        browser.send("Page.navigate", url="about:blank")
        browser.send("Page.navigate", url=address)
        until(lambda: "was used before" in str(browser.ask(TEXT.format("ended"))))


def test_no_sideways_scrolling_on_a_phone(browser, capsule, tmp_path):  # noqa: F811
    image = tmp_path / "a.nii"
    image.write_bytes(nifti(organ((24, 20, 12))))
    with program(tmp_path, f"capsule={capsule}", "threads=1") as (_, address):
        visit(browser, address)
        drop(browser, image)
        browser.view(375)
        assert browser.ask("document.documentElement.scrollWidth") <= 375
        browser.view(375, dark=True)
        browser.screenshot(tmp_path / "phone.png")
