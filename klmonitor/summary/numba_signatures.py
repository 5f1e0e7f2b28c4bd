"""The kernel of `signature_pass`: the sums of `signatures`, one sequence behind the other.

A scalar loop. It needs no look at all of a batch beforehand and makes nothing of a batch's size, so
that it costs what the tokens cost. Values are float32, as the plain pass takes them, and all
arithmetic is float64.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types

from klmonitor.summary import fields
from klmonitor.summary.fields import SIGNATURE
from klmonitor.summary.numba_kernel import SMALLEST_EXPONENT, exp_of, inner, k3_of

# The compiler sees globals as constants.
SENTINEL, PLACEHOLDER, BLANK, HIGH = fields.SENTINEL, fields.PLACEHOLDER, fields.BLANK, fields.HIGH
ASIDE, END_OFF, FAR = fields.ASIDE, fields.END_OFF, math.log(fields.SEQUENCE_RATIO)
CERTAIN, SURE, EDGES = fields.CERTAIN, fields.SURE, fields.PROBABILITIES
CLAMP, LARGEST_FLOAT, LARGEST_SEQUENCE = fields.CLAMP, fields.LARGEST_FLOAT, fields.LARGEST_SEQUENCE
SHORTEST_PADDING, SHORTEST_CERTAIN = fields.SHORTEST_PADDING, fields.SHORTEST_CERTAIN
RARE, LAST_LAG, N_RATIO_SUMS = fields.RARE, len(fields.LAGS) - 1, len(fields.RATIO_SUMS)

(TOKENS, SEQUENCES, UP, DOWN, ROWS, PADDED, PADDED_ROWS, ENTROPIC, ENTROPY, FORESEEN, OTHER) = (
    SIGNATURE[name]
    for name in (
        *("tokens", "sequences", "up", "down", "rows", "padded", "padded_rows"),
        *("entropic", "entropy", "sure", "sure_other"),
    )
)
ZERO_Q, ZERO_P, BLANK_Q, BLANK_P, HUGE_Q, HUGE_P, HIGH_Q, HIGH_P = (
    SIGNATURE[f"{what}_{policy}"] for what in ("zero", "blank", "huge", "high") for policy in "qp"
)
ABOVE, BELOW, RATIO, RATIO2, LARGEST = (
    SIGNATURE[name] for name in ("ratio_above", "ratio_below", "ratio", "ratio2", "largest")
)
QQ, PP, QP, BEFORE, AFTER = (SIGNATURE[name] for name in ("qq", "pp", "qp", "before", "after"))
FIRST_OFF, LAST_OFF, LONE_OFF = (SIGNATURE[f"{name}_off"] for name in ("first", "last", "lone"))
BIN_TOKENS, BIN_SIZE, BIN_LEFT = (SIGNATURE[f"{name}_0"] for name in ("n", "abs", "left"))
D, GAP, SURPRISE, SLOPE, SHIFT, CONTEXT, WHO, FIRST, LAST, MIDDLE, LONE, LAG = (
    SIGNATURE[f"{ratio}/a"]
    for ratio in (
        *("d", "gap", "surprise", "slope", "shift", "context", "who"),
        *("first", "last", "middle", "lone", fields.LAGS[0]),
    )
)


@inner
def counts(mask, t):
    """Whether a token counts."""
    return not mask.size or mask[t] != 0


@inner
def add_ratio(row, first, a, b):
    """Add a sequence's part of a ratio to its `fields.RATIO_SUMS`."""
    row[first] += a
    row[first + 1] += b
    row[first + 2] += a * a
    row[first + 3] += a * b
    row[first + 4] += b * b


@njit
def stretch(log_probs, mask, first, last, step):
    """Tokens of the stretch of one value that is padding, from one end of a sequence; or 0."""
    end, run, alike, counted = -1, 0, 0, 0
    for t in range(first, last, step):
        if not counts(mask, t):
            continue
        if end < 0:
            end = t
        same = True
        for x in log_probs:
            same = same and (not x.size or x[t] == x[end])
        if same and alike == counted:
            run += 1
        elif run < SHORTEST_PADDING:
            return 0
        alike += same
        counted += 1
    if run < SHORTEST_PADDING:
        return 0
    certain = True
    for x in log_probs:
        certain = certain and (not x.size or abs(x[end]) < CERTAIN)
    rare = alike - run <= RARE * (counted - run)
    return run if run < counted and rare and (run >= SHORTEST_CERTAIN or not certain) else 0


