"""A headless Chromium that opens one page at a time, through its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.limits import HANG

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")


class Chromium:
    """A browser with one tab; to be closed.

    Attributes:
        requests: addresses that were asked for since `open`, the page's own and data left out.
        complaints: errors and warnings of scripts and of the browser since `open`.
    """

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        self.process = subprocess.Popen(
            [
                PROGRAM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={self.profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.loop = asyncio.new_event_loop()
        self.count = 0
        self.requests, self.complaints, self.loaded = [], [], False
        self._await(self._connect(self._port()))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        """End the browser."""
        with contextlib.suppress(Exception):
            self.send("Browser.close")
        self._await(self.session.close())
        self.loop.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _port(self):
        file, end = Path(self.profile, "DevToolsActivePort"), time.monotonic() + HANG
        while not (file.is_file() and file.read_text().count("\n")):
            assert self.process.poll() is None, "chromium ended"
            assert time.monotonic() < end, "chromium does not answer"
            time.sleep(0.05)
        return int(file.read_text().splitlines()[0])

    async def _connect(self, port):
        self.session = aiohttp.ClientSession()
        pages = []
        while not pages:  # The browser answers before it has its page.
            async with self.session.get(f"http://127.0.0.1:{port}/json") as answer:
                pages = [tab for tab in await answer.json() if tab["type"] == "page"]
            await asyncio.sleep(0.05)
        address = pages[0]["webSocketDebuggerUrl"]
        self.socket = await self.session.ws_connect(address, max_msg_size=0)

    def _await(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, HANG))

    def send(self, method, **parameters):
        """Send a command and return its result."""
        return self._await(self._send(method, parameters))

    async def _send(self, method, parameters):
        self.count += 1
        number = self.count
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def _note(self, event):
        method, found = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            address = found["request"]["url"]
            if not address.startswith(("data:", "about:")) and address != self.address:
                self.requests.append(address)
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(found["exceptionDetails"]["exception"]["description"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(found["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(found["entry"]["text"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, path, width=1280, height=900, dark=False):
        """Load a file, and wait until it and its pictures are there."""
        self.view(width, height, dark)
        self.address = Path(path).resolve().as_uri()
        self.requests, self.complaints, self.loaded = [], [], False
        self.send("Page.navigate", url=self.address)
        end = time.monotonic() + HANG
        while not self.loaded:
            assert time.monotonic() < end, "the page does not load"
            self.ask("0")
        self.settle()

    def view(self, width, height=900, dark=False):
        """Set the size in CSS pixels and the colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def settle(self):
        """Wait until all canvases are drawn."""
        self.ask(
            "new Promise(done => { const look = () => "
            "[...document.querySelectorAll('canvas')].every(c => c.dataset.mode) "
            "? requestAnimationFrame(() => done(0)) : setTimeout(look, 20); look(); })"
        )

    def ask(self, expression):
        """Return what an expression is worth in the page; promises are waited for."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key):
        """Press a key as a person would."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        codes |= {"Tab": 9, "Enter": 13, "Home": 36, "End": 35}
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = codes.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **(text if kind == "keyDown" else {}),
            )

    def screenshot(self, path, whole=True, clip=None):
        """Write a picture of the page, or of what is in view."""
        options = {} if clip is None else {"clip": {**clip, "scale": 1}}
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **options)
        Path(path).write_bytes(base64.b64decode(found["data"]))
