"""What a summary keeps: one table of sums, one of maxima, the buckets of the histogram.

Everything here is a sum or a max (the extreme tokens are the sixteen-fold max), so two summaries
merge by adding and taking maxima, and the result does not depend on how tokens were split over
micro-batches or ranks. To watch one more quantity, add one line to `MOMENTS` (an inner product of
two per-token features) or to `COUNTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

from klmonitor.pairs import PAIRS, POLICIES


@dataclass(frozen=True)
class Moment:
    """The sum over tokens of the product of two per-token features.

    Attributes:
        name: the sum's name.
        left: a feature: ``d``, ``abs`` = |d|, ``d2`` = d^2, ``k3``, ``w`` (the importance weight).
        right: another, or ``one``.
    """

    name: str
    left: str
    right: str


MOMENTS = (
    Moment("d", "d", "one"),
    Moment("abs", "abs", "one"),
    Moment("d2", "d2", "one"),
    Moment("d4", "d2", "d2"),
    Moment("k3", "k3", "one"),
    Moment("k3k3", "k3", "k3"),
    Moment("dk3", "d", "k3"),
)
WEIGHTED = (
    Moment("w", "w", "one"),
    Moment("ww", "w", "w"),
    Moment("wd", "w", "d"),
    Moment("wk3", "w", "k3"),
)
"""Importance-weighted sums, w = exp(log q - log sampler); only where q is not the sampler."""

CORE_RADIUS = 20.0
"""Nats. Tokens with |d| above it are summed apart (`tail/*`): one of them would swamp a running
variance for hundreds of steps, and its square needs float64 wherever the rest would not."""
CLAMP = 350.0
"""Nats. e^d is evaluated at min(d, CLAMP), so that k3^2 stays finite; such tokens are counted."""

COUNTS = (
    "nan",  # d is nan: excluded, counted
    "inf",  # d is +-inf: excluded, counted
    "clamped",  # d > CLAMP
    "unweighted",  # log q - log sampler is not finite: weight 0
    "zero",  # d is exactly 0
    "on_policy",  # tokens drawn from q itself
    "sequences",  # sequences with a counted token
    "prompted",  # of these, how many came with a prompt id
)
PER_SEQUENCE = ("t", "k1", "k2", "k3")
"""Sums over one sequence (or prompt): its tokens T, and S1, S2, S3."""
GRAM = tuple(f"{a}.{b}" for a, b in combinations_with_replacement(PER_SEQUENCE, 2))
"""Sums over sequences of the products of these, e.g. ``t.k1`` = sum T_i S_i: what the cluster
standard errors need."""

COLUMNS = (
    "core/n",
    *(f"core/{m.name}" for m in MOMENTS),
    "tail/n",
    *(f"tail/{m.name}" for m in MOMENTS),
    *(m.name for m in WEIGHTED),
    *COUNTS,
    *GRAM,
)
COLUMN = {name: i for i, name in enumerate(COLUMNS)}
N_TOKEN_COLUMNS = COLUMN["sequences"]
"""The leading columns are sums over tokens; from ``sequences`` on they are sums over sequences."""

POLICY_COUNTS = ("n", "nonzero", "positive", "checked", "bf16", "fp16")
"""Per policy: tokens, non-zero values, values > 0; and of the values below -1/64 in the first tile
of a micro-batch, how many there are and how many bfloat16 or float16 would hold exactly (their low
16 or 13 float32 bits are zero)."""

POSITIVE_TOLERANCE = 1e-3
"""Nats: a log-prob above it is positive for other reasons than rounding."""
TELLING = 2.0**-6
"""Nats: a log-prob nearer to 0 is a difference of larger numbers and has few bits anyway."""

MAXIMA = ("d", "-d")

# --- the signatures of causes (`summary.signatures`) -------------------------------------------
SAMPLED = 65_536
"""Tokens of a step, of whole rows, whose signatures are taken."""
PLACEHOLDER = -0.05
"""Nats: where one policy says exactly 0 and the other less than this, 0 stands for no score."""
BLANK = -1.5
"""Nats: a sampler that keeps one token of so small a probability cuts four fifths of the mass."""
SENTINEL = 1e4
"""Nats: no log-prob is so large; it stands for none."""
HIGH = 0.5
"""Nats: a log-prob above it is far above 0; one token of it is no rounding."""
ASIDE = 0.01
"""Nats: a d further from 0 has a side."""
END_OFF = 0.1
"""Nats: a first or last token of a larger |d| is off."""
CERTAIN = 1e-3
"""Nats: a log-prob nearer to 0 is that of a token that had to come."""
SURE = 0.15
"""Nats: at an entropy below it one token has at least .96 of the probability."""
LARGEST_SEQUENCE = 300.0
"""Nats: a sequence's log-ratio is clamped to it, so that the square of its ratio stays finite."""
LARGEST_FLOAT = 80.0
"""Nats: beyond it e^d is no float32 any more."""
SHORTEST_PADDING, SHORTEST_CERTAIN = 4, 8
"""Tokens of one value at the end of a row that are called padding; and where the value is near 0,
which the last tokens of a template have too."""
RARE = 0.05
"""Share of the other tokens that may have the padding's value."""
LAGS = ("lag0", "lag1", "lag2", "lag3")
"""Weight updates between what sampled a sequence and the trainer; the last: three and more."""
SIGNATURE_RATIOS = (
    "d",  # by token
    "gap",  # exp(d) - 1, by token
    "surprise",  # -log p - H of the trainer's policy, by token
    "slope",  # of d on (log q + log p) / 2, within sequences
    "shift",  # q(t) p(t-1) - p(t) q(t-1), by (q^2 + p^2) / 2, within sequences
    "context",  # the same of d (log q + log p) / 2 in the place of log q, by its square
    "who",  # (log q - log ref)^2 - (log q - log p)^2, by token
    "first",  # |d| of the first token of a sequence of two and more
    "last",  # and of its last
    "middle",  # and of the others
    "lone",  # and of the only token of a sequence
    *LAGS,  # k3, by token, of sequences of that lag
)
"""Ratios of two sums over sequences; five sums each tell the ratio and its error."""
RATIO_SUMS = ("a", "b", "aa", "ab", "bb")
"""Numerator, denominator and their products, summed over sequences."""
PROBABILITIES = (0.1, 0.5, 0.9, 0.99)
"""Edges of the bins of q(x) by which the mean |d| is told."""
SIGNATURE_SUMS = (
    "tokens",  # looked at; finite under both policies, none a sentinel
    "sequences",  # of these
    "up",  # d > ASIDE
    "down",  # d < -ASIDE
    "zero_q",  # log q exactly 0 where log p < PLACEHOLDER
    "zero_p",  # the other way round
    "blank_q",  # of zero_q: log p < BLANK, what no cut vocabulary of one token makes
    "blank_p",
    "huge_q",  # |log q| >= SENTINEL
    "huge_p",
    "high_q",  # log q > HIGH
    "high_p",
    "padded",  # tokens of a stretch of one value, to the end of their row, under all policies
    "padded_rows",  # sequences with such a stretch
    "rows",  # sequences with a counted token, finite or not
    "entropic",  # tokens whose entropy is known
    "entropy",  # sum of H
    "sure",  # 1 - p(x) where H <= SURE and p(x) >= 1/2: how many other tokens should come there
    "sure_other",  # tokens with H <= SURE and p(x) < 1/2: how many did
    "qq",  # squares and products of log q and log p less their means in the sequence:
    "pp",
    "qp",
    "before",  # q(t) p(t-1)
    "after",  # q(t) p(t+1)
    "ratio_above",  # sequences whose ratio exp(sum d) is above 3
    "ratio_below",  # below 1/3
    "ratio",  # sum of the sequences' ratios
    "ratio2",  # and of their squares
    "largest",  # sum over sequences of their largest token k3
    "first_off",  # sequences whose first token has |d| > END_OFF
    "last_off",  # and whose last has
    "lone_off",  # and whose only one has
    "weighed",  # of old_policy, over all tokens: whose advantage A is known
    "loss",  # sum of |A| r, where A > 0 with r of FAR_RATIO at most
    "unclipped",  # A < 0 and r >= FAR_RATIO
    "unclipped_loss",  # |A| r of these
    "unclipped_d",  # and their d
    *(f"{what}_{i}" for what in ("n", "abs", "left") for i in range(len(PROBABILITIES) + 1)),
)
"""Sums over tokens or sequences; ``n_i``, ``abs_i``, ``left_i``: by bin of q(x) its tokens, their
|d| and their 1 - q(x)."""
SIGNATURES = (
    *SIGNATURE_SUMS,
    *(f"{ratio}/{what}" for ratio in SIGNATURE_RATIOS for what in RATIO_SUMS),
)
SIGNATURE = {name: i for i, name in enumerate(SIGNATURES)}
FAR_RATIO = 10.0
"""A token's ratio policy / old that no clipping meant to allow."""
SEQUENCE_RATIO = 3.0
"""A sequence's ratio from which it is far from 1."""

