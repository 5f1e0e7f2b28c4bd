"""The kernel of `triton_pass`: a rectangle of tokens in, its row sums, extremes and buckets out.

It reads every log-prob once, computes in float64 and writes the sums of each row of its rectangle
to places of their own: no two programs add to one floating number, so the order of every sum is
fixed by the shape. Only the histogram is shared; its counts are integers, exact in any order.
"""

import math

import triton
import triton.language as tl

from klmonitor.summary import fields
from klmonitor.summary.fields import COLUMN, COUNTS, MOMENTS, POLICY_COUNTS, WEIGHTED

# Triton sees only globals of this type.
CLAMP = tl.constexpr(fields.CLAMP)
CORE_RADIUS = tl.constexpr(fields.CORE_RADIUS)
INFINITY = tl.constexpr(math.inf)
POSITIVE = tl.constexpr(fields.POSITIVE_TOLERANCE)
TELLING_BELOW = tl.constexpr(-fields.TELLING)

HISTOGRAM = tl.constexpr(fields.HISTOGRAM)
CENTRE = tl.constexpr(fields.CENTRE)
LAST_BUCKET = tl.constexpr(fields.BUCKETS + 1)
DROPPED_BITS = tl.constexpr(52 - fields.MANTISSA_BITS)
EXPONENT_AND_KEPT = tl.constexpr((1 << (11 + fields.MANTISSA_BITS)) - 1)
BELOW_LOWEST = tl.constexpr(((1023 + fields.LOW_EXPONENT) << fields.MANTISSA_BITS) - 1)

CORE = tl.constexpr(COLUMN["core/n"])
TAIL = tl.constexpr(COLUMN["tail/n"])
WEIGHT = tl.constexpr(COLUMN[WEIGHTED[0].name])
NAN, INF, CLAMPED, UNWEIGHTED, ZERO = (tl.constexpr(COLUMN[name]) for name in COUNTS[:5])

FEATURES = ("one", "d", "abs", "d2", "k3", "w")
ONE, D, ABS, D2, K3, W = (tl.constexpr(i) for i in range(len(FEATURES)))


def _digits(features):
    """A list of features as the octal digits of one number: old Tritons know no lists."""
    return tl.constexpr(sum(FEATURES.index(name) << 3 * i for i, name in enumerate(features)))


N_MOMENTS, N_WEIGHTED = tl.constexpr(len(MOMENTS)), tl.constexpr(len(WEIGHTED))
LEFT, RIGHT = _digits(m.left for m in MOMENTS), _digits(m.right for m in MOMENTS)
WEIGHTED_RIGHT = _digits(m.right for m in WEIGHTED)  # their left is the weight

POLICY_COLUMN = fields.N_TOKEN_COLUMNS
"""Where the counts of the pair's two policies follow the sums over tokens, first q's."""
N_COLUMNS = POLICY_COLUMN + 2 * len(POLICY_COUNTS)
Q_COUNTS = tl.constexpr(POLICY_COLUMN)
P_COUNTS = tl.constexpr(POLICY_COLUMN + len(POLICY_COUNTS))

SERIES_TERMS = tl.constexpr(14)
"""Of e^d - 1 - d = d^2/2! + d^3/3! + ...; what is left out is below 1e-17 of it for |d| <= 1/2."""

RUN_TIME = tuple(range(19))
"""The arguments that are not constants of the kernel."""


