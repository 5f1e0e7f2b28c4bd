"""A webhook on the loopback that misbehaves on demand, and what it got."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CANARY = "c4naryT0ken9876543210"
"""A secret: the path of every address of these tests."""


class Hook:
    """A server that answers as `plan` says, the last entry for ever.

    Entries: a status (an int), ``"redirect"`` (307 to the same server), ``"elsewhere"`` (307 to
    another host), ``"drip"`` (a byte of the head every 50 ms, for ever), ``"hang"`` (no answer).

    Attributes:
        got: the bodies that were answered with 200, in order.
        asked: requests that arrived.
    """

    def __init__(self, *plan: int | str) -> None:
        self.got: list[dict[str, object]] = []
        self.asked = 0
        self.released = threading.Event()
        self.arrived = threading.Event()
        self._plan = list(plan or (200,))
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{CANARY}"

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next(self) -> int | str:
        with self._lock:
            self.asked += 1
            return self._plan.pop(0) if len(self._plan) > 1 else self._plan[0]

    def _handler(hook) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # `self` is the request's
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                what = 200 if self.path.endswith("/final") else hook.next()
                hook.arrived.set()
                if what == "hang":
                    hook.released.wait()
                elif what == "drip":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while not hook.released.wait(0.05):
                        self.wfile.write(b"x")
                        self.wfile.flush()
                elif what == "redirect":
                    self.answer(307, f"{hook.url}/final")
                elif what == "elsewhere":
                    self.answer(307, "http://localhost.invalid/final")
                else:
                    if what == 200:
                        hook.got.append(json.loads(body))
                    self.answer(int(what))

            def answer(self, status: int, location: str | None = None) -> None:
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                if status == 429:
                    self.send_header("Retry-After", "7")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def handle(self) -> None:
                with suppress(OSError):  # the client was killed, as it should be
                    super().handle()

        return Handler


@contextmanager
def hook(*plan: int | str) -> Iterator[Hook]:
    server = Hook(*plan)
    try:
        yield server
    finally:
        server.close()


def refused_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/{CANARY}"
