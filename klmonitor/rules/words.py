"""Sentences that several rules share: numbers with units, tokens with places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from klmonitor.report import ExtremeToken, PairReport
from klmonitor.rules.track import Reading

NAMED = 3
"""Tokens named in a message; the alert holds all of them."""
READ_TOKENS = (
    "look at the named tokens: padding or a tool's output that the mask lets through, a token that "
    "the sampler cut (top-p, top-k), a number format that differs; if they are real, read the "
    "means without them for this step"
)
"""What to do first about a few odd tokens."""
LOOK_FIRST = (
    "look at this step's samples and reward: was there a jump of the learning rate, a bad batch, "
    "a stale or mismatched sampler? If it persists, lower the learning rate, raise the KL "
    "coefficient, or go back to the checkpoint before it"
)
"""What to do first about a KL that rose."""
_ENGINE = (
    "the engine and the trainer have come apart: weights that reach it late or not at all, or an "
    "engine that runs with other settings, fewer bits or another template than before",
    "look when the engine last took over the trainer's weights and with what settings it was "
    "started; neither the learning rate nor the KL coefficient mends this",
)
_UPDATE = (
    "an update changed the policy more than those before: a learning rate or advantages that are "
    "larger, more updates a batch, or log-probs of `old` that are not of the weights that sampled",
    "look at this step's gradient norm, learning rate and advantages, and where the log-probs of "
    "`old` come from; the KL coefficient hardly matters here",
)
MOVED = {"rollout_old": _ENGINE, "rollout_policy": _ENGINE, "old_policy": _UPDATE}
"""Pair -> what a rise of its KL means, and what to do first, where it is none to a reference."""
_REPLACED = (
    "the engine's log-probs are now the trainer's own, or both compute alike from here on",
    "look whether the log-probs that the engine reported still arrive",
)
FALLEN = {
    "rollout_old": _REPLACED,
    "rollout_policy": _REPLACED,
    "old_policy": (
        "no update reaches what is scored: a learning rate of 0, one update a batch, or `old` is "
        "scored with the weights of now",
        "look at the learning rate, at how often a batch is trained on, and where the log-probs of "
        "`old` come from",
    ),
}
"""Pair -> the same of a KL that fell to nothing."""
LEARNED = (
    "or the policy has learned from these very tokens, with advantages mostly of one sign, and "
    "likes them now: then this is no KL of tokens that it has not seen"
)
"""What else an `old_policy` whose tokens are no draws may be."""
LEFT_TAIL = (
    "p finds a few sampled tokens nearly impossible: padding or tool output behind the mask, a "
    "special token, another tokenizer or number format"
)
RIGHT_TAIL = (
    "q finds a few sampled tokens far less likely than p does: an engine that samples otherwise "
    "than it reports, or a token cut by top-p on one side"
)
"""What a few odd tokens usually mean, by the sign of their d."""


def plain(value: float) -> str:
    """Three digits, without an exponent where the number has up to six."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def nats(value: float) -> str:
    """A KL per token."""
    return f"{plain(value)} nats"


def count(value: float, noun: str) -> str:
    """A number of things: ``"1 token"``, ``"3 tokens"``."""
    return f"{value:.0f} {noun}{'' if value == 1 else 's'}"


def dominating(pair: PairReport, estimator: str) -> int:
    """How many tokens the dominance of an estimator is about.

    As measured (``dominance/{estimator}/tokens``), else the most that it may be:
    m = clip(N / 400, 1, 10) for k1, 5 for k3.
    """
    measured = pair[f"dominance/{estimator}/tokens"]
    most = 10 if estimator == "k1" else 5
    if measured >= 1:
        return int(min(measured, most))
    return int(min(max(pair.tokens / 400, 1), most)) if pair.tokens > 0 else 1


def heaviest(pair: PairReport, estimator: str, at_most: int) -> tuple[ExtremeToken, ...]:
    """The extreme tokens that weigh most in k1 (by |d|) or in k3, without their text."""
    weight = (lambda token: token.k3) if estimator == "k3" else (lambda token: abs(token.k1))
    chosen = sorted(pair.most_extreme(at_most), key=weight, reverse=True)[:at_most]
    return tuple(token.with_text(None) for token in chosen)


def dropout(reading: Reading) -> str | None:
    """That dropout is active in the policy that is scored, where that is known."""
    rate, other = reading.of_run("dropout"), reading.of_run("reference_dropout")
    if not rate > 0:
        return None
    said = f"dropout of up to {rate:.3g} is active in the policy"
    if other == 0:
        return f"{said} and not in the reference"
    return f"{said} and in the reference, each with draws of its own" if other > 0 else said


def name_tokens(tokens: Iterable[ExtremeToken]) -> str:
    """Where the first few tokens are, and their log-ratio."""
    return "; ".join(
        f"d = {token.log_ratio:+.3g} at {token.where}" for token in list(tokens)[:NAMED]
    )


def odd_tokens(tokens: Sequence[ExtremeToken]) -> str:
    """What it usually means that these tokens carry an estimate; empty if none is known."""
    if not tokens:
        return ""
    return LEFT_TAIL if tokens[0].log_ratio < 0 else RIGHT_TAIL


def not_draws(reading: Reading, means: str) -> tuple[str, str]:
    """What tokens are that do not fit draws from q, and what that means.

    Of `old_policy` they may be draws all the same, from which p has learned.

    Args:
        reading: the pair's.
        means: what it means where p knows nothing of the tokens.
    """
    if reading.pair.name != "old_policy":
        return "the tokens are hardly draws from q as it is scored", means
    either = "the tokens are hardly draws from q as it is scored, or p has learned from them"
    return either, f"{means}; {LEARNED}"
