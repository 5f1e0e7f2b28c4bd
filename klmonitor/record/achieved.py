"""What flushing or closing a record has come to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Achieved:
    """What `flush` or `close` achieved; true where all of it was.

    Attributes:
        done: whether everything that waited had its turn in time.
        written: sequence number of the last row that a crash of this process cannot take any more;
            None: there is none, or no record.
        synced: the same of a loss of power.
        errors: rows, reports and alerts lost to errors so far.
        dropped: those not tried: too many were waiting.
        where: the run directory; empty: nothing is kept.
    """

    done: bool = True
    written: int | None = None
    synced: int | None = None
    errors: int = 0
    dropped: int = 0
    where: str = ""

    def __bool__(self) -> bool:
        """Whether it was done."""
        return self.done
