"""The page on 127.0.0.1, over records that may still grow.

Only this machine is answered; but any of its users is. So where the text of tokens is shown, which
is in a file that its owner alone may read, the address begins with a secret that is new at each
start.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from klmonitor.dashboard.assets import asset
from klmonitor.dashboard.local import LocalServer
from klmonitor.dashboard.source import Source, answer

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer(LocalServer):
    """Serves the page of a source.

    Args:
        source: the runs.
        port: 0 takes a free one.
        secret: whether the address holds a secret.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, source: Source, port: int = 0, secret: bool = False) -> None:
        super().__init__(port)
        self.source = source
        self.one_at_a_time = threading.Lock()
        self._prefix = f"/{secrets.token_urlsafe(24)}/" if secret else "/"

    @property
    def url(self) -> str:
        """Where the page is, with the secret if there is one."""
        return f"http://127.0.0.1:{self.server_port}{self._prefix}"

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """A file of the page, or what it asks."""
        url = urlsplit(path)
        mine = self._prefix.encode()
        if not hmac.compare_digest(url.path.encode()[: len(mine)], mine):
            raise LookupError("give the whole address that klmonitor serve has printed")
        name = url.path[len(self._prefix) :] or "index.html"
        try:
            kind, body = self._find(name, dict(parse_qsl(url.query)))
        except ValueError as error:
            raise LookupError(str(error)) from None
        return 200, {**HEADERS, "Content-Type": kind}, body

    def _find(self, name: str, query: dict[str, str]) -> tuple[str, bytes]:
        if not name.startswith("api/"):
            return asset(name)
        with self.one_at_a_time:
            return "application/json", answer(self.source, name[4:], query)
