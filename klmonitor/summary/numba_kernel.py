"""The kernel of `numba_pass`: the tokens of a batch into one pair's part of a state.

Tokens are taken in short blocks that stay in the first cache. Within a block every step is a plain
loop over arrays (differences, k3, inner products, buckets), which the compiler turns into vector
instructions; a token that is not finite or beyond `CORE_RADIUS` sends its block the careful way.
All arithmetic is float64.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from klmonitor.summary import fields
from klmonitor.summary.collected import GOLDEN, SCALES, SOURCES, TAIL
from klmonitor.summary.fields import COLUMN, COUNTS, GRAM, MOMENTS, PER_SEQUENCE, WEIGHTED

# The compiler sees globals as constants.
BLOCK = 256
CLAMP, CORE_RADIUS = fields.CLAMP, fields.CORE_RADIUS
POSITIVE, TELLING_BELOW = np.float32(fields.POSITIVE_TOLERANCE), np.float32(-fields.TELLING)
LAST_BUCKET, CENTRE = fields.BUCKETS + 1, fields.CENTRE
DROPPED_BITS = 52 - fields.MANTISSA_BITS
EXPONENT_AND_KEPT = (1 << (11 + fields.MANTISSA_BITS)) - 1
BELOW_LOWEST = ((1023 + fields.LOW_EXPONENT) << fields.MANTISSA_BITS) - 1
MAGNITUDE = (1 << 63) - 1

FEATURES = ("one", "d", "abs", "d2", "k3", "w")
ONE, D, ABS, D2, K3, W = range(len(FEATURES))
N_MOMENTS, N_WEIGHTED = len(MOMENTS), len(WEIGHTED)
LEFT, RIGHT = (
    tuple(FEATURES.index(getattr(moment, side)) for moment in (*MOMENTS, *WEIGHTED))
    for side in ("left", "right")
)
CORE, WEIGHTS = COLUMN["core/n"], COLUMN[WEIGHTED[0].name]
NAN, INF, CLAMPED, UNWEIGHTED, ZERO, ON_POLICY, SEQUENCES, PROMPTED = (
    COLUMN[name] for name in COUNTS
)
N_COLUMNS = len(fields.COLUMNS)
FIRST_PRODUCT = COLUMN[GRAM[0]]
SOURCE_COLUMNS, PER_SEQUENCE_SCALES, N_SUMS = tuple(SOURCES), SCALES, len(PER_SEQUENCE)

# e^x = 2^n e^y with |y| <= ln 2 / 2, ln 2 in two parts (Cody and Waite, Software Manual for the
# Elementary Functions, 1980, chapter 6); e^y - 1 - y = y^2/2! + ... + y^13/13!, whose rest is below
# 1e-16 of it.
PER_LN2 = 1 / math.log(2)
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
ROUNDER = 1.5 * 2.0**52
T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13 = (1 / math.factorial(k) for k in range(2, 14))
SMALLEST_EXPONENT = -700.0

inner = njit(forceinline=True, fastmath={"contract"})
"""Rounds as written, but for fused multiplications and additions."""
summing = njit(fastmath={"contract", "reassoc", "nsz"})
"""Sums in the order that suits the machine, the same for the same number of values."""


def bit_cast(given, wanted):
    """A function that reads the bits of one type as another of the same size."""

    @intrinsic
    def cast(typing, value):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(wanted))

        return wanted(given), generate

    return cast


bits, from_bits = bit_cast(types.float64, types.int64), bit_cast(types.int64, types.float64)
short_bits = bit_cast(types.float32, types.int32)


@inner
def narrow(x):
    """As a float32."""
    return np.float32(x)


@inner
def parts(x):
    """2^n, y, and e^y - 1 - y, for |x| <= 700."""
    shifted = x * PER_LN2 + ROUNDER
    n = shifted - ROUNDER
    power = from_bits((bits(shifted) << 52) + (1023 << 52))
    y = (x - n * LN2_HIGH) - n * LN2_LOW
    y2 = y * y
    y4 = y2 * y2
    low = (T2 + y * T3) + y2 * (T4 + y * T5)
    middle = (T6 + y * T7) + y2 * (T8 + y * T9)
    high = (T10 + y * T11) + y2 * (T12 + y * T13)
    return power, y, y2 * (low + y4 * (middle + y4 * high))


@inner
def k3_of(d):
    """e^d - 1 - d; where 2^n = 1 nothing cancels."""
    power, y, rest = parts(d)
    return power * rest + (power * y - d) + (power - 1.0)


@inner
def exp_of(x):
    """e^x."""
    power, y, rest = parts(max(x, SMALLEST_EXPONENT))
    return power + power * (y + rest)


@njit
def load(q, p, mask, d, kept):
    """Write d = p - q, 0 where masked whatever lies there, and which tokens count.

    Returns the largest |d|, as bits.
    """
    largest = np.int64(0)
    if not mask.size:
        kept[:] = True
        for i in range(d.size):
            d[i] = (np.float64(p[i]) - np.float64(q[i])) + 0.0  # -0 becomes 0
            largest = max(largest, bits(d[i]) & MAGNITUDE)
        return largest
    for i in range(d.size):
        kept[i] = mask[i] != 0
        difference = bits((np.float64(p[i]) - np.float64(q[i])) + 0.0)
        d[i] = from_bits(difference & -np.int64(kept[i]))
        largest = max(largest, bits(d[i]) & MAGNITUDE)
    return largest


@njit
def features(d, magnitude, square, k3):
    """What is summed of every token with |d| <= 700."""
    for i in range(d.size):
        magnitude[i] = abs(d[i])
        square[i] = d[i] * d[i]
        k3[i] = k3_of(d[i])


@summing
def inner_product(a, b):
    """Sum of a[i] b[i]."""
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@summing
def total(a):
    """Sum of a[i]."""
    found = 0.0
    for i in range(a.size):
        found += a[i]
    return found


@inner
def ordered(pattern):
    """Bits of a float64 as an integer that is ordered as the numbers are; and back."""
    return pattern ^ ((pattern >> 63) & MAGNITUDE)


@njit
def extent(d):
    """The largest and the smallest; compared as integers, in any order of instructions."""
    high, low = ordered(bits(d[0])), ordered(bits(d[0]))
    for i in range(d.size):
        key = ordered(bits(d[i]))
        high = max(high, key)
        low = min(low, key)
    return from_bits(ordered(high)), from_bits(ordered(low))


@njit
def buckets(d, index):
    """Write the histogram bucket of each d: its leading bits (`pairsums.buckets`)."""
    for i in range(d.size):
        pattern = bits(d[i])
        bucket = ((pattern >> DROPPED_BITS) & EXPONENT_AND_KEPT) - BELOW_LOWEST
        bucket = min(max(bucket, 0), LAST_BUCKET)
        index[i] = np.int32((bucket ^ (pattern >> 63)) + CENTRE)


@njit
def count(kept):
    """How many are True."""
    found = np.int64(0)
    for i in range(kept.size):
        found += np.int64(kept[i])
    return found


@njit
def zeros(d):
    """How many are 0."""
    found = 0
    for i in range(d.size):
        found += d[i] == 0.0
    return found


@njit
def weigh(q, sampler, kept, w):
    """Write w = q(x) / sampler(x), unclamped but for overflow; returns how many have none."""
    unweighted = 0
    for i in range(w.size):
        x = np.float64(q[i]) - np.float64(sampler[i])
        usable = abs(x) < math.inf
        w[i] = exp_of(min(x, CLAMP)) if usable and kept[i] else 0.0
        unweighted += kept[i] and not usable
    return unweighted


@njit
def moments(scratch, n, row, first):
    """Add the inner products of `fields.MOMENTS` to columns of a row."""
    for m in range(N_MOMENTS):
        left = scratch[LEFT[m], :n]
        if RIGHT[m] == ONE:
            row[first + m] += total(left)
        else:
            row[first + m] += inner_product(left, scratch[RIGHT[m], :n])


@njit
def sum_near_and_far(scratch, kept, row):
    """The careful way: count what is not finite, sum the near tokens and the far ones apart.

    `scratch[D]` holds d as loaded; afterwards 0 where it is not finite, which is kept no more.
    """
    n = kept.size
    d, far_k3 = scratch[D, :n].copy(), np.zeros(n)
    for i in range(n):
        if not abs(d[i]) < math.inf:
            row[NAN if math.isnan(d[i]) else INF] += 1
            d[i], kept[i] = 0.0, False
        elif abs(d[i]) > CORE_RADIUS:
            row[TAIL] += 1
            row[CLAMPED] += d[i] > CLAMP
            far_k3[i] = math.expm1(min(d[i], CLAMP)) - d[i]
    row[CORE] += count(kept) - np.count_nonzero(far_k3)
    for first, far in ((TAIL, True), (CORE, False)):
        for i in range(n):
            scratch[D, i] = d[i] if far == (abs(d[i]) > CORE_RADIUS) else 0.0
        features(scratch[D, :n], scratch[ABS, :n], scratch[D2, :n], scratch[K3, :n])
        if far:
            scratch[K3, :n] = far_k3
        moments(scratch, n, row, first + 1)
    scratch[D, :n] = d
    scratch[K3, :n] += far_k3


@njit
def sum_block(q, p, sampler, mask, weighted, scratch, kept, row):
    """Add a block's sums to its sequence's row; leaves d in scratch and which tokens have one."""
    n = kept.size
    d = scratch[D, :n]
    if load(q, p, mask, d, kept) <= bits(CORE_RADIUS):  # nan and infinity have larger bits
        row[CORE] += count(kept)
        features(d, scratch[ABS, :n], scratch[D2, :n], scratch[K3, :n])
        moments(scratch, n, row, CORE + 1)
    else:
        sum_near_and_far(scratch, kept, row)
    row[ZERO] += zeros(d) - (n - count(kept))
    if weighted:
        w = scratch[W, :n]
        row[UNWEIGHTED] += weigh(q, sampler, kept, w)
        row[WEIGHTS] += total(w)
        for m in range(N_MOMENTS + 1, N_MOMENTS + N_WEIGHTED):
            row[WEIGHTS + m - N_MOMENTS] += inner_product(w, scratch[RIGHT[m], :n])


@njit
def count_block(d, kept, index, counts):
    """Count the buckets of the tokens that are kept; the others lie at 0."""
    buckets(d, index)
    for i in range(d.size):
        counts[index[i]] += 1
    counts[CENTRE] -= d.size - count(kept)


@njit
def kept_extent(d, kept):
    """The largest and the smallest of those kept; -inf and inf: none is."""
    high, low = extent(d)
    if high > 0 and low < 0:  # then neither is that of a token that is not kept
        return high, low
    high, low = -math.inf, math.inf
    for i in range(d.size):
        if kept[i]:
            high, low = max(high, d[i]), min(low, d[i])
    return high, low


@njit
def insert(records, key, place):
    """Open a row for a key among those kept, largest first, after its equals; returns its index."""
    at = records.shape[0] - 1
    while at > 0 and records[at - 1, 0] < key:
        records[at] = records[at - 1]
        at -= 1
    records[at, 0] = key
    records[at, 1], records[at, 2] = place
    return at


@njit
def keep_tokens(d, sign, q, p, token_ids, first, place, origin, tokens):
    """Put tokens of a block, from the flat index `first` on, among the extreme ones of a tail."""
    sequence, prompt, begin = origin
    least = max(tokens[-1, 0], 0.0)
    for i in range(d.size):
        if sign * d[i] > least:
            at, flat = insert(tokens, sign * d[i], place), first + i
            tokens[at, 3] = sequence
            tokens[at, 4] = flat - begin
            tokens[at, 5] = q[i]
            tokens[at, 6] = p[i]
            tokens[at, 7] = token_ids[flat] if token_ids.size else -1
            tokens[at, 8] = prompt
            least = max(tokens[-1, 0], 0.0)


@njit
def per_sequence(row, weighted, prompted, own):
    """Write (T, S1, S2, S3) of a sequence, and fill the columns that follow from them."""
    for i in range(N_SUMS):
        column = SOURCE_COLUMNS[i]
        own[i] = PER_SEQUENCE_SCALES[i] * (row[column] + row[TAIL + column])
    row[ON_POLICY] = 0.0 if weighted else own[0]
    row[SEQUENCES] = own[0] > 0
    row[PROMPTED] = own[0] > 0 and prompted
    at = FIRST_PRODUCT
    for i in range(N_SUMS):
        for j in range(i, N_SUMS):
            row[at] = own[i] * own[j]
            at += 1


@njit
def count_values(x, mask, counts):
    """Add to the first three of one policy's counts: of float32 values all, not 0, above 0."""
    n, nonzero, positive = x.size, 0, 0
    if mask.size:
        n = 0
        for i in range(x.size):
            kept, value = np.int64(mask[i]), narrow(x[i])
            n += kept
            nonzero += kept & (value != 0)
            positive += kept & (value > POSITIVE)
    else:
        for i in range(x.size):
            value = narrow(x[i])
            nonzero += value != 0
            positive += value > POSITIVE
    for i, found in enumerate((n, nonzero, positive)):
        counts[i] += found


