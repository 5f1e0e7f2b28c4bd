"""What logits at sampled positions tell of a pair, as sums that merge over ranks.

The exact KL, the entropy and the exact gradient of a KL term have no sampling error at a position
(`klmonitor.audit`, `klmonitor.pull`); over positions they do, and k1, k2, k3 of the tokens drawn
there are kept beside them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from klmonitor.penalty import Penalty
from klmonitor.pull import exact_pull
from klmonitor.summary.fields import AUDIT_SUMS

TILE = 1 << 19
"""Logits of a policy that are worked on at once: 30 MB of float32 buffers."""
_OF_TOKENS = Penalty("k2")
"""Stands in for a term that no single position has; its gradient is left out."""


@torch.no_grad()
def audited(
    policy: Tensor, ref: Tensor, tokens: Tensor, penalty: Penalty | None, temperature: float
) -> Tensor:
    """Of each position, what sums are made of.

    Args:
        policy: logits of the policy that drew the tokens, [R, V], any float dtype.
        ref: those of the reference.
        tokens: the token that was drawn, int64 [R].
        penalty: the KL term; None: there is none, or it is not known.
        temperature: all logits are divided by it.

    Returns:
        float64 [6, R] on the host: KL, entropy, d of the token; |g|^2, <g, true> and |true|^2 of
        the term's gradient, nan of a term of sequences or none.
    """
    whole = penalty is None or penalty.returns != "token" or penalty.level != "token"
    term = _OF_TOKENS if penalty is None or whole else replace(penalty, beta=1.0)
    rows = max(TILE // max(policy.shape[-1], 1), 1)
    found = []
    for q, p, x in zip(*(torch.split(y, rows) for y in (policy, ref, tokens)), strict=True):
        pull = exact_pull(q, p, term, temperature=temperature)
        log_q, log_p = (
            (y.float() / temperature).log_softmax(-1).gather(-1, x[:, None]).squeeze(-1)
            for y in (q, p)
        )
        products = torch.stack([pull.pulled, pull.along, pull.true])
        products = torch.full_like(products, torch.nan) if whole else products
        one = torch.stack([pull.kl, pull.entropy, log_p - log_q])
        found.append(torch.cat([one, products]).double().cpu())
    return torch.cat(found, dim=1)


def audit_sums(values: Tensor, sequences: Tensor) -> Tensor:
    """float64 [AUDIT_SUMS] of what `audited` gave.

    Args:
        values: [6, R]; positions without a finite KL and token are left out.
        sequences: which sequence each position is of, int64 [R].
    """
    usable = values[:3].isfinite().all(0)
    values, sequences = values[:, usable], sequences[usable]
    kl, entropy, d, pulled, along, true = values
    _, index = torch.unique(sequences, return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0

    def by_sequence(x: Tensor) -> Tensor:
        return x.new_zeros(count).index_add_(0, index, x)

    size = by_sequence(torch.ones_like(kl))
    sums = {
        "audit/positions": size.sum(),
        "audit/sequences": torch.tensor(float(count), device="cpu"),
        "audit/t.t": (size**2).sum(),
        "audit/entropy": entropy.sum(),
        "audit/pulled": pulled.nan_to_num(0.0).sum(),
        "audit/along": along.nan_to_num(0.0).sum(),
        "audit/true": true.nan_to_num(0.0).sum(),
    }
    estimates = {"kl": kl, "k1": -d, "k2": d * d / 2, "k3": torch.expm1(d) - d}
    for name, x in estimates.items():
        total = by_sequence(x)
        sums |= {
            f"audit/{name}": x.sum(),
            f"audit/{name}^2": (total**2).sum(),
            f"audit/{name}.t": (total * size).sum(),
        }
    return torch.stack([sums[name].double() for name in AUDIT_SUMS])
