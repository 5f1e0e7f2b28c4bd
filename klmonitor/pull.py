"""The exact gradient of a KL term at given positions, from full-vocabulary logits.

From log-probs of the sampled tokens alone each token's coefficient is exact, but not what the term
does to the policy: that takes the whole vocabulary. Here is the expected gradient in the logits,
with no sampling error, beside the one of the reverse KL; and the Rao-Blackwellised KL of the same
positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from klmonitor.audit import check_logits, exact_kl
from klmonitor.penalty import Penalty

TILE = 1 << 20
"""Logits of a policy that are worked on at once: with float32, 60 MB of buffers."""


@dataclass(frozen=True)
class Pull:
    """A KL term's gradient in the logits beside the reverse KL's, per position or pooled.

    Attributes:
        beta: the term's weight, which the squares leave out.
        kl: KL(policy || ref), nats.
        entropy: of the policy, nats.
        pulled: |g|^2 of the term.
        along: <g, g of the reverse KL>.
        true: |g|^2 of the reverse KL.
    """

    beta: float
    kl: Tensor
    entropy: Tensor
    pulled: Tensor
    along: Tensor
    true: Tensor

    @property
    def length(self) -> Tensor:
        """Length over the reverse KL's, without beta; nan where that is 0."""
        return (self.pulled / self.true).sqrt()

    @property
    def cosine(self) -> Tensor:
        """Cosine of the angle to the reverse KL's; nan where either is 0."""
        return self.along / (self.pulled * self.true).sqrt()

    @property
    def effective_beta(self) -> Tensor:
        """The weight of the reverse KL whose gradient is nearest: beta <g, true> / |true|^2."""
        return self.beta * self.along / self.true

    def pooled(self) -> Pull:
        """Of all positions together: means of the KL, the entropy and the products."""
        means = [x.mean() for x in (self.kl, self.entropy, self.pulled, self.along, self.true)]
        return Pull(self.beta, *means)


@torch.no_grad()
def exact_pull(
    policy: Tensor,
    ref: Tensor,
    penalty: Penalty,
    *,
    sampler: Tensor | None = None,
    temperature: float = 1.0,
) -> Pull:
    """The expected gradient of a KL term in the policy's logits, at every position.

    g = sum_x mu(x) c(x) (e_x - pi), mu the sampler, c the `Penalty.coefficient`: the whole
    vocabulary, so no sampling error; the reverse KL's has c = -rho d. That of the term a token at
    a time: what states a token leads to is not in it (arXiv 2506.09477).

    Args:
        policy: logits of the policy, [R, V], any float dtype and device.
        ref: those of the reference, likewise.
        penalty: the term, of tokens.
        sampler: logits of what drew the tokens; None: the policy.
        temperature: all logits are divided by it.

    Returns:
        Per position, [R]; float64 if policy or ref is, else float32.

    Raises:
        ValueError: shapes or devices differ, the temperature is not positive, or the term is one
            of sequences, which no position has.
        TypeError: logits are not floats.
    """
    if penalty.returns != "token" or penalty.level != "token":
        raise ValueError(f"{penalty.term}: a term of sequences has no gradient at one position")
    check_logits(policy, ref, None, temperature)
    if sampler is not None:
        check_logits(policy, sampler, None, temperature)
    kl = exact_kl(policy, ref, temperature=temperature)
    rows = max(TILE // max(policy.shape[-1], 1), 1)
    logits = [policy, ref] if sampler is None else [policy, ref, sampler]
    found = [
        _pull_of(penalty, *(x.to(kl.dtype).div(temperature).log_softmax(-1) for x in tile))
        for tile in zip(*(torch.split(x, rows) for x in logits), strict=True)
    ]
    columns = (torch.cat(column) for column in zip(*found, strict=True))
    return Pull(penalty.beta, kl, *columns)


def _pull_of(
    penalty: Penalty, policy: Tensor, ref: Tensor, sampler: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropy, |g|^2, <g, true> and |true|^2 of each row of log-probs [rows, V]."""
    pi, d = policy.exp(), ref - policy
    log_ratio = None if sampler is None else policy - sampler
    mu = pi if sampler is None else sampler.exp()

    def gradient(c: Tensor) -> Tensor:
        drawn = torch.where(mu > 0, mu * c, 0.0)
        return drawn - pi * drawn.sum(-1, keepdim=True)

    g = gradient(penalty.coefficient(d, log_ratio))
    true = gradient(penalty.true_coefficient(d, log_ratio))
    entropy = -torch.where(pi > 0, pi * policy, 0.0).sum(-1)
    return entropy, (g * g).sum(-1), (g * true).sum(-1), (true * true).sum(-1)


def rao_blackwellised(kl: Tensor, sequences: Tensor) -> tuple[float, float]:
    """Mean of exact KLs at sampled positions, and its cluster standard error.

    The sampled tokens' k1 with each token replaced by its expectation: it is never the noisier
    one (arXiv 2504.10637). The error is that of docs/estimators.md.

    Args:
        kl: `exact_kl` at the positions, nats, [R].
        sequences: which sequence each is of, integers [R].

    Returns:
        Mean and error, nats; the error is nan for fewer than two sequences.
    """
    kl, index = kl.double(), torch.unique(sequences, return_inverse=True)[1]
    mean = kl.mean()
    clusters = kl.new_zeros(int(index.max()) + 1).index_add_(0, index, kl - mean)
    count = len(clusters)
    square = count / (count - 1) * (clusters**2).sum() if count > 1 else torch.nan
    return float(mean), float(square) ** 0.5 / len(kl)
