"""What a KL term pulls, summed in arrays: every term.

On the same tokens as the signatures of causes, in float64; numpy takes fewer calls than torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair, sampler
from klmonitor.penalty import Array, Penalty
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import LARGEST_RATIO, PULL, PULL_TERMS, PULLS
from klmonitor.summary.sequences import Rows
from klmonitor.summary.state import Summary


def add_plain(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], penalty: Penalty, extras: Extras
) -> None:
    """Add what a term pulls of a batch to a state, in place; arguments as for `pull_pass.add`."""
    (pair,) = pairs
    with np.errstate(all="ignore"):
        names, by_sequence = _terms(batch, pair, penalty, extras)
        if not names:
            return
        taken, places = _places(names, pair.name)
        products = (by_sequence @ by_sequence.T).reshape(-1)[taken]
    state.arrays["pulls"].reshape(-1)[places] += products


def _terms(
    batch: TokenBatch, pair: Pair, penalty: Penalty, extras: Extras
) -> tuple[tuple[str, ...], Array]:
    """Names, ``sequences`` among them, with their sums over each sequence, [n, S].

    Call it within ``np.errstate``.
    """
    trained, drew = compared(batch, pair)
    held = {name: floats_of(batch.log_probs[name]) for name in {pair.p, pair.q, trained, drew}}
    mask = None if batch.mask is None else array_of(batch.mask)
    advantages = None
    if penalty.placed == "loss" and extras.advantages is not None:
        advantages = floats_of(extras.advantages)
    prompts = None
    if penalty.leave_one_out:
        if batch.prompt_ids is None:
            return (), None
        prompts = array_of(batch.prompt_ids)
    d, log_ratio = held[pair.p] - held[pair.q], None
    if trained != drew:
        log_ratio = (held[trained] - held[drew]).clip(max=LARGEST_RATIO)
    terms = _of_tokens(penalty, d, log_ratio, mask, advantages, prompts, extras.beta)
    of_tokens = np.array(list(terms.values()), dtype=np.float64)
    if batch.segments is None:
        sums = of_tokens.sum(-1)
    else:
        sums = Rows.of(batch, *batch.shape).total(torch.from_numpy(of_tokens)).numpy()
    sequences = sums[len(PULL_TERMS)] > 0  # those with tokens
    return (*terms, "sequences"), np.concatenate([sums, sequences[None]])


def compared(batch: TokenBatch, pair: Pair) -> tuple[str, str]:
    """The policies whose ratio is rho: what is trained, and what the objective takes for q's."""
    trained = "policy" if "policy" in batch.log_probs else pair.q
    return trained, "old" if "old" in batch.log_probs else sampler(batch.log_probs)


def array_of(x: Tensor) -> Array:
    """As a numpy array."""
    try:
        return x.numpy()
    except (TypeError, RuntimeError):  # of a dtype that numpy lacks, or negated when it is read
        return x.double().numpy(force=True)


def floats_of(x: Tensor) -> Array:
    """The same in float64."""
    return array_of(x).astype(np.float64)


def _of_tokens(
    penalty: Penalty,
    d: Array,
    log_ratio: Array | None,
    mask: Array | None,
    advantages: Array | None,
    prompts: Array | None,
    beta: float | None,
) -> dict[str, Array]:
    """What is summed, by name: [R, C] each. A ratio of None is 1 everywhere."""
    known = np.isfinite(d if log_ratio is None else d + log_ratio)
    if mask is not None:
        known &= mask
    d = np.where(known, d, 0.0)
    if log_ratio is not None:
        log_ratio = np.where(known, log_ratio, 0.0)
    c = penalty.coefficient(d, log_ratio, known, prompts)
    known &= np.isfinite(c)
    c, t = np.where(known, c, 0.0), np.where(known, -d, 0.0)
    w = known + 0.0 if log_ratio is None else np.where(known, np.exp(log_ratio), 0.0)
    far, wt, ct, dead = abs(t), w * t, c * t, known & (c == 0) & (d != 0)
    terms = {
        **dict(zip(PULL_TERMS, (w, wt, wt * t, c, ct), strict=True)),
        "tokens": known,
        "size": abs(c),
        "dead": dead,
        "opposite": ct < 0,
        "far": far,
        "lost": far * dead,
    }
    if beta is not None:
        terms |= {"weighed": known, "beta": np.where(known, np.full_like(d, beta), 0.0)}
    if advantages is not None:
        weight, told = penalty.beta if beta is None else beta, known & np.isfinite(advantages)
        terms |= _rewarded(weight * c, np.where(told, advantages * w, 0.0), d)
    return terms


def _rewarded(pull: Array, reward: Array, d: Array) -> dict[str, Array]:
    """The penalty beside the reward: the update descends beta c - A rho."""
    rewarded = reward != 0
    pull = pull * rewarded
    size, paid = abs(reward), abs(pull)
    overruled = rewarded & (pull * reward > 0) & (paid > size)
    return {
        "rewarded": rewarded,
        "reward": size,
        "paid": paid,
        "overruled": overruled,
        "given_up": overruled & (d > 0),
    }


@cache
def _places(names: tuple[str, ...], pair: str) -> tuple[Array, Array]:
    """Which products over sequences are what of a state's pulls: a sum is one with `sequences`."""
    row = {name: i for i, name in enumerate(names)}
    found = {name: (name, "sequences") for name in names}
    found |= {f"{a}.{b}": (a, b) for a, b in combinations_with_replacement(PULL_TERMS, 2)}
    taken = [row[a] * len(names) + row[b] for a, b in found.values()]
    places = [PAIR_INDEX[pair] * len(PULLS) + PULL[name] for name in found]
    return np.array(taken), np.array(places)
