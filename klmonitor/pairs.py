"""The four policies, the five pairs that are watched, and the one direction that a pair has.

A pair ``q_p`` is KL(q || p) with tokens x ~ q. Throughout the package

    d = log p(x) - log q(x),    r = p(x) / q(x) = exp(d).

``policy_ref`` is KL(policy || ref): q is the policy that is trained, p the frozen reference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

POLICIES: tuple[str, ...] = ("policy", "old", "rollout", "ref")
"""``policy``: the trainer's current weights. ``old``: the trainer before this update.
``rollout``: the inference engine when it sampled. ``ref``: the frozen reference."""
POLICY_INDEX: dict[str, int] = {name: i for i, name in enumerate(POLICIES)}


@dataclass(frozen=True)
class Pair:
    """KL(q || p) over tokens drawn from q.

    Attributes:
        q: the policy whose tokens are averaged over, a name of `POLICIES`.
        p: the policy it is compared with, a name of `POLICIES`.
    """

    q: str
    p: str

    @cached_property
    def name(self) -> str:
        """``"{q}_{p}"``, the name in every metric, file and message."""
        return f"{self.q}_{self.p}"


PAIRS: tuple[Pair, ...] = (
    Pair("policy", "ref"),
    Pair("old", "ref"),
    Pair("old", "policy"),
    Pair("rollout", "old"),
    Pair("rollout", "policy"),
)
"""Every pair, in the order in which a state stores them."""

PAIR_INDEX: dict[str, int] = {pair.name: i for i, pair in enumerate(PAIRS)}


def sampler(present: Collection[str]) -> str:
    """The policy that the tokens were drawn from: `rollout`, else `old`, else `policy`."""
    return next(name for name in ("rollout", "old", "policy") if name in present)


def default_pairs(present: Iterable[str]) -> tuple[Pair, ...]:
    """The pairs worth watching when the log-probs of the policies `present` are known.

    Drift from the reference (`policy_ref`, or `old_ref` where only the sampler's log-probs are
    known), the size of the update (`old_policy`), and the mismatch of trainer and engine
    (`rollout_old`, else `rollout_policy`).
    """
    return _default_pairs(tuple(present))


@lru_cache(64)
def _default_pairs(present: tuple[str, ...]) -> tuple[Pair, ...]:
    candidates = (
        ("policy_ref", "old_ref"),
        ("old_policy",),
        ("rollout_old", "rollout_policy"),
    )
    chosen = []
    for alternatives in candidates:
        for name in alternatives:
            pair = PAIRS[PAIR_INDEX[name]]
            if pair.q in present and pair.p in present:
                chosen.append(pair)
                break
    return tuple(chosen)


def parse_pairs(names: Iterable[str]) -> tuple[Pair, ...]:
    """Turn names into pairs.

    Raises:
        ValueError: a name is no pair; the message lists those that are.
    """
    chosen = []
    for name in names:
        if name not in PAIR_INDEX:
            raise ValueError(f"unknown pair {name!r}: choose from {', '.join(PAIR_INDEX)}")
        chosen.append(PAIRS[PAIR_INDEX[name]])
    return tuple(chosen)
