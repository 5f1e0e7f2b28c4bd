"""What is said of each cause, with its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

from klmonitor.numbers.evidence import Evidence, oldest
from klmonitor.summary.fields import LAGS

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
    why = ": whole sequences of another prompt, template or tokenisation on one side"
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
