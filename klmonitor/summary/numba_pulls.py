"""The kernel of `pull_pass`: the sums of `pulls`, one sequence behind the other.

A scalar loop over terms whose every token has a c of its own, by the table of `klmonitor.penalty`.
All arithmetic is float64.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types

from klmonitor.summary import fields
from klmonitor.summary.fields import PULL, PULL_GRAM, PULL_TERMS
from klmonitor.summary.numba_kernel import inner
from klmonitor.summary.numba_signatures import counts

ESTIMATORS = ("k1", "k2", "k3", "abs", "square")
K1, K2, K3, ABS, _ = range(len(ESTIMATORS))
RATIOS = (None, "detached", "differentiated")
NO_RATIO, _, DIFFERENTIATED = range(len(RATIOS))
# The compiler sees globals as constants.
LARGEST = fields.LARGEST_RATIO
FIRST_TERM, FIRST_PRODUCT, N_TERMS = PULL[PULL_TERMS[0]], PULL[PULL_GRAM[0]], len(PULL_TERMS)
(TOKENS, SEQUENCES, WEIGHED, BETA, SIZE, DEAD, OPPOSITE, FAR, LOST, REWARDED, REWARD, PAID,
 OVERRULED, GIVEN_UP) = (PULL[name] for name in fields.PULL_SUMS)  # fmt: skip


@inner
def sign(x):
    """1, 0 or -1."""
    return (1.0 if x > 0 else 0.0) - (1.0 if x < 0 else 0.0)


@inner
def value_and_slope(estimator, d):
    """F and f' of `klmonitor.penalty`."""
    if estimator == K1:
        return -d, -1.0
    if estimator == K2:
        return 0.5 * d * d, d
    if estimator == K3:
        grown = math.expm1(d)
        return grown - d, grown
    if estimator == ABS:
        return abs(d), sign(d)
    return d * d, 2.0 * d


@inner
def coefficient(term, d, log_ratio):
    """The c of a token, without beta."""
    estimator, reward, ratio, clamp, clamp_d, straight = term
    f, slope = value_and_slope(estimator, min(max(d, -clamp_d), clamp_d))
    difference = -d if estimator == K3 else f - slope
    if abs(d) > clamp_d:
        slope, difference = 0.0, f
    if abs(f) > clamp:
        f = clamp * sign(f)
        slope, difference = 0.0, f
    if straight:
        slope, difference = d, f - d
    c = -slope
    if reward:
        c = f
    elif ratio == DIFFERENTIATED:
        c = difference
    return c if ratio == NO_RATIO else c * math.exp(log_ratio)


def _add_pulls(q, p, trained, drew, mask, columns, offsets, advantages, term, beta, observed, sums):
    """Add what a term pulls of some tokens to a pair's sums, in place.

    Args:
        q: log-probs of the pair's q, nats, [N].
        p: of its p.
        trained: of the policy that is trained.
        drew: of that which its ratio is to.
        mask: uint8 [N], 1 where a token counts; empty: all do.
        columns: tokens of each sequence, if they are the same.
        offsets: else first token of each sequence and where the last ends, which may be beyond N,
            int64 [sequences + 1]; or empty.
        advantages: of each token, float64 [N]; or empty: none are looked at.
        term: estimator, in the reward, ratio, clamp, clamp of d, straight through.
        beta: the term's weight.
        observed: whether it was observed.
        sums: [PULLS].
    """
    tokens, of = len(q), np.empty(N_TERMS)
    for sequence in range(offsets.size - 1 if offsets.size else tokens // columns):
        begin, end = sequence * columns, (sequence + 1) * columns
        if offsets.size:
            begin, end = offsets[sequence], min(offsets[sequence + 1], tokens)
        of[:] = 0.0
        n = 0
        for t in range(begin, end):
            d = np.float64(p[t]) - np.float64(q[t])
            log_ratio = min(np.float64(trained[t]) - np.float64(drew[t]), LARGEST)
            if not (counts(mask, t) and abs(d) < math.inf and abs(log_ratio) < math.inf):
                continue
            c = coefficient(term, d, log_ratio)
            if not abs(c) < math.inf:
                continue
            n += 1
            w = math.exp(log_ratio)
            of[0] += w
            of[1] -= w * d
            of[2] += w * d * d
            of[3] += c
            of[4] -= c * d
            dead = c == 0 and d != 0
            sums[SIZE] += abs(c)
            sums[DEAD] += dead
            sums[OPPOSITE] += c * d > 0
            sums[FAR] += abs(d)
            sums[LOST] += abs(d) if dead else 0.0
            reward = advantages[t] * w if advantages.size else 0.0
            if not 0 < abs(reward) < math.inf:
                continue
            pull = beta * c
            overruled = pull * reward > 0 and abs(pull) > abs(reward)
            sums[REWARDED] += 1
            sums[REWARD] += abs(reward)
            sums[PAID] += abs(pull)
            sums[OVERRULED] += overruled
            sums[GIVEN_UP] += overruled and d > 0
        if not n:
            continue
        sums[TOKENS] += n
        sums[SEQUENCES] += 1
        if observed:
            sums[WEIGHED] += n
            sums[BETA] += n * beta
        place = FIRST_PRODUCT
        for a in range(N_TERMS):
            sums[FIRST_TERM + a] += of[a]
            for b in range(a, N_TERMS):
                sums[place] += of[a] * of[b]
                place += 1


add_pulls: Any = njit(_add_pulls, cache=True, nogil=True)
_values = types.float32[::1]
_term = types.Tuple(
    (types.int64, types.boolean, types.int64, types.float64, types.float64, types.boolean)
)
TYPES = (
    (
        *(_values, _values, _values, _values, types.uint8[::1], types.int64, types.int64[::1]),
        *(types.float64[::1], _term, types.float64, types.boolean, types.float64[::1]),
    ),
)
"""Of `add_pulls`; nothing else is ever compiled."""