@njit
def count_odd(q, p, row):
    """Count what is no log-prob of one token, of which one or two are not below 0 or far from it.

    Returns whether it is summed all the same.
    """
    row[HUGE_Q] += SENTINEL <= abs(q) < math.inf
    row[HUGE_P] += SENTINEL <= abs(p) < math.inf
    if not (abs(q) < SENTINEL and abs(p) < SENTINEL):
        return False
    row[ZERO_Q] += q == 0 and p < PLACEHOLDER
    row[ZERO_P] += p == 0 and q < PLACEHOLDER
    row[BLANK_Q] += q == 0 and p < BLANK
    row[BLANK_P] += p == 0 and q < BLANK
    row[HIGH_Q] += q > HIGH
    row[HIGH_P] += p > HIGH
    return True


@njit
def add_within(q, p, mask, begin, end, centre, n, row):
    """Add the products of log q and log p less their means, now and one position on."""
    qq, pp, qp, before, after = 0.0, 0.0, 0.0, 0.0, 0.0
    bend, bends, turned, drift = 0.0, 0.0, 0.0, 0.0
    x0, y0, e0, follows = 0.0, 0.0, 0.0, False
    for t in range(begin, end):
        if not (counts(mask, t) and abs(q[t]) < SENTINEL and abs(p[t]) < SENTINEL):
            follows = False
            continue
        x, y = q[t] - centre[0], p[t] - centre[1]
        e = y * y - x * x  # twice the bend
        qq, pp, qp = qq + x * x, pp + y * y, qp + x * y
        bend, bends = bend + e, bends + e * e
        if follows:
            before, after = before + x * y0, after + y * x0
            turned, drift = turned + (e * y0 - y * e0), drift + (y0 - y)
        x0, y0, e0, follows = x, y, e, True
    for column, product in ((QQ, qq), (PP, pp), (QP, qp), (BEFORE, before), (AFTER, after)):
        row[column] += product
    add_ratio(row, SHIFT, before - after, (qq + pp) / 2)
    add_ratio(row, SLOPE, (pp - qq) / 2, (qq + pp) / 4 + qp / 2)
    mean = bend / n  # taken out of the sums: the bend has one of its own
    add_ratio(row, CONTEXT, (turned - mean * drift) / 2, max(bends - bend * mean, 0.0) / 4)


@njit
def add_sequence(q, p, trainer, ref, mask, entropy, begin, end, closely, engine, lag, row):
    """Add a sequence's tokens, from `begin` to `end`, to a pair's row."""
    n, up, down, total, gap, k3_total, largest = 0, 0, 0, 0.0, 0.0, 0.0, 0.0
    entropic, entropies, surprise = 0, 0.0, 0.0
    q_total, p_total, size_total, first, last, near, known = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0
    for t in range(begin, end):
        if not counts(mask, t):
            continue
        x, y = np.float64(q[t]), np.float64(p[t])
        if not (-SENTINEL < x < 0 and -SENTINEL < y < 0) and not count_odd(x, y, row):
            continue
        d, size = y - x, abs(y - x)
        up, down, total = up + int(d > ASIDE), down + int(d < -ASIDE), total + d
        bounded = min(max(d, SMALLEST_EXPONENT), CLAMP)
        k3 = k3_of(bounded) + (bounded - d)
        k3_total, largest = k3_total + k3, max(largest, k3)
        if entropy.size and abs(entropy[t]) < math.inf and abs(trainer[t]) < SENTINEL:
            entropic += 1
            entropies += entropy[t]
            surprise -= np.float64(trainer[t]) + entropy[t]
            if entropy[t] <= SURE:
                probability = exp_of(min(np.float64(trainer[t]), LARGEST_FLOAT))
                row[FORESEEN] += 1 - probability if probability >= 0.5 else 0.0
                row[OTHER] += probability < 0.5
        if closely:
            gap += k3 + d if d <= LARGEST_FLOAT else math.expm1(LARGEST_FLOAT)
            q_total, p_total, size_total = q_total + x, p_total + y, size_total + size
            first, last = size if not n else first, size
            probability, place = exp_of(min(x, 0.0)), 0
            for edge in EDGES:
                place += probability >= edge
            row[BIN_TOKENS + place] += 1
            row[BIN_SIZE + place] += size
            row[BIN_LEFT + place] += 1 - probability
            if engine and ref.size and abs(ref[t]) < SENTINEL:
                near += (x - ref[t]) ** 2 - d * d
                known += 1
        n += 1
    if not n:
        return
    ratio = math.exp(min(max(total, -LARGEST_SEQUENCE), LARGEST_SEQUENCE))
    row[TOKENS] += n
    row[SEQUENCES] += 1
    row[UP] += up
    row[DOWN] += down
    row[ABOVE] += total > FAR
    row[BELOW] += total < -FAR
    row[RATIO] += ratio
    row[RATIO2] += ratio * ratio
    row[LARGEST] += largest
    row[ENTROPIC] += entropic
    row[ENTROPY] += entropies
    add_ratio(row, SURPRISE, surprise, entropic)
    if closely:
        add_ratio(row, D, total, n)
        add_ratio(row, GAP, gap, n)
        add_within(q, p, mask, begin, end, (q_total / n, p_total / n), n, row)
    if not engine:
        return
    add_ratio(row, WHO, near, known)
    if lag >= 0:
        add_ratio(row, LAG + N_RATIO_SUMS * min(lag, LAST_LAG), k3_total, n)
    if n == 1:
        add_ratio(row, LONE, last, 1)
        row[LONE_OFF] += last > END_OFF
    else:
        add_ratio(row, FIRST, first, 1)
        add_ratio(row, LAST, last, 1)
        add_ratio(row, MIDDLE, size_total - first - last, n - 2)
        row[FIRST_OFF] += first > END_OFF
        row[LAST_OFF] += last > END_OFF


