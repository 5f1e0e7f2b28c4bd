"""Known conditions that nobody is to be told of: in the rules' settings, or a file of their own.

Anybody may append to the file while the run goes on (``klmonitor mute``). Of two rows about the
same kind and pair the later one counts: a last step that is past ends a mute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from klmonitor.record.jsonl import LineReader
from klmonitor.report import Alert, Row


@dataclass(frozen=True)
class Mute:
    """One kind of alert that is recorded and told to nobody.

    Attributes:
        kind: the kind of alert.
        pair: of this pair alone; None: of every pair, and of the run.
        until_step: the last step at which it holds, infinity for good.
    """

    kind: str
    pair: str | None = None
    until_step: float = math.inf

    def covers(self, kind: str, alert: Alert) -> bool:
        """Whether it holds for one kind of what an alert tells."""
        ours = self.kind == kind and self.pair in (None, alert.pair)
        return ours and alert.step <= self.until_step


def mute_to_row(mute: Mute) -> Row:
    """A mute as a JSON object; for good is None."""
    until = None if math.isinf(mute.until_step) else int(mute.until_step)
    return {"kind": mute.kind, "pair": mute.pair, "until_step": until}


def mute_from_row(row: Row) -> Mute:
    """The inverse of `mute_to_row`."""
    pair, until = row.get("pair"), row.get("until_step")
    return Mute(
        str(row["kind"]),
        None if pair is None else str(pair),
        math.inf if until is None else float(until),
    )


def in_force(*mutes: Iterable[Mute]) -> tuple[Mute, ...]:
    """One mute a kind and pair: the last."""
    return tuple({(mute.kind, mute.pair): mute for some in mutes for mute in some}.values())


class MuteFile:
    """A run's file of mutes, looked at while it grows.

    Attributes:
        mutes: what it said when it was last looked at.
    """

    def __init__(self, path: Path) -> None:
        """Look at it once; it may not exist."""
        self._path = path
        self._reader = LineReader(path, mute_from_row)
        self._seen: tuple[int, int] | None = None
        self.mutes: tuple[Mute, ...] = ()
        self.look()

    def look(self) -> None:
        """Read what came since, if size or date have changed; what cannot be read says nothing."""
        with suppress(OSError):
            status = self._path.stat()
            seen = status.st_size, status.st_mtime_ns
            if seen != self._seen:
                self.mutes = in_force(self.mutes, self._reader.poll())
                self._seen = seen
