"""The kernel of `unclipped_pass`: one token behind the other, in float64."""

import math
from typing import Any

import numpy as np
from numba import njit, types

from klmonitor.summary import fields
from klmonitor.summary.numba_signatures import counts

# The compiler sees globals as constants.
LARGEST, FAR = fields.LARGEST_SEQUENCE, math.log(fields.FAR_RATIO)


def _add_unclipped(policy, old, mask, advantages, sums):
    """Add what enters the loss to the sums of `unclipped`, in place.

    Args:
        policy: log-probs of the policy, nats, [N].
        old: and of what the objective compares it with.
        mask: uint8 [N], 1 where a token counts; empty: all do.
        advantages: of each token, float64 [N].
        sums: [5], in the order of `unclipped.NAMES`.
    """
    for t in range(len(policy)):
        d, weight = np.float64(policy[t]) - np.float64(old[t]), advantages[t]
        if not (counts(mask, t) and abs(d) < math.inf and abs(weight) < math.inf):
            continue
        bounded = min(d, LARGEST)
        enters = abs(weight) * math.exp(min(bounded, FAR) if weight > 0 else bounded)
        sums[0] += 1
        sums[1] += enters
        if weight < 0 and d >= FAR:
            sums[2] += 1
            sums[3] += enters
            sums[4] += bounded


add_unclipped: Any = njit(_add_unclipped, cache=True, nogil=True)
_values, _floats = types.float32[::1], types.float64[::1]
TYPES = ((_values, _values, types.uint8[::1], _floats, _floats),)
"""Of `add_unclipped`; nothing else is ever compiled."""
