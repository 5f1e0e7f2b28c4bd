"""What a KL term pulls, summed in arrays: every term, on every device.

On the same tokens as the signatures of causes, in float64: numpy on the CPU, which takes fewer
calls, and torch on a device, for which nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair, sampler
from klmonitor.penalty import Array, Penalty, namespace
from klmonitor.summary.batch import TokenBatch, moved
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
        taken, places = (array_of(x) for x in _places(names, pair.name, batch.device))
        products = (by_sequence @ by_sequence.T).reshape(-1)[taken]
    if isinstance(products, np.ndarray):
        state.arrays["pulls"].reshape(-1)[places] += products
    else:
        state.pulls.view(-1).index_add_(0, places, products)


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
    of_tokens = stacked(list(terms.values()))
    if batch.segments is None:
        sums = of_tokens.sum(-1)
    else:
        sums = array_of(Rows.of(batch, *batch.shape).total(torch.as_tensor(of_tokens)))
    sequences = sums[len(PULL_TERMS)] > 0  # those with tokens
    return (*terms, "sequences"), namespace(d).concatenate([sums, sequences[None]])


def compared(batch: TokenBatch, pair: Pair) -> tuple[str, str]:
    """The policies whose ratio is rho: what is trained, and what the objective takes for q's."""
    trained = "policy" if "policy" in batch.log_probs else pair.q
    return trained, "old" if "old" in batch.log_probs else sampler(batch.log_probs)


def stacked(terms: list[Array]) -> Array:
    """[n, ...] of n arrays or tensors, as floats."""
    return np.array(terms) if isinstance(terms[0], np.ndarray) else torch.stack(terms)


def array_of(x: Tensor) -> Array:
    """As a numpy array, where it is on the CPU."""
    if not x.is_cpu:
        return x
    try:
        return x.numpy()
    except (TypeError, RuntimeError):  # of a dtype that numpy lacks, or negated when it is read
        return x.double().numpy(force=True)


def floats_of(x: Tensor) -> Array:
    """The same in float64."""
    found = array_of(x)
    return found.astype(np.float64) if isinstance(found, np.ndarray) else found.double()


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
    xp = namespace(d)
    known = xp.isfinite(d if log_ratio is None else d + log_ratio)
    if mask is not None:
        known &= mask
    d = xp.where(known, d, 0.0)
    if log_ratio is not None:
        log_ratio = xp.where(known, log_ratio, 0.0)
    c = penalty.coefficient(d, log_ratio, known, prompts)
    known &= xp.isfinite(c)
    c, t = xp.where(known, c, 0.0), xp.where(known, -d, 0.0)
    w = known + 0.0 if log_ratio is None else xp.where(known, xp.exp(log_ratio), 0.0)
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
        terms |= {"weighed": known, "beta": xp.where(known, xp.full_like(d, beta), 0.0)}
    if advantages is not None:
        weight, told = penalty.beta if beta is None else beta, known & xp.isfinite(advantages)
        terms |= _rewarded(weight * c, xp.where(told, advantages * w, 0.0), d)
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
def _places(names: tuple[str, ...], pair: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which products over sequences are what of a state's pulls: a sum is one with `sequences`."""
    row = {name: i for i, name in enumerate(names)}
    found = {name: (name, "sequences") for name in names}
    found |= {f"{a}.{b}": (a, b) for a, b in combinations_with_replacement(PULL_TERMS, 2)}
    taken = [row[a] * len(names) + row[b] for a, b in found.values()]
    places = [PAIR_INDEX[pair] * len(PULLS) + PULL[name] for name in found]
    return moved(torch.tensor(taken), device), moved(torch.tensor(places), device)
