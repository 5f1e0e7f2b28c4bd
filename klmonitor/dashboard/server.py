"""The page on 127.0.0.1, over records that may still grow.

Only this machine is answered: the server listens on the loopback, and a request that names
another host (a page elsewhere whose name was bent to 127.0.0.1) is refused.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from klmonitor.dashboard.assets import asset
from klmonitor.dashboard.source import Source, answer

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOCAL = ("127.0.0.1", "localhost")


class PageServer(ThreadingHTTPServer):
    """Serves the page of a source.

    Args:
        source: the runs.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, source: Source, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.source = source
        self.one_at_a_time = threading.Lock()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        url = urlsplit(self.path)
        name = url.path.lstrip("/") or "index.html"
        try:
            if host not in LOCAL:
                raise LookupError(f"ask for {LOCAL[0]}, not for {host!r}")
            kind, body = self._find(name, dict(parse_qsl(url.query)))
        except (LookupError, ValueError) as error:
            self._send(404, "text/plain; charset=utf-8", f"{error}\n".encode())
        else:
            self._send(200, kind, body)

    def _find(self, name: str, query: dict[str, str]) -> tuple[str, bytes]:
        if not name.startswith("api/"):
            return asset(name)
        with self.server.one_at_a_time:
            return "application/json", answer(self.server.source, name[4:], query)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        with suppress(ConnectionError):
            self.send_response(status)
            for header, value in HEADERS.items():
                self.send_header(header, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are not reported."""