def _add_sequences(
    log_probs, mask, columns, offsets, entropy, lags, trainer, ref, pairs, one, engine, sums
):
    """Add the signatures of the sequences that end within some tokens to a state's, in place.

    Args:
        log_probs: of each of `pairs.POLICIES`, nats, [N], or empty.
        mask: uint8 [N], 1 where a token counts; empty: all do.
        columns: tokens of each sequence, if they are the same.
        offsets: else first token of each sequence and where the last ends, which may be beyond N,
            int64 [sequences + 1]; or empty.
        entropy: of the trainer's policy, nats, [N], or empty.
        lags: weight updates since each sequence was sampled, int64 [sequences], or empty.
        trainer: which policy it is, of `log_probs`.
        ref: and the reference.
        pairs: row of `sums`, q and p of each pair, int64 [P, 3].
        one: the pair that is looked at closely.
        engine: whether its q is the engine's.
        sums: [pairs, SIGNATURES].
    """
    tokens = log_probs[pairs[0, 1]].size
    for sequence in range(offsets.size - 1 if offsets.size else tokens // columns):
        begin, end = sequence * columns, (sequence + 1) * columns
        if offsets.size:
            begin, end = offsets[sequence], offsets[sequence + 1]
        if end > tokens:  # it is cut
            break
        while begin < end and not counts(mask, begin):
            begin += 1
        while begin < end and not counts(mask, end - 1):
            end -= 1
        if begin == end:
            continue
        padded = max(
            stretch(log_probs, mask, begin, end, 1),
            stretch(log_probs, mask, end - 1, begin - 1, -1),
        )
        lag = max(lags[sequence], 0) if lags.size else -1
        for k in range(len(pairs)):
            row, q, p = sums[pairs[k, 0]], log_probs[pairs[k, 1]], log_probs[pairs[k, 2]]
            row[ROWS] += 1
            row[PADDED] += padded
            row[PADDED_ROWS] += padded > 0
            add_sequence(
                q, p, log_probs[trainer], log_probs[ref], mask, entropy, begin, end,
                k == one, k == one and engine, lag, row,
            )  # fmt: skip


add_sequences: Any = njit(_add_sequences, cache=True, nogil=True)
_values, _ids = types.float32[::1], types.int64[::1]
TYPES = (
    (
        *(types.UniTuple(_values, 4), types.uint8[::1], types.int64, _ids, _values, _ids),
        *(types.int64, types.int64, types.int64[:, ::1], types.int64, types.boolean),
        types.float64[:, ::1],
    ),
)
"""Of `add_sequences`; nothing else is ever compiled."""
