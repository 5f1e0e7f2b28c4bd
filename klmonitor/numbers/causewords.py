"""What is said of each cause, with its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

from klmonitor.numbers.evidence import Evidence, oldest
from klmonitor.summary.fields import LAGS

LATELY = "over the last steps"
"""What causes follow from is summed over several; beside it stand the numbers of one."""
MOST = 0.8
"""Share of the sequences from which one speaks of every."""


def says_shift(e: Evidence) -> str:
    """Which way, with the correlations."""
    by = "one position later" if e["before"] > e["after"] else "one position earlier"
    return (
        f"the tensors are shifted by one position: {e.q}'s log-probs go with {e.p}'s {by} "
        f"(correlation now {e['qp']:.2f}, with the position before {e['before']:.2f}, with the "
        f"position after {e['after']:.2f})"
    )


def says_context(e: Evidence) -> str:
    """Which neighbour, with the errors."""
    where = "before" if e["context"] < 0 else "after"
    return (
        f"the tensors are shifted by one position: {e.q} scores each token with the logits of the "
        f"position {where} ({abs(e['context_z']):.0f} errors; gap {e['gap']:+.2g})"
    )


def says_end(end: str) -> Callable[[Evidence], str]:
    """Of the ``"first"`` or the ``"last"`` token: how far it is off."""
    why = {
        "first": "a chat template, a double BOS, or the prompt's last position",
        "last": "an EOS that one side adds or scores otherwise",
    }[end]
    return lambda e: (
        f"the {end} token of {_how_many(e, end)} is off: mean |d| {e[end]:.3g} there, "
        f"{e['middle']:.3g} nats elsewhere ({why})"
    )


def _how_many(e: Evidence, end: str) -> str:
    """Every sequence, or how many."""
    share = e[f"{end}_off"] / e["sequences"] if e["sequences"] else math.nan
    return f"{share:.0%} of the sequences" if share < MOST else "every sequence"


def says_lone(e: Evidence) -> str:
    """Of sequences of one token, empty completions."""
    return (
        f"sequences of a single token are off, empty completions perhaps: mean |d| {e['lone']:.3g} "
        f"there, {e['middle']:.3g} nats in the others (a log-prob that stands for none?)"
    )


def says_sequences(e: Evidence) -> str:
    """Which they are, and how much they hold."""
    why = (
        ": whole sequences of another prompt, template or tokenisation on one side, or of an "
        "engine that has other weights"
    )
    return e.carriers.text + (why if e.mismatch else "")


def says_temperature(e: Evidence) -> str:
    """Who is sharper, and the range that T lies in."""
    slope = min(abs(e["slope"]), 0.9)
    colder, warmer = (e.q, e.p) if e["slope"] < 0 else (e.p, e.q)
    return (
        f"sampled and scored at different temperatures: the log-probs of {colder} are sharper than "
        f"those of {warmer} ({e['slope_z']:+.0f} errors; T below {_temperature_at(slope / 2):.2g} "
        f"where the other has 1, {_temperature_at(slope):.2g} if contexts' constants hide half)"
    )


def _temperature_at(slope: float) -> float:
    """T from slope = (1 - T) / (1 + T); contexts' constants take up to half of twice that."""
    return (1 - slope) / (1 + slope)


def says_scaled(e: Evidence) -> str:
    """How many times the other."""
    times = (2 - e["slope"]) / (2 + e["slope"])  # the slope of d on the mean of both
    return (
        f"{e.q}'s log-probs are about {times:.2g} times those of {e.p} at every token, which no "
        "temperature makes: another base of the logarithm (log2 1.44, log10 0.43), a mean over the "
        "sequence's length, or another factor"
    )


def says_unnormalised(e: Evidence) -> str:
    """By how much p is above q, and the mass that q has left."""
    return (
        f"{e.p}'s log-probs are above {e.q}'s nearly everywhere, by {e['d']:.2g} nats on average: "
        f"{e.q} spreads its mass over more tokens than {e.p} (padded rows of the vocabulary, or "
        f"{e.p} is scored over a cut one, renormalised); {e.p}'s tokens have "
        f"{1 / (1 + e['gap']):.2g} of {e.q}'s mass"
    )


def says_turned(e: Evidence) -> str:
    """Which way the tokens fit."""
    gap = e.numbers.get("gap", math.nan)
    return (
        f"the tokens fit draws from {e.p}, not from {e.q} (mean(e^-d) - 1 = {e.turned:.2g}, "
        f"mean(e^d) - 1 = {gap:.2g}): the two are passed the wrong way round, or {e.p}, or a "
        "policy near it, sampled"
    )


def says_coarse(e: Evidence) -> str:
    """What would tell a coarse engine from stale weights, as far as versions are known."""
    k3, old = e["gap"] - e["d"], oldest(e)
    both = (
        "a coarse engine, stale weights, logits that one side processes, or a context that it sees "
        f"otherwise (mask, positions, template, experts): k3 {k3:.2g} nats {LATELY}"
    )
    if old and math.isnan(e["lag0"]):
        return f"{both}: no sequence is of lag 0, whose k3 alone is the engine's floor"
    if old:
        return f"{both}: k3 does not grow with the lag, so hardly stale weights"
    return f"{both}: pass version= to tell stale weights apart"


def says_cut(e: Evidence) -> str:
    """The kept mass with its error."""
    kept = 1 + e["gap"]
    return (
        f"{e.q} samples from a cut vocabulary (top-p, top-k, min-p, or tokens that are never "
        f"allowed, as by min_new_tokens) and scores it renormalised, {e.p} the whole: the kept "
        f"mass is {kept:.2g} +- {e['gap_se']:.1g}"
    )


def says_surprise(what: str) -> Callable[[Evidence], str]:
    """The surprise beside the entropy."""

    def text(e: Evidence) -> str:
        side = "less" if e["surprise"] < 0 else "more"
        though = ", though both report the same" if e.mismatch else ""
        return (
            f"{what}: the tokens are {abs(e['surprise']):.2g} nats {side} surprising than the "
            f"trainer's entropy of {e['entropy']:.2g} ({e['surprise_z']:+.0f} errors){though}"
        )

    return text


def says_stale(e: Evidence) -> str:
    """The floor and the growth by lag, each with its error."""
    old = oldest(e)
    lag = old.removeprefix("lag") + (" or more" if old == LAGS[-1] else "")
    return (
        f"stale weights: k3 is {e['lag0']:.2g} +- {e['lag0_se']:.1g} nats at lag 0 (the engine's "
        f"floor) and {e[old]:.2g} +- {e[f'{old}_se']:.1g} at a lag of {lag}"
    )


def says(text: str) -> Callable[[Evidence], str]:
    """A sentence with the places ``q``, ``p``, ``k3``, ``gap``, ``z`` and ``qp``."""
    return lambda e: text.format(
        q=e.q, p=e.p, k3=e["gap"] - e["d"], gap=e["gap"], z=e["gap_z"], qp=e["qp"]
    )
