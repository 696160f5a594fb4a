"""The page's server: it answers one browser on this machine, and nobody else.

Whoever can reach the port may load the page, which is empty; everything else needs the secret that
the page gets, once, for the token in the printed address. The secret travels in a header, which no
other page can send, and not in a cookie, which every server of this machine would receive.
"""

import contextlib
import hmac
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs

from attnseg.viewer.desk import Desk
from attnseg.viewer.uploads import Refusal

HOST = "127.0.0.1"
SECRET_HEADER = "X-Attnseg-Secret"
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
PAGE = {
    "/": ("view.html", "text/html;charset=utf-8"),
    "/view.css": ("view.css", "text/css;charset=utf-8"),
    "/view.js": ("view.js", "text/javascript;charset=utf-8"),
}
BEAT = 1.0  # seconds from one sign of life to the next
GRACE = 5.0  # seconds in which a page that was closed may be loaded again
STALL = 60.0  # seconds that a request may stand still
LINGER = 2.0  # seconds
LONGEST_TOKEN = 100  # bytes
MOST_FIELDS = 20  # of a query
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Site(ThreadingHTTPServer):
    """Serves the page on the loopback address.

    Args:
        desk: answers what the page asks for.
        port: of the address; 0 takes a free one.

    Attributes:
        token: what the first page must know; spent by it.
        ended: set to end the program.
    """

    daemon_threads = True

    def __init__(self, desk: Desk, port: int) -> None:
        super().__init__((HOST, port), Handler)
        self.desk = desk
        self.token: str | None = secrets.token_urlsafe(32)
        self._secret = secrets.token_urlsafe(32)
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self._pages, self._closed_at, self._used_at = 0, 0.0, time.monotonic()
        self._working = 0
        self.hosts = [f"{name}:{self.server_port}" for name in (HOST, "localhost")]

    @property
    def address(self) -> str:
        """The address to open; a fragment is sent to no server and kept in no log."""
        return f"http://{HOST}:{self.server_port}/#{self.token}"

    def exchange(self, token: str) -> str:
        """Return the secret for the token, once."""
        with self._lock:
            if self.token is None or not hmac.compare_digest(self.token.encode(), token.encode()):
                raise Refusal(401, "This address was used before. Start attnseg view again.")
            self.token, self._closed_at = None, time.monotonic()
        return self._secret

    def knows(self, secret: str) -> bool:
        """Return whether a request carries the secret."""
        return hmac.compare_digest(secret.encode(), self._secret.encode())

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as use, as long as it is worked on."""
        with self._lock:
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
                self._used_at = time.monotonic()

    @contextlib.contextmanager
    def open_page(self) -> Iterator[None]:
        """Count a page as open."""
        with self._lock:
            self._pages += 1
        try:
            yield
        finally:
            with self._lock:
                self._pages -= 1
                self._closed_at = time.monotonic()

    def find_end(self, idle_seconds: float) -> str | None:
        """Return why the program should end now, if it should."""
        now = time.monotonic()
        if self._working:
            return None
        if now - self._used_at > idle_seconds:
            return f"Nothing was asked for during {idle_seconds / 60:g} minutes"
        if self.token is None and not self._pages and now - self._closed_at > GRACE:
            return "The page was closed"
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that break: the page notices by itself."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Site
    timeout = STALL
    server_version, sys_version = "attnseg", ""

    def do_GET(self) -> None:
        """Answer what changes nothing."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer what opens the page, or begins something."""
        self._answer(self._post)

    def do_PUT(self) -> None:
        """Receive a file."""
        self._answer(self._put)

    def _refuse_method(self) -> None:
        self._answer(self._no_such_method)

    do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def _answer(self, respond: Callable[[str, dict[str, str]], None]) -> None:
        """Check a request and answer it; whatever goes wrong is a status and a line."""
        try:
            self._check_origin()
            path, _, query = self.path.partition("?")
            try:
                found = parse_qs(query, max_num_fields=MOST_FIELDS)
            except ValueError as error:
                raise Refusal(400, "Too many fields") from error
            values = {key: each[-1] for key, each in found.items()}
            respond(path, values)
        except Refusal as refusal:
            self._send(refusal.status, str(refusal).encode(), "text/plain;charset=utf-8")
            self._linger()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            line = f"This is a bug of ours, please report it: {type(error).__name__}: {error}"
            self._send(500, line[:500].encode(), "text/plain;charset=utf-8")

    def _check_origin(self) -> None:
        """Refuse requests of other pages, and those by other names of this machine."""
        if self.headers.get("Host") not in self.server.hosts:
            raise Refusal(421, "Unknown host")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in self.server.hosts]:
            raise Refusal(403, "Request of another page")
        # A person may follow a link to the page, which holds nothing without the secret.
        follows = self.command == "GET" and self.headers.get("Sec-Fetch-Dest") == "document"
        if (
            self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
            and not follows
        ):
            raise Refusal(403, "Request of another page")

    def _check_secret(self) -> None:
        if not self.server.knows(self.headers.get(SECRET_HEADER, "")):
            raise Refusal(401, "This page does not belong to the program that runs now")

    def _get(self, path: str, values: dict[str, str]) -> None:
        if path in PAGE:
            name, kind = PAGE[path]
            self._send(200, files("attnseg.viewer").joinpath("page", name).read_bytes(), kind)
            return
        self._check_secret()
        if path == "/alive":
            self._stay_alive()
            return
        with self.server.working():
            self._send(200, *self.server.desk.get(path, values))

    def _post(self, path: str, values: dict[str, str]) -> None:
        if path == "/open":
            token = self._read_body(LONGEST_TOKEN).decode("ascii", "replace")
            self._send(200, self.server.exchange(token).encode(), "text/plain")
            return
        self._check_secret()
        with self.server.working():
            self._send(200, *self.server.desk.post(path, values))

    def _put(self, path: str, values: dict[str, str]) -> None:
        self._check_secret()
        with self.server.working():
            self.server.desk.put(path, values, self.rfile, self._body_length())
        self._send(200, b"", "text/plain")

    def _no_such_method(self, path: str, values: dict[str, str]) -> None:
        raise Refusal(405, "No such method")

    def _read_body(self, most: int) -> bytes:
        if (length := self._body_length()) > most:
            raise Refusal(413, "Too large")
        return self.rfile.read(length)

    def _body_length(self) -> int:
        """Return the length that was announced; a body without one is refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise Refusal(411, "No length")
        return int(length)

    def _stay_alive(self) -> None:
        """Write a byte every second until the page is closed or the program ends."""
        self._send_headers(200, "text/plain")
        with self.server.open_page():
            while not self.server.ended.is_set():
                self.wfile.write(b".")
                if select.select([self.connection], [], [], BEAT)[0]:  # The other side is gone.
                    return

    def _linger(self) -> None:
        """Read on for a moment: a browser that still sends would not see why it was refused."""
        end = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER / 4)
            while time.monotonic() < end and self.connection.recv(1 << 20):
                pass

    def _send(self, status: int, body: bytes, kind: str) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._send_headers(status, kind, {"Content-Length": str(len(body))})
            self.wfile.write(body)

    def _send_headers(self, status: int, kind: str, more: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep silent: names of files are nobody else's business."""
