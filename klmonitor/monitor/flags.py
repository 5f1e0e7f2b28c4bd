"""The numbers that travel with a step's sums, of which every rank learns the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from klmonitor.numbers import runvalues
from klmonitor.record.mutes import Mute
from klmonitor.report import Health
from klmonitor.rules.mutes import decode, encode

N_MUTES = len(encode(()))
N_FLAGS = 4 + N_MUTES + len(runvalues.TABLE)
"""How many numbers flags are."""


class Flags(NamedTuple):
    """Of one rank, or the largest of all.

    Attributes:
        errors, dropped: what was counted so far.
        active: whether all of it works.
        offer: an adapter's own number; -inf: none.
        mutes: what people have muted.
        run: what is known of the run.
    """

    errors: int
    dropped: int
    active: bool
    offer: float
    mutes: tuple[Mute, ...]
    run: Mapping[str, float]

    @classmethod
    def of(
        cls, health: Health, offer: float, mutes: tuple[Mute, ...], run: Mapping[str, float]
    ) -> Flags:
        """Of this rank, at a step."""
        return cls(health.errors, health.dropped, health.active, offer, mutes, run)

    def own(self) -> Flags:
        """As `decode` has them, of a rank that is alone."""
        mutes = tuple(decode(encode(self.mutes))) if self.mutes else ()
        return self._replace(mutes=mutes, run=runvalues.named(self.run))

    def encode(self) -> tuple[float, ...]:
        """[N_FLAGS] numbers whose maximum over ranks is what `decode` takes."""
        fares = (float(self.errors), float(self.dropped), float(not self.active), self.offer)
        return (*fares, *encode(self.mutes), *runvalues.encode(self.run))

    @classmethod
    def decode(cls, numbers: Sequence[float]) -> Flags:
        """From the largest of all ranks'; -inf where nobody has sent any."""
        errors, dropped, inactive, offer, *said = numbers
        return cls(
            errors=int(max(errors, 0)),
            dropped=int(max(dropped, 0)),
            active=not inactive > 0,
            offer=offer,
            mutes=tuple(decode(said[:N_MUTES])),
            run=runvalues.decode(said[N_MUTES:]),
        )