# Not specialised to values: it is built once for the dtypes of the log-probs, which takes seconds.
@triton.jit(do_not_specialize=RUN_TIME)
def sum_tokens(
    q_values,
    p_values,
    behaviour_values,
    mask_values,
    partial,
    extremes,
    histogram,
    n_rows,
    n_columns,
    q_stride,
    p_stride,
    behaviour_stride,
    mask_stride,
    checked_rows,
    checked_columns,
    masked,
    off_policy,
    count_q,
    count_p,
    copies: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Sum one rectangle; program (i, j) has the i-th rows and the j-th columns.

    Args:
        q_values: log q, any float dtype; rows `q_stride` apart, columns next to each other.
        p_values: log p.
        behaviour_values: log-probs of the sampler; read only if `off_policy`.
        mask_values: uint8, 0 where a token does not count; read only if `masked`.
        partial: float64 zeros [N_COLUMNS, column blocks, rows], the sums of each row of each block.
        extremes: float64 [2, rows, column blocks], the largest and smallest d that count.
        histogram: int32 [copies, HISTOGRAM], counts of d without those that are 0.
        n_rows: rows of the batch.
        n_columns: columns of the batch.
        q_stride: elements.
        p_stride: elements.
        behaviour_stride: elements.
        mask_stride: elements.
        checked_rows: precision is looked at in that many first rows ...
        checked_columns: ... and columns.
        masked: 1: there is a mask, 0: there is none.
        off_policy: 1: the sampler is not q.
        count_q: 1: count q's own values.
        count_p: 1: count p's own values.
        copies: of the histogram, so that fewer programs wait for each other.
        block_rows: a power of 2.
        block_columns: a power of 2.
    """
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    counted = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    if masked != 0:
        place = row[:, None] * mask_stride + column[None, :]
        counted = counted & (tl.load(mask_values + place, mask=counted, other=0) != 0)
    q = tl.load(q_values + row[:, None] * q_stride + column[None, :], mask=counted, other=0)
    p = tl.load(p_values + row[:, None] * p_stride + column[None, :], mask=counted, other=0)

    target = partial + tl.program_id(1) * n_rows + row  # of column 0
    plane = tl.num_programs(1).to(tl.int64) * n_rows
    inside = row < n_rows

    log_q = q.to(tl.float64)
    d = p.to(tl.float64) - log_q
    valid = counted & (tl.abs(d) < INFINITY)
    near = valid & (tl.abs(d) <= CORE_RADIUS)
    excess = counted ^ near  # not finite, or summed apart
    some_excess = tl.max(tl.max(excess.to(tl.int32), axis=1), axis=0) > 0
    if some_excess:
        nan = counted & (d != d)
        _count(target + NAN * plane, nan, inside)
        _count(target + INF * plane, (counted ^ valid) ^ nan, inside)
        _count(target + CLAMPED * plane, valid & (d > CLAMP), inside)
    d = tl.where(valid & (d != 0), d, 0.0)  # without the sign of 0

    k3 = _k3(d)
    _count(target + CORE * plane, near, inside)
    for i in tl.static_range(N_MOMENTS):
        product = _feature(LEFT >> 3 * i, d, k3, d) * _feature(RIGHT >> 3 * i, d, k3, d)
        _add(target + (CORE + 1 + i) * plane, tl.where(near, product, 0.0), inside)
    if some_excess:
        far = valid ^ near
        _count(target + TAIL * plane, far, inside)
        for i in tl.static_range(N_MOMENTS):
            product = _feature(LEFT >> 3 * i, d, k3, d) * _feature(RIGHT >> 3 * i, d, k3, d)
            _add(target + (TAIL + 1 + i) * plane, tl.where(far, product, 0.0), inside)

    if off_policy != 0:
        place = row[:, None] * behaviour_stride + column[None, :]
        behaviour = tl.load(behaviour_values + place, mask=counted, other=0)
        log_weight = log_q - behaviour.to(tl.float64)
        usable = valid & (tl.abs(log_weight) < INFINITY)
        _count(target + UNWEIGHTED * plane, valid ^ usable, inside)
        log_weight = tl.where(usable, log_weight, 0.0)
        w = tl.where(usable, tl.exp(tl.minimum(log_weight, CLAMP)), 0.0)
        for i in tl.static_range(N_WEIGHTED):
            product = w * _feature(WEIGHTED_RIGHT >> 3 * i, d, k3, w)
            _add(target + (WEIGHT + i) * plane, product, inside)

    nonzero = valid & (d != 0)
    _count(target + ZERO * plane, valid ^ nonzero, inside)
    copy = (tl.program_id(0) + tl.program_id(1)) % copies
    tl.atomic_add(
        histogram + copy * HISTOGRAM + _bucket(d),
        tl.full([block_rows, block_columns], 1, tl.int32),
        mask=nonzero,
        sem="relaxed",
    )

    largest = extremes + row * tl.num_programs(1) + tl.program_id(1)
    tl.store(largest, tl.max(tl.where(valid, d, -INFINITY), axis=1), mask=inside)
    tl.store(largest + plane, tl.min(tl.where(valid, d, INFINITY), axis=1), mask=inside)

    checked = counted & (row < checked_rows)[:, None] & (column < checked_columns)[None, :]
    if count_q != 0:
        _count_policy(target + Q_COUNTS * plane, plane, q, counted, checked, inside)
    if count_p != 0:
        _count_policy(target + P_COUNTS * plane, plane, p, counted, checked, inside)


@triton.jit
def _feature(digits: tl.constexpr, d, k3, w):
    """The feature that the last digit means."""
    if digits & 7 == ONE:
        feature = tl.full([], 1.0, tl.float64)
    elif digits & 7 == ABS:
        feature = tl.abs(d)
    elif digits & 7 == D2:
        feature = d * d
    elif digits & 7 == K3:
        feature = k3
    elif digits & 7 == W:
        feature = w
    else:
        tl.static_assert(digits & 7 == D)
        feature = d
    return feature


@triton.jit
def _k3(d):
    """e^d - 1 - d, by its series near 0, where the difference would cancel."""
    near = tl.abs(d) <= 0.5
    x = tl.where(near, d, 0.0)
    series = tl.full([], 1.0, tl.float64)
    for i in tl.static_range(SERIES_TERMS - 1):
        series = 1.0 + x * tl.full([], 1.0 / (SERIES_TERMS + 1 - i), tl.float64) * series
    return tl.where(near, 0.5 * x * x * series, tl.exp(tl.minimum(d, CLAMP)) - 1.0 - d)


@triton.jit
def _bucket(d):
    """The histogram's bucket: the leading bits of |d|, mirrored for a negative d."""
    bits = d.to(tl.int64, bitcast=True)
    leading = ((bits >> DROPPED_BITS) & EXPONENT_AND_KEPT).to(tl.int32) - BELOW_LOWEST
    leading = tl.minimum(tl.maximum(leading, 0), LAST_BUCKET)
    return CENTRE + tl.where(bits < 0, -1 - leading, leading)


@triton.jit
def _count_policy(target, plane, values, counted, checked, inside):
    """Write `fields.POLICY_COUNTS` of each row."""
    x = values.to(tl.float32)
    checked = checked & (x < TELLING_BELOW)
    bits = x.to(tl.int32, bitcast=True)
    _count(target, counted, inside)
    _count(target + plane, counted & (x != 0), inside)
    _count(target + 2 * plane, counted & (x > POSITIVE), inside)
    _count(target + 3 * plane, checked, inside)
    _count(target + 4 * plane, checked & ((bits & 0xFFFF) == 0), inside)
    _count(target + 5 * plane, checked & ((bits & 0x1FFF) == 0), inside)


@triton.jit
def _count(target, which, inside):
    _add(target, which.to(tl.int32), inside)


@triton.jit
def _add(target, values, inside):
    """Write the sum of each row."""
    tl.store(target, tl.sum(values, axis=1).to(tl.float64), mask=inside)
