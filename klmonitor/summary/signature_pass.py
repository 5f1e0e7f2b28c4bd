"""The signatures of causes on the CPU, compiled by Numba: `numba_signatures` on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from klmonitor.pairs import PAIR_INDEX, POLICIES, POLICY_INDEX, Pair
from klmonitor.summary.arrays import ids, narrow
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extras import Extras
from klmonitor.summary.numba_signatures import add_sequences
from klmonitor.summary.state import Summary

NO_VALUES = np.empty(0, np.float32)


def fits(batch: TokenBatch) -> bool:
    """Whether the kernel can take a batch on the CPU: any, what it cannot read is copied."""
    return True


def add(
    state: Summary,
    batch: TokenBatch,
    pairs: Sequence[Pair],
    one: int,
    extras: Extras,
    rows: int,
    columns: int,
) -> None:
    """Add the signatures of a batch's first rows to a state, in place.

    Arguments as for `signature_sums.signatures`.
    """
    first, entropy = batch.first(rows, columns).arrays, extras.entropy
    known = first.narrow
    add_sequences(
        tuple([known.get(name, NO_VALUES) for name in POLICIES]),
        *(first.mask, columns, batch.arrays.offsets),
        NO_VALUES if entropy is None else narrow(entropy[:rows, :columns]),
        ids(extras.lag),
        POLICY_INDEX["old" if "old" in known else "policy"],
        POLICY_INDEX["ref"],
        *(_table(tuple(pairs)), one, pairs[one].q == "rollout"),
        state.arrays["signatures"],
    )


@cache
def _table(pairs: tuple[Pair, ...]) -> NDArray[np.int64]:
    """Where each pair's sums and log-probs are, [P, 3]."""
    places = [(PAIR_INDEX[x.name], POLICY_INDEX[x.q], POLICY_INDEX[x.p]) for x in pairs]
    return np.array(places, np.int64)