@njit
def count_formats(x, mask, columns, rows, width, counts):
    """Add to the rest of them: how many values fit a format, of `width` tokens of some rows."""
    checked, bf16, fp16 = 0, 0, 0
    for row in range(rows):
        for i in range(row * columns, row * columns + width):
            value = narrow(x[i])
            telling = value < TELLING_BELOW and (not mask.size or mask[i] != 0)
            pattern = short_bits(value)
            checked += telling
            bf16 += telling and not pattern & 0xFFFF
            fp16 += telling and not pattern & 0x1FFF
    for i, found in enumerate((checked, bf16, fp16)):
        counts[3 + i] += found


def _add_pair(
    q, p, sampler, mask, columns, before, offsets, token_ids, prompt_ids, group, groups, weighted,
    place, uncounted, checked, policies, sums, histogram, prompts, maxima, tokens, sequences,
):  # fmt: skip
    """Add every token of a batch to one pair's part of a state, in place, and to its policies'.

    Args:
        q: log-probs of the pair's first policy, nats, [N], float32 or float64.
        p: of its second policy.
        sampler: of the policy that drew the tokens; read only if `weighted`.
        mask: uint8 [N], 1 where a token counts; empty: all do.
        columns: tokens of each sequence, if they are the same.
        before: sequences of the batch before these (of a part of one).
        offsets: else first token of each sequence and N, int64 [sequences + 1]; or empty.
        token_ids: int64 [N] or empty.
        prompt_ids: int64 [sequences] or empty.
        group: row of the sequences' group, if it is the same.
        groups: else row of each sequence's, int64 [sequences]; or empty.
        weighted: whether another policy than q drew the tokens.
        place: rank and micro-batch.
        uncounted: row of `policies` of q and of p; -1: it is counted already.
        checked: rows, and leading tokens of each, whose bits are looked at.
        policies: [policies, POLICY_COUNTS], as everything below of `state.Summary`.
        sums: [groups, COLUMNS], for this pair, as those that follow.
        histogram: [HISTOGRAM].
        prompts: [groups, buckets, 4].
        maxima: [2].
        tokens: [2, top, TOKEN_FIELDS].
        sequences: [top, SEQUENCE_FIELDS].
    """
    scratch, keep = np.empty((len(FEATURES), BLOCK)), np.empty(BLOCK, np.bool_)
    index, counts = np.empty(BLOCK, np.int32), np.zeros(histogram.size, np.int32)
    row, own = np.empty(N_COLUMNS), np.empty(N_SUMS)
    # Whatever may run out of memory is had by now: from here on all is added, or nothing.
    for x, policy in ((q, uncounted[0]), (p, uncounted[1])):
        if policy >= 0:
            count_formats(x, mask, columns, checked[0], checked[1], policies[policy])
    for sequence in range(offsets.size - 1 if offsets.size else q.size // columns):
        row[:] = 0.0
        begin, end = sequence * columns, (sequence + 1) * columns
        if offsets.size:
            begin, end = offsets[sequence], offsets[sequence + 1]
        if groups.size:
            group = groups[sequence]
        prompt = prompt_ids[sequence] if prompt_ids.size else -1
        if mask.size:  # what pads a sequence takes no time
            while end > begin and not mask[end - 1]:
                end -= 1
        for first in range(begin, end, BLOCK):
            last = min(first + BLOCK, end)
            d, kept, some_q, some_p = (
                scratch[D, : last - first], keep[: last - first], q[first:last], p[first:last]
            )  # fmt: skip
            some_mask = mask[first:last]
            for x, policy in ((some_q, uncounted[0]), (some_p, uncounted[1])):
                if policy >= 0:  # while they are in the first cache
                    count_values(x, some_mask, policies[policy])
            sum_block(some_q, some_p, sampler[first:last], some_mask, weighted, scratch, kept, row)
            count_block(d, kept, index, counts)
            high, low = kept_extent(d, kept)
            maxima[0], maxima[1] = max(maxima[0], high), max(maxima[1], -low)
            origin = (before + sequence, prompt, begin)
            if -low > max(tokens[0, -1, 0], 0.0):
                keep_tokens(d, -1.0, some_q, some_p, token_ids, first, place, origin, tokens[0])
            if high > max(tokens[1, -1, 0], 0.0):
                keep_tokens(d, 1.0, some_q, some_p, token_ids, first, place, origin, tokens[1])
        per_sequence(row, weighted, prompt_ids.size > 0, own)
        sums[group] += row
        if prompt_ids.size and prompts.shape[1]:
            mixed = (np.int64(prompt) * GOLDEN) >> 32  # wraps around, as it should
            prompts[group, (mixed & 0x7FFFFFFF) % prompts.shape[1]] += own
        key = abs(own[1])
        if own[0] > 0 and key > sequences[-1, 0]:
            at = insert(sequences, key, place)
            sequences[at, 3] = before + sequence
            sequences[at, 4], sequences[at, 5], sequences[at, 6] = own[0], own[1], own[3]
    histogram += counts


add_pair: Any = njit(_add_pair, cache=True, nogil=True)
_flags, _ids, _pair = types.uint8[::1], types.int64[::1], types.UniTuple(types.int64, 2)
_table, _floats = types.float64[:, ::1], types.float64[::1]
TYPES = tuple(
    (
        *(some[::1], some[::1], some[::1], _flags, types.int64, types.int64, _ids, _ids, _ids),
        *(types.int64, _ids, types.boolean, _pair, _pair, _pair, _table, _table, _floats),
        *(types.float64[:, :, ::1], _floats, types.float64[:, :, ::1], _table),
    )
    for some in (types.float32, types.float64)
)
"""Of `add_pair`: for log-probs of either size; nothing else is ever compiled."""
