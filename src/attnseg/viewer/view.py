"""Serves the page until it is closed, unused for long, or interrupted."""

import logging
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType

from attnseg.errors import ResourceError
from attnseg.viewer.desk import Desk
from attnseg.viewer.options import View
from attnseg.viewer.server import Site
from attnseg.viewer.sides import Side, open_sides
from attnseg.viewer.written import open_predictions

log = logging.getLogger(__name__)

POLL = 0.25  # seconds
PREFIX = "attnseg-view-"


def view(options: View) -> None:
    """Open networks or predictions, print the page's address, and serve it until it is closed.

    Raises:
        AttnsegError: what the person at the terminal can mend.
    """
    sides: list[Side] = [*open_sides(options)]
    if options.predictions is not None:
        sides = [open_predictions(Path(options.predictions))]
    # The folder is readable by its owner only.
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        desk = Desk(sides, Path(folder), options.upload_mb * 1_000_000)
        try:
            serve_until_end(open_site(desk, options.port), 60 * options.idle_minutes)
        finally:
            desk.finish()


def open_site(desk: Desk, port: int) -> Site:
    """Return the server of a page, which listens.

    Raises:
        ResourceError: the port cannot be used.
    """
    try:
        return Site(desk, port)
    except OSError as error:
        raise ResourceError(
            f"port: {port} cannot be used ({error.strerror}); set port=0 for a free one"
        ) from error


def serve_until_end(site: Site, idle_seconds: float) -> None:
    """Print the address, and serve until the site's end or a signal."""
    signals: list[int] = []  # An event could not be set here: its lock may be held.

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
    thread = threading.Thread(target=site.serve_forever, args=(POLL,), daemon=True)
    thread.start()
    try:
        log.info("Open this address in a browser of this machine. It works once.")
        log.info("%s", site.address)
        log.info("The program ends when the page is closed, or by Ctrl-C.")
        reason = None
        while not (reason or signals or site.ended.wait(POLL)):
            reason = site.find_end(idle_seconds)
        log.info("%s. All that was dropped is removed.", reason or "Stopped")
    finally:
        site.ended.set()
        site.shutdown()
        site.server_close()
        for number, handler in before.items():
            signal.signal(number, handler)
