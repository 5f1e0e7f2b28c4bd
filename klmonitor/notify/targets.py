"""Whom to tell: from what the user wrote to addresses, with the addresses kept out of sight."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

Notify = str | Mapping[str, Any] | Collection["str | Mapping[str, Any]"] | None
"""``"env:NAME"``, ``"file:/path"``, a harmless address, a table with ``to``, or a list of these."""

SEVERITIES = ("info", "warn", "critical")
"""Ascending."""
TIMEOUT = 10.0
"""Seconds that one attempt may take."""
SPOKEN_BY_APPRISE = (
    "hooks.slack.com",
    "discord.com",
    "discordapp.com",
    "webhook.office.com",
    "logic.azure.com",
)
"""Hosts whose https addresses take no plain JSON of ours; their subdomains as well."""
PLAIN_WORD = re.compile(r"[a-z._-]{0,24}|v\d{1,2}")
"""A part of a path that is no secret for sure; most tokens have digits, capitals or more length."""
PLAIN_LABEL = re.compile(r"(?=.{1,24}$)[a-z]+(-[a-z]+)*-?\d{0,3}")
"""A part of a host's name that is no secret for sure: words, and a small number."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
KINDS = {"env": "variable", "file": "file"}
HIDE = 'put it into an environment variable and give "env:NAME", or into a file: "file:/path"'


class Secret:
    """A string that no log and no traceback shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"


@dataclass(frozen=True)
class Target:
    """One receiver of alerts.

    Attributes:
        name: what it is called in messages: its variable or file, and the scheme.
        address: its URL.
        service: ``"webhook"`` (JSON over HTTP) or ``"apprise"``.
        severity: the least severity that it is told of.
        timeout: seconds that one attempt may take.
    """

    name: str
    address: Secret
    service: str
    severity: str = "warn"
    timeout: float = TIMEOUT

    def wants(self, severity: str) -> bool:
        """Whether an alert of this severity is for it; an unknown severity is."""
        if severity not in SEVERITIES:
            return True
        return SEVERITIES.index(severity) >= SEVERITIES.index(self.severity)


def parse_targets(notify: Notify) -> tuple[Target, ...]:
    """Resolve targets.

    Args:
        notify: see `Notify`. A table has ``to`` and may have ``severity`` (``"info"``, ``"warn"``,
            the default, or ``"critical"``) and ``timeout`` (seconds an attempt). A variable or a
            file may hold several addresses, apart by white space; lines of a file that begin with
            ``#`` are comments.

    Raises:
        ValueError: something is wrong; the message has the remedy and never an address.
    """
    if notify is None:
        return ()
    wanted = [notify] if isinstance(notify, str | Mapping) else list(notify)
    return tuple(target for i, one in enumerate(wanted) for target in _targets(f"notify[{i}]", one))


def _targets(place: str, wanted: object) -> Iterator[Target]:
    table = {"to": wanted} if isinstance(wanted, str) else wanted
    if not isinstance(table, Mapping) or not isinstance(table.get("to"), str):
        raise ValueError(f'{place}: give "env:NAME", "file:/path" or a table with "to"')
    if set(table) - {"to", "severity", "timeout"}:
        raise ValueError(f"{place} has a key besides to, severity and timeout, which are known")
    severity, timeout = table.get("severity", "warn"), table.get("timeout", TIMEOUT)
    if severity not in SEVERITIES:
        said = f"{severity!r}" if isinstance(severity, str) and _is_word(severity) else "as given"
        raise ValueError(f"{place}: severity {said}: choose from {', '.join(SEVERITIES)}")
    if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        said = "as given" if isinstance(timeout, str) else f"{timeout!r:.40}"
        raise ValueError(f"{place}: timeout {said}: give seconds, more than 0")
    found = list(_addresses(place, table["to"]))
    for number, (name, address) in enumerate(found, 1):
        label = f"{name}#{number}" if len(found) > 1 else name
        yield _target(label, address, severity, float(timeout))


def _addresses(place: str, to: str) -> Iterator[tuple[str, str]]:
    """What to call each address, and the address."""
    kind, _, rest = to.partition(":")
    if kind in ("env", "file") and "://" in rest:
        raise ValueError(
            f"{place}: {kind}: takes the name of a {KINDS[kind]}, not an address: {HIDE}"
        )
    if kind == "env":
        if not VARIABLE.fullmatch(rest):
            raise ValueError(f"{place}: what follows env: is no name of a variable: {HIDE}")
        text, empty = os.environ.get(rest, ""), f"set the environment variable {rest}"
    elif kind == "file":
        try:
            text = Path(rest).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{place}: cannot read {to}: {type(error).__name__}; give a file of addresses"
            ) from None
        text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        empty = f"put an address into {rest}"
    elif _harmless(to):
        yield f"{urlsplit(to).scheme}://{urlsplit(to).hostname}", to
        return
    else:
        scheme = to.partition("://")[0]
        what = f"an address {scheme}://..." if re.fullmatch("[a-z]{2,12}", scheme) else "this text"
        raise ValueError(f"{place}: {what} may hold a secret, which logs would show: {HIDE}")
    addresses = text.split()
    if not addresses:
        raise ValueError(f"{place}: {to} holds no address: {empty}")
    for address in addresses:
        yield to, address


def _harmless(address: str) -> bool:
    """Whether a literal address can hold no secret: plain http(s), loopback or a plain path."""
    parts = split(address)
    if parts is None or parts.scheme not in ("http", "https") or "@" in parts.netloc:
        return False
    if not parts.hostname:
        return False
    if is_loopback(parts.hostname):
        return True
    if not _is_plain_host(parts.hostname):
        return False
    plain = all(PLAIN_WORD.fullmatch(word) for word in parts.path.split("/"))
    return plain and not parts.query and not parts.fragment


def _is_word(text: str) -> bool:
    return re.fullmatch("[a-z]{1,12}", text) is not None


def _is_plain_host(host: str) -> bool:
    """Whether no part of a host's name looks like a secret, as those of some services do."""
    try:
        ip_address(host)
    except ValueError:
        return all(PLAIN_LABEL.fullmatch(label) for label in host.split("."))
    return True


def split(address: str) -> SplitResult | None:
    """The parts of an address, None of one that has none; its error would show the address."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        return None
    return parts


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _target(name: str, address: str, severity: str, timeout: float) -> Target:
    parts = split(address)
    if parts is None or not parts.scheme or "://" not in address:
        raise ValueError(f"{name} holds no address of the form scheme://...")
    scheme, host = parts.scheme, parts.hostname or ""
    plain = scheme in ("http", "https")
    if plain and not host:
        raise ValueError(f"{name} holds an {scheme} address without a host")
    known = any(host == one or host.endswith(f".{one}") for one in SPOKEN_BY_APPRISE)
    service = "webhook" if plain and not known else "apprise"
    label = name if name.startswith("http") else f"{name} ({scheme})"
    return Target(label, Secret(address), service, severity, timeout)
