"""The process that talks to one target. It is run as a script and knows the standard library only.

Line by line on stdin: first the set-up (``{"path", "service", "address", "timeout"}``), answered by
``{"ready": true}`` or ``{"error": ...}``; then messages, each answered by ``{"ok", "retry", "why",
"after"}``. Answers hold no part of an address. It ends with its stdin, whatever it is doing, so it
never outlives whoever started it; that one also kills it when an answer takes too long.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

Answer = dict[str, Any]
Deliver = Callable[[dict[str, Any]], Answer]

HOPS = 3
"""Redirects that are followed."""
MOVED = (301, 302, 307, 308)
"""Answers that say: elsewhere. 303 says: taken, see the result elsewhere; we do not look."""
LATER = (408, 425, 429)
"""Answers below 500 that say: not now."""
OK: Answer = {"ok": True}


def failure(why: str, retry: bool = True, after: float = 0.0) -> Answer:
    """A message that was not delivered."""
    return {"ok": False, "retry": retry, "why": why, "after": after}


# --- a plain webhook ---------------------------------------------------------------------------
class Stay(HTTPRedirectHandler):
    """urllib would follow a redirect with a GET, and drop the message."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Do not follow; the answer is raised as an `HTTPError`."""


def webhook(address: str, timeout: float) -> Deliver:
    """POST the message as JSON; a redirect is followed, by POST, on the same host alone."""

    def deliver(message: dict[str, Any]) -> Answer:
        body = json.dumps(message).encode()
        url = address
        for _ in range(HOPS + 1):
            answer, location = post(url, body, timeout)
            if location is None:
                return answer
            following = urljoin(url, location)
            if not same_place(url, following):
                return failure("it redirects to another host: give the final address", retry=False)
            url = following
        return failure("it redirects for ever", retry=False)

    return deliver


def post(url: str, body: bytes, timeout: float) -> tuple[Answer, str | None]:
    """One request: what came of it, and where it sends us instead, if it does."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    headers = {"Content-Type": "application/json", "User-Agent": "klmonitor"}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    opener = build_opener(Stay(), *([ProxyHandler({})] if local else []))
    try:
        with opener.open(Request(bare, body, headers), timeout=timeout):
            return OK, None
    except HTTPError as error:
        with error:
            code, location = error.code, error.headers.get("Location")
            wait = error.headers.get("Retry-After", "")
        if code in MOVED and location:
            return OK, location
        if code == 303:
            return OK, None
        after = float(wait) if wait.isdecimal() else 0.0
        return failure(f"HTTP {code}", code >= 500 or code in LATER, after), None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return failure(type(reason).__name__), None


def same_place(old: str, new: str) -> bool:
    """Same host, and no way back from https to http: the message and its secrets stay there."""
    before, after = urlsplit(old), urlsplit(new)
    schemes = ("https",) if before.scheme == "https" else ("http", "https")
    return after.scheme in schemes and after.hostname == before.hostname


# --- what apprise knows --------------------------------------------------------------------------
def apprise_service(address: str, timeout: float) -> Deliver:
    """Hand messages to apprise.

    Raises:
        ImportError: it is not installed.
        ValueError: it does not know such an address.
    """
    import logging

    logging.disable(logging.CRITICAL)  # its log shows addresses
    import apprise

    receiver = apprise.Apprise()
    if not receiver.add(address):
        raise ValueError
    kinds = {"critical": apprise.NotifyType.FAILURE, "info": apprise.NotifyType.INFO}

    def deliver(message: dict[str, Any]) -> Answer:
        done = receiver.notify(
            body=message["markdown"],
            title=message["title"],
            notify_type=kinds.get(message["severity"], apprise.NotifyType.WARNING),
            body_format=apprise.NotifyFormat.MARKDOWN,
        )
        return OK if done else failure("refused or not reachable")

    return deliver


SERVICES: dict[str, Callable[[str, float], Deliver]] = {
    "webhook": webhook,
    "apprise": apprise_service,
}


# --- the loop ----------------------------------------------------------------------------------
def attempt(deliver: Deliver, message: dict[str, Any]) -> Answer:
    """Deliver; whatever goes wrong is an answer by its type, as its text may hold the address."""
    try:
        return deliver(message)
    except Exception as error:  # noqa: BLE001  # the boundary of this process
        return failure(type(error).__name__)


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")  # what others print must not look like an answer
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)

    def answer(body: Answer) -> None:
        answers.write(json.dumps(body) + "\n")
        answers.flush()

    setup = json.loads(sys.stdin.readline())
    sys.path[:] = setup["path"]
    try:
        deliver = SERVICES[setup["service"]](setup["address"], setup["timeout"])
    except Exception as error:  # noqa: BLE001  # its text may hold the address
        answer({"error": type(error).__name__})
        return
    answer({"ready": True})
    for line in sys.stdin:
        message = json.loads(line)
        work = threading.Thread(
            target=lambda m: answer(attempt(deliver, m)), args=(message,), daemon=True
        )
        work.start()
    os._exit(0)


if __name__ == "__main__":
    main()
