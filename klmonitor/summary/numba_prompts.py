"""The kernel of `klmonitor.hooks.prompts`: one token behind the other."""

from typing import Any

import numpy as np
from numba import njit, types


def _fill_keys(ids, inside, factors, dropped, keys):
    """Write each row's key: its tokens times the factors of their places, modulo 2**64, cut.

    Args:
        ids: int64 [B, P].
        inside: int64 [B, P], 0 where a token does not belong to the prompt.
        factors: int64, by place; more than P.
        dropped: last bits of the sum that are left out.
        keys: int64 [B].
    """
    for row in range(len(ids)):
        place, total = 0, np.int64(0)
        for t in range(ids.shape[1]):
            if inside[row, t] != 0:
                place += 1
                total += (ids[row, t] + np.int64(1)) * factors[place]
        keys[row] = np.int64(np.uint64(total) >> np.uint64(dropped))


fill_keys: Any = njit(_fill_keys, cache=True, nogil=True)
_rows, _line = types.int64[:, ::1], types.int64[::1]
TYPES = ((_rows, _rows, _line, types.int64, _line),)
"""Of `fill_keys`; nothing else is ever compiled."""