# --- what a KL term pulls (`summary.pulls`) ----------------------------------------------------
PULL_TERMS = ("w", "wt", "wtt", "c", "ct")
"""Of a sequence's tokens, w = rho, t = -d, c the term's coefficient: what a slope of c / rho on t
and its cluster error follow from."""
LARGEST_RATIO = 80.0
"""Nats: the log of a token's rho is clamped to it, so that its square stays finite."""
PULL_GRAM = tuple(f"{a}.{b}" for a, b in combinations_with_replacement(PULL_TERMS, 2))
PULL_SUMS = (
    "tokens",  # whose c is known
    "sequences",  # of these
    "weighed",  # tokens whose beta was observed
    "beta",  # sum of it over these
    "size",  # sum of |c|
    "dead",  # c = 0, d is not
    "opposite",  # c t < 0
    "far",  # sum of |d|
    "lost",  # of the dead ones
    "rewarded",  # tokens with an advantage that is not 0
    "reward",  # sum of |A rho| over these
    "paid",  # and of |beta c|
    "overruled",  # |beta c| > |A rho|, and of the other sign in the update
    "given_up",  # of these: d > 0
)
"""Sums over tokens, of at most `SAMPLED` a step."""
AUDITED = ("kl", "k1", "k2", "k3")
"""What is estimated at audit positions: the exact KL, and the estimators of the tokens there."""
AUDIT_SUMS = (
    "audit/positions",
    "audit/sequences",  # with such a position
    "audit/t.t",  # sum over sequences of their positions squared
    "audit/entropy",
    "audit/pulled",  # |g|^2 of the term, with g as in `klmonitor.pull`
    "audit/along",  # <g, g of the reverse KL>
    "audit/true",  # |g|^2 of the reverse KL
    *(f"audit/{name}{what}" for name in AUDITED for what in ("", "^2", ".t")),
)
"""Sums over audit positions; ``^2`` and ``.t``: over sequences, of its sum squared and times its
positions."""
PULLS = (*PULL_SUMS, *PULL_TERMS, *PULL_GRAM, *AUDIT_SUMS)
PULL = {name: i for i, name in enumerate(PULLS)}

