"""A small HTTP server for people at this machine: few connections, none for long, asked by name.

What a browser is told by a page elsewhere, whose name was bent to 127.0.0.1, names that page's
host: such a request is refused.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Collection
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

CONNECTIONS = 32
"""At the same time; the next one is closed."""
IDLE_SECONDS = 10.0
"""How long a request or an answer may stand still."""
REQUEST_SECONDS = 30.0
"""How long one may take in all, for one that drips."""
LOCAL = ("127.0.0.1", "localhost", "::1")


class LocalServer(ThreadingHTTPServer):
    """Serves GET requests by `answer`.

    Args:
        port: 0 takes a free one.
        address: where to listen.
        hosts: names that a request may ask for; None: any.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"

    def __init__(
        self, port: int = 0, address: str = "127.0.0.1", hosts: Collection[str] | None = LOCAL
    ) -> None:
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._hosts = hosts
        super().__init__((address, port), _Handler)

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path with its query.

        Raises:
            LookupError: there is nothing there; its text is what is answered.
        """
        raise LookupError(path)

    def is_named(self, host: str) -> bool:
        """Whether a request asks for a name of ours."""
        if self._hosts is None:
            return True
        try:
            return urlsplit(f"//{host}").hostname in self._hosts
        except ValueError:
            return False

    def server_bind(self) -> None:
        """Bind without asking a name server what our name is, which may take seconds."""
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, if there is room."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one, on a thread of its own."""
        end = threading.Timer(REQUEST_SECONDS, _cut, [request])
        end.daemon = True
        try:
            end.start()
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's concern."""


def _cut(request: Any) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        host = self.headers.get("Host") or ""
        try:
            if not self.server.is_named(host):
                raise LookupError(f"ask for {LOCAL[0]}, not for another host")
            status, headers, body = self.server.answer(self.path, self.headers)
        except LookupError as error:
            status, headers = 404, {"Content-Type": "text/plain; charset=utf-8"}
            body = f"{error}\n".encode(errors="backslashreplace")
        except OSError as error:
            status, headers = 500, {"Content-Type": "text/plain; charset=utf-8"}
            body = f"cannot be read: {error.strerror}\n".encode()
        with suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are not reported."""
