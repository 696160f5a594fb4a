"""A program that serves the page, and what a browser would ask it for; without torch."""

import http.client
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.parse import urlencode

from attnseg.viewer.desk import Desk
from attnseg.viewer.server import SECRET_HEADER, Site
from attnseg.viewer.view import serve_until_end
from tests.limits import HANG

MEGABYTE = 1_000_000


class Page:
    """Asks as the page does."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.secret = self.ask("POST", "/open", body=site.token)[1].decode()
        self.stay()

    def stay(self):
        """Open the connection by which the program sees that the page is open."""
        self.alive = socket.create_connection(("127.0.0.1", self.site.server_port))
        self.alive.sendall(
            f"GET /alive HTTP/1.1\r\nHost: 127.0.0.1:{self.site.server_port}\r\n"
            f"{SECRET_HEADER}: {self.secret}\r\n\r\n".encode()
        )
        assert b" 200 " in self.alive.recv(100)

    def ask(self, method, path, values=None, body=None, headers=None, host=None):
        """Return status and body of an answer; headers of `None` are left out."""
        own = {"Host": f"127.0.0.1:{self.site.server_port}"}
        if hasattr(self, "secret"):
            own[SECRET_HEADER] = self.secret
        own |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.site.server_port, timeout=HANG)
        target = f"{path}?{urlencode(values)}" if values else path
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        data = body.encode() if isinstance(body, str) else body
        if data is not None and "Content-Length" not in own:
            own["Content-Length"] = str(len(data))
        for name, value in own.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        if data:
            connection.send(data)
        answer = connection.getresponse()
        self.headers = answer.headers
        return answer.status, answer.read()

    def get(self, path, **values):
        status, body = self.ask("GET", path, values)
        assert status == 200, (path, status, body)
        return body

    def drop(self, files, output_type="dicom_seg"):
        """Send files, by the names that they are dropped with, and return what is shown."""
        assert self.ask("POST", "/upload")[0] == 200
        for name, data in files.items():
            status, body = self.ask("PUT", "/file", {"name": name}, data)
            if status != 200:
                return status, body.decode()
        status, body = self.ask("POST", "/segment", {"output_type": output_type})
        return status, json.loads(body) if status == 200 else body.decode()


@contextmanager
def serving(sides, folder, most=50 * MEGABYTE, idle=3600.0):
    """Serve sides from a thread."""
    folder.mkdir(exist_ok=True)
    site = Site(Desk(sides, folder, most), 0)
    thread = threading.Thread(target=serve_until_end, args=(site, idle), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.ended.set()
        thread.join(HANG)
        assert not thread.is_alive()


@contextmanager
def program(folder, *words, barrier="import sys; sys.modules['torch'] = None"):
    """Run the command in a process of its own; yield it and the address that it prints."""
    code = f"{barrier}; from attnseg.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "view", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = ""
        while not line.startswith("http"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
        yield process, line.strip()
    finally:
        process.kill()
        process.wait()
