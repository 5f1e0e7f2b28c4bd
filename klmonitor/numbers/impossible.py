"""Input that cannot be: numbers that are no log-probs of these tokens, whatever the policies are.

Told before anything else. Exact zeros are no placeholders where a cut vocabulary, renormalised, has
one token left: there the other policy is not far below, whereas a placeholder stands at any token,
of which the other policy finds some unlikely. The counts are of the step; what one of them looks
like, and where, comes from the extreme tokens, among which such numbers are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from klmonitor.numbers.sums import QUANTILES, StepSums
from klmonitor.report import Cause, ExtremeToken
from klmonitor.summary.fields import (
    PLACEHOLDER,
    POLICY_COUNTS,
    POSITIVE_TOLERANCE,
    SENTINEL,
    TOKEN_FIELDS,
)

FEWEST = 3
"""Tokens that are no accident: a peaked model gives an exact 0 here and there."""
ODD_ZEROS = 0.02
"""Share of a policy's zeros below `fields.BLANK` under the other, from which they are no scores: of
cut vocabularies (top-p from .3 on, temperatures from .6 on) it is 0, of placeholders 7 % to 35 %.
"""
FILLER = -30.0
"""Nats: no sampled token is so unlikely, let alone three alike: -100 and such stand for none."""
MANY = 0.1
"""Share of values above 0 that is no noise on log-probs near 0 any more; of such as are far above
0, `FEWEST` are enough."""
_POSITIVE, _N, _NONZERO = (POLICY_COUNTS.index(name) for name in ("positive", "n", "nonzero"))
_COUNTED = ("zero_q", "zero_p", "huge_q", "huge_p", "padded_rows")
_LOG_Q = TOKEN_FIELDS.index("log_q")
ALIKE, VARIED = 1e-6, 1e-3
"""Variance within sequences, as a share of the other policy's, from which a value is one and the
same; and that of the other, nats^2, from which its tokens are not all as certain."""
MEDIAN = QUANTILES.index(0.5)
MANY_LISTED = 8
"""Extreme tokens from which what they have in common is no accident."""
NO_TOKEN = -25.0
"""Nats: a vocabulary of 260,000 tokens, all as likely, has -12.5."""
FAR_APART = 15.0
"""Nats at the median token: a policy that knows nothing is 12.5 from one that is certain."""


def suspect(sums: StepSums) -> bool:
    """Whether anything of a pair may be what cannot be (its extreme tokens are looked at then)."""
    of = sums.signs.sum
    qq, pp = of("qq"), of("pp")
    return (
        any(map(of, _COUNTED))
        or max(sums.largest, sums.smallest) > FAR_APART
        or min(qq, pp) <= ALIKE * max(qq, pp) > 0
        or sums.largest == -sums.smallest != 0
        or min(sums.tokens[:, 0, _LOG_Q].tolist()) < NO_TOKEN
        or not any(one[_NONZERO] for one in (sums.q, sums.p))
        or any(one[_POSITIVE] > 0 for one in (sums.q, sums.p))
    )


def impossible(sums: StepSums, tokens: Iterable[ExtremeToken]) -> Cause:
    """What cannot be in a pair's log-probs; nameless: nothing.

    Args:
        sums: the pair's.
        tokens: its extreme tokens.
    """
    q, p = sums.pair.split("_")
    policies = ((q, "q", sums.q, "log_q", "log_p", p), (p, "p", sums.p, "log_p", "log_q", q))
    tokens, count = list(tokens), sums.signs.sum

    for policy, letter, counts, mine, theirs, other in policies:
        n = counts[_POSITIVE]
        if n > 0 and (n >= MANY * counts[_N] or count(f"high_{letter}") >= FEWEST):
            where = _example(tokens, mine, lambda x, _: x > POSITIVE_TOLERANCE, theirs)
            return _cause(
                f"{policy}'s log-probs are above 0 for {_tokens(n)}{where}: not log-probs, but "
                "probabilities, negative log-likelihoods, raw logits or a placeholder"
            )
        if (n := count(f"huge_{letter}")) > 0:
            where = _example(tokens, mine, lambda x, _: abs(x) >= SENTINEL, theirs)
            return _cause(
                f"{policy}'s log-probs are beyond +-{SENTINEL:,.0f} for {_tokens(n)} that "
                f"count{where}: a sentinel that the mask lets through"
            )
        value, n = _filler([getattr(token, mine) for token in tokens])
        if n >= FEWEST and not sums.low_precision:
            where = _example(tokens, mine, partial(_same, value), theirs)
            return _cause(
                f"{policy}'s log-probs are exactly {value:.0f} for at least {n} tokens{where}: a "
                "filler that the mask lets through, no score"
            )
        n = count(f"zero_{letter}")
        if n >= FEWEST and count(f"blank_{letter}") > ODD_ZEROS * n:
            where = _example(tokens, mine, lambda x, y: x == 0 and y < PLACEHOLDER, theirs)
            greedy = " (or greedy decoding)" if n > 0.5 * counts[_N] else ""
            return _cause(
                f"{policy}'s log-probs are exactly 0 for {n:,.0f} tokens that {other} does not "
                f"find certain{where}: a placeholder, no score{greedy}"
            )
    if count("padded_rows") >= max(0.5 * count("rows"), 1):
        return _cause(
            f"{count('padded'):,.0f} tokens at the ends of {count('padded_rows'):,.0f} of "
            f"{count('rows'):,.0f} sequences have one and the same value under all policies: "
            "padding is being counted; forgot the mask?"
        )
    return _no_tokens(sums, tokens)


def blamed(cause: Cause, policy: str) -> str:
    """Whose log-probs cannot be, ``policy`` among them, as a genitive; empty: not its."""
    whose = cause.text.partition(" log-probs ")[0] if cause.impossible else ""
    return whose if whose.startswith(f"{policy}'s") else ""


def _no_tokens(sums: StepSums, tokens: Sequence[ExtremeToken]) -> Cause:
    """Numbers that are no token's: nothing but zeros, one value a sequence, sums over sequences."""
    q, p = sums.pair.split("_")
    n = sums.n
    if n >= FEWEST and all(one[_N] > 0 and one[_NONZERO] == 0 for one in (sums.q, sums.p)):
        return _cause(
            f"{q}'s and {p}'s log-probs are exactly 0 for all {_tokens(n)}: nothing was scored "
            "there; padding, or a mask that is inverted?"
        )
    looked_at, sequences, qq, pp = map(sums.signs.sum, ("tokens", "sequences", "qq", "pp"))
    many = looked_at >= 2 * sequences > 0 and q == "rollout"
    if many and max(qq, pp) > VARIED * looked_at:
        alike = q if qq <= ALIKE * pp else p if pp <= ALIKE * qq else ""
        if alike:
            return _cause(
                f"{alike}'s log-probs have one and the same value at every token of a sequence: a "
                "constant or a mean over the sequence, no scores of tokens"
            )
    values = {(token.log_q, token.log_p) for token in tokens}
    one = len(tokens) >= MANY_LISTED and len(values) == 1 and sums.largest == -sums.smallest
    if one and max(tokens[0].log_q, tokens[0].log_p) < PLACEHOLDER:
        return _cause(
            f"{q}'s and {p}'s log-probs have one and the same value at every token: padding that "
            "was scored, or a mask that is inverted?"
        )
    low = [max(token.log_q, token.log_p) for token in tokens]
    if len(low) >= MANY_LISTED and max(low) < NO_TOKEN:
        return _cause(
            f"{q}'s and {p}'s log-probs are below {NO_TOKEN:.0f} at all of the extreme tokens: "
            "sums over sequences, no log-probs of tokens?"
        )
    typical = sums.quantiles[MEDIAN] if max(sums.largest, sums.smallest) >= FAR_APART else 0.0
    if n >= MANY_LISTED and abs(typical) >= FAR_APART:
        return _cause(
            f"{q}'s and {p}'s log-probs are {abs(typical):.3g} nats apart at the typical token, "
            "which no two policies are: sums over sequences, or another quantity, on one side"
        )
    return Cause()


def _same(value: float, x: float, _: float) -> bool:
    return x == value


def _filler(values: list[float]) -> tuple[float, int]:
    """The whole number below `FILLER` that most have exactly, and how many do."""
    whole = [x for x in values if x <= FILLER and x == math.floor(x)]
    return max(((x, whole.count(x)) for x in set(whole)), key=lambda one: one[1], default=(0.0, 0))


def _tokens(n: float) -> str:
    """A number of tokens."""
    return f"{n:,.0f} token{'' if n == 1 else 's'}"


def _cause(text: str) -> Cause:
    return Cause("impossible", text, impossible=True)


def _example(
    tokens: list[ExtremeToken], mine: str, is_one: Callable[[float, float], bool], theirs: str
) -> str:
    for token in tokens:
        value = getattr(token, mine)
        if not math.isnan(value) and is_one(value, getattr(token, theirs)):
            return f" ({value:.4g} at {token.where})"
    return ""
