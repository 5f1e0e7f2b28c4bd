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
    strange = sorted(str(key) for key in set(table) - {"to", "severity", "timeout"})
    if strange:
        raise ValueError(f"{place} has {strange[0]!r}: to, severity and timeout are known")
    severity, timeout = table.get("severity", "warn"), table.get("timeout", TIMEOUT)
    if severity not in SEVERITIES:
        raise ValueError(f"{place}: severity {severity!r}: choose from {', '.join(SEVERITIES)}")
    if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ValueError(f"{place}: timeout {timeout!r}: give seconds, more than 0")
    found = list(_addresses(place, table["to"]))
    for number, (name, address) in enumerate(found, 1):
        label = f"{name}#{number}" if len(found) > 1 else name
        yield _target(label, address, severity, float(timeout))


def _addresses(place: str, to: str) -> Iterator[tuple[str, str]]:
    """What to call each address, and the address."""
    kind, _, rest = to.partition(":")
    if kind == "env":
        text, empty = os.environ.get(rest, ""), f"set the environment variable {rest or 'NAME'}"
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
    plain = all(PLAIN_WORD.fullmatch(word) for word in parts.path.split("/"))
    return plain and not parts.query and not parts.fragment


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