# --- the histogram of d ------------------------------------------------------------------------
MANTISSA_BITS = 6
LOW_EXPONENT, HIGH_EXPONENT = -20, 7
BUCKETS = (HIGH_EXPONENT - LOW_EXPONENT) << MANTISSA_BITS
"""Buckets per sign: |d| in [2^-20, 2^7), each octave cut into 2^6 equal parts. A bucket is the
leading bits of |d| as a float64, truncated, so 1, 2, 5 and 10 are exact edges and the counts beyond
them are exact; a bucket's middle is off by at most 0.8 %."""
HISTOGRAM = 2 * (BUCKETS + 2)
"""Buckets in all: per sign also one for |d| >= 2^7 and one for |d| < 2^-20."""
CENTRE = BUCKETS + 2
"""The bucket of d = +0; bucket CENTRE + i holds the same |d| as bucket CENTRE - 1 - i."""

# --- the extreme tokens and sequences ----------------------------------------------------------
TAILS = ("left", "right")
TOKEN_FIELDS = (
    "key",  # |d| in its tail, -inf: no token
    "rank",
    "micro_batch",
    "sequence",
    "position",
    "log_q",
    "log_p",
    "token_id",  # -1: unknown
    "prompt_id",  # -1: unknown
)
SEQUENCE_FIELDS = ("key", "rank", "micro_batch", "sequence", "t", "k1", "k3")
N_ORDER = 5
"""Fields that order tokens totally: the largest key first, then the earliest place."""
N_SEQUENCE_ORDER = 4


@dataclass(frozen=True)
class SummaryConfig:
    """What decides the shape of a summary; two summaries merge only if these agree.

    Attributes:
        groups: declared groups (data sets, environments); any other counts as ``other``.
        prompt_buckets: hashed buckets for sums by prompt, shared out over the groups.
        top: extreme tokens kept of each tail.
    """

    groups: tuple[str, ...] = ()
    prompt_buckets: int = 1024
    top: int = 16

    @property
    def all_groups(self) -> tuple[str, ...]:
        """The declared groups and ``other``, in the order of a state's rows."""
        return (*self.groups, "other")

    @property
    def buckets_per_group(self) -> int:
        """Prompt buckets of one group."""
        return self.prompt_buckets // len(self.all_groups)

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of everything that merges by adding."""
        pairs, groups = len(PAIRS), len(self.all_groups)
        return {
            "sums": (pairs, groups, len(COLUMNS)),
            "histogram": (pairs, HISTOGRAM),
            "prompts": (pairs, groups, self.buckets_per_group, len(PER_SEQUENCE)),
            "policies": (len(POLICIES), len(POLICY_COUNTS)),
            "signatures": (pairs, len(SIGNATURES)),
            "pulls": (pairs, len(PULLS)),
        }

    def differences(self, other: SummaryConfig) -> list[str]:
        """Settings in which two configurations differ, for the error of a refused merge."""
        return [
            f"{name}: {mine!r} against {theirs!r}"
            for name, mine in vars(self).items()
            if mine != (theirs := getattr(other, name))
        ]
