"""What a KL term pulls: the coefficient of grad log pi, which is not the number it is logged as.

With x ~ mu, pi the policy that is trained, ref the reference,

    d = log ref(x) - log pi(x),    rho = pi(x) / mu(x),    d d / d log pi = -1,

every way to put an estimate k of the KL into an objective gives an update that descends

    sum over tokens of beta c grad log pi(x),    c a plain function of d and rho:

    f(d) in the loss                      c = -f'(d)
    sg(rho) f(d) in the loss              c = -rho f'(d)
    rho f(d), rho differentiated          c = rho (f(d) - f'(d))
    f(d) in the reward                    c = rho f(d)            (the score function)

The reverse KL(pi || ref) itself has c = -rho d, up to a constant, whose expectation is 0. Sources:
arXiv 2510.01555 (k2 as loss, k3 to first order), 2506.09477 (the derivative of an estimate is no
estimate of the derivative), 2512.02556 (rho k3, differentiated), 2512.21852 (where k1 and k3 go
wrong). Which placement pulls what, with numbers: docs/penalty.md.

numpy arrays and torch tensors alike, of floats; torch is never imported here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy array or a torch tensor, of floats."""

VALUES: dict[str, Callable[[Array], Array]] = {
    "k1": lambda d: -d,
    "k2": lambda d: 0.5 * d * d,
    "k3": lambda d: namespace(d).expm1(d) - d,
    "abs": abs,
    "square": lambda d: d * d,
}
"""Estimator -> f, nats (``square``: nats^2); k3 to 2 eps |d|."""
SLOPES: dict[str, Callable[[Array], Array]] = {
    "k1": lambda d: -namespace(d).ones_like(d),
    "k2": lambda d: d,
    "k3": lambda d: namespace(d).expm1(d),
    "abs": lambda d: namespace(d).sign(d),
    "square": lambda d: 2.0 * d,
}
"""Estimator -> f' = df / dd."""

_CHOICES = {
    "estimator": tuple(VALUES),
    "placed": ("loss", "reward"),
    "ratio": (None, "detached", "differentiated"),
    "level": ("token", "sequence", "geometric"),
    "returns": ("token", "sequence", "to_go"),
}
_REVERSE = "the reverse KL's gradient"
_IN_LOSS = {
    "k1": "nothing in expectation",
    "k2": _REVERSE,
    "k3": "the forward KL's gradient",
    "abs": "beta on every token, however far",
    "square": f"twice {_REVERSE}",
}
_DIFFERENTIATED = {
    "k1": f"{_REVERSE}, and noise of expectation 0",
    "k2": "the gradient of E[k2]",
    "k3": f"{_REVERSE}, exact",
    "abs": "the gradient of E|d|",
    "square": "the gradient of E[d^2]",
}
_IN_REWARD = {
    "k1": _REVERSE,
    "k2": "no KL's gradient",
    "k3": f"{_REVERSE} less the forward one's",
    "abs": "no KL's gradient",
    "square": "no KL's gradient",
}


@dataclass(frozen=True)
class Penalty:
    """A KL term as a trainer's objective has it.

    Attributes:
        estimator: ``"k1"``, ``"k2"``, ``"k3"``, ``"abs"`` (of d) or ``"square"`` (d^2).
        placed: ``"loss"``: a term of the loss, through which gradients flow; ``"reward"``: a
            number taken off the reward.
        ratio: what the term is multiplied with: None; ``"detached"``: rho, a number;
            ``"differentiated"``: rho, with its gradient. In the reward the policy gradient's own
            rho, however it comes in.
        clamp: the value is clipped to +-clamp, nats; None: it is not.
        beta: the weight.
        returns: of a reward: ``"token"``: each token bears its own; ``"sequence"``: the sum of its
            sequence; ``"to_go"``: the sum from itself on.
        clamp_d: d is clipped to +-clamp_d before it is used, nats; None: it is not.
        straight_through: the value is the estimator's, the gradient k2's (verl's ``+``).
        level: whose ratio rho is: the ``"token"``'s, the ``"sequence"``'s (a product over its
            tokens) or their ``"geometric"`` mean (GSPO).
        leave_one_out: sequences a prompt, in consecutive rows, if the mean return of the others is
            taken off (RLOO); 0: nothing is.
    """

    estimator: str = "k3"
    placed: str = "loss"
    ratio: str | None = None
    clamp: float | None = None
    beta: float = 1.0
    returns: str = "token"
    clamp_d: float | None = None
    straight_through: bool = False
    level: str = "token"
    leave_one_out: int = 0

    def __post_init__(self) -> None:
        """Refuse what no objective can be.

        Raises:
            ValueError: a field has no such choice, or two fields contradict each other.
        """
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(map(repr, choices))
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose from {known}")
        for name in ("clamp", "clamp_d"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} is {limit}: give a positive limit, or None for none")
        if not math.isfinite(self.beta):
            raise ValueError(f"beta is {self.beta}: give a finite weight")
        if self.placed == "loss" and self.returns != "token":
            raise ValueError(f"returns={self.returns!r} is of rewards: a loss has tokens' terms")
        if self.placed == "reward" and self.straight_through:
            raise ValueError("straight_through is of losses: no gradient flows through a reward")
        if self.level != "token" and self.ratio is None:
            raise ValueError(f"level={self.level!r} without a ratio: give ratio= as well")
        if self.leave_one_out and (self.returns != "sequence" or self.leave_one_out < 2):
            raise ValueError(
                f"leave_one_out is {self.leave_one_out}: give 2 or more sequences a prompt, with "
                "returns='sequence'"
            )

    # --- what it pulls -----------------------------------------------------------------------
    def coefficient(
        self,
        d: Array,
        log_ratio: Array | None = None,
        mask: Array | None = None,
        prompts: Array | None = None,
    ) -> Array:
        """The c of each token, without beta: the module's table, clamps included.

        A clamped token pulls nothing in the loss (rho times the limit where rho is
        differentiated), the clipped value in the reward.

        Args:
            d: log ref - log pi, nats, any shape; [..., T] with sequences along the last axis where
                a ratio or a return is a sequence's.
            log_ratio: log pi - log sampler, nats, same shape; None: the policy sampled (rho = 1).
            mask: same shape, true where a token counts; None: everywhere.
            prompts: [B] which prompt each row of d [B, T] is of, for `leave_one_out` where rows of
                a prompt are not consecutive; a row whose prompt has not so many rows has nan.

        Returns:
            c, d's shape and kind; 0 where the mask is.
        """
        xp = namespace(d)
        f, slope, difference = own_terms(self, d)
        if mask is not None:
            mask = mask != 0
            f = xp.where(mask, f, 0.0)
        if self.placed == "reward":
            c = self._returned(f, prompts)
        elif self.ratio == "differentiated":
            c = difference if self.level == "token" else self._shared(f, mask) - slope
        else:
            c = -slope
        if self.ratio is not None and log_ratio is not None:
            c = xp.exp(self._of_level(log_ratio, mask)) * c
        return c if mask is None else xp.where(mask, c, 0.0)

    def true_coefficient(self, d: Array, log_ratio: Array | None = None) -> Array:
        """That of the reverse KL: `true_coefficient` of the module."""
        return true_coefficient(d, log_ratio)

    def _returned(self, f: Array, prompts: Array | None) -> Array:
        """What of the rewards f [..., T] each token's action is charged with."""
        if self.returns == "token":
            return f
        total = f.sum(-1)[..., None]
        if self.returns == "to_go":
            return total - f.cumsum(-1) + f
        if self.leave_one_out:
            total = total - self._mean_of_others(total, prompts)
        return total + namespace(f).zeros_like(f)

    def _mean_of_others(self, total: Array, prompts: Array | None) -> Array:
        """Of returns [B, 1], the mean of the other rows of the prompt."""
        others = self.leave_one_out - 1
        if prompts is None:
            grouped = total.reshape(-1, self.leave_one_out)
            return ((grouped.sum(-1)[:, None] - grouped) / others).reshape(total.shape)
        xp = namespace(total)
        same = prompts[:, None] == prompts[None, :]
        mean = (xp.where(same, total.reshape(1, -1), 0.0).sum(-1)[:, None] - total) / others
        return xp.where((same.sum(-1) == self.leave_one_out)[:, None], mean, math.nan)

    def _shared(self, f: Array, mask: Array | None) -> Array:
        """d(rho g) / (rho d log pi_t) less g's own derivative, g a sequence's sum of f."""
        total = f.sum(-1)[..., None]
        return total if self.level == "sequence" else total / _lengths(f, mask)

    def _of_level(self, log_ratio: Array, mask: Array | None) -> Array:
        """The log of the ratio that every token is multiplied with."""
        if self.level == "token":
            return log_ratio
        if mask is not None:
            log_ratio = namespace(log_ratio).where(mask, log_ratio, 0.0)
        total = log_ratio.sum(-1)[..., None]
        return total if self.level == "sequence" else total / _lengths(log_ratio, mask)

    # --- words -------------------------------------------------------------------------------
    @property
    def term(self) -> str:
        """The term in words: ``"rho*k3 in the loss, rho differentiated, clamped at 10"``."""
        rho = {"token": "rho", "sequence": "rho(sequence)", "geometric": "rho(geometric)"}
        weight = "" if self.ratio is None else f"{rho[self.level]}*"
        returns = {"token": self.placed, "sequence": "sequence's return", "to_go": "return to go"}
        parts = [f"{weight}{self.estimator} in the {returns[self.returns]}"]
        if self.ratio is not None and self.placed == "loss":
            parts.append(f"rho {self.ratio}")
        if self.leave_one_out:
            parts.append("less the mean of the prompt's others")
        if self.straight_through:
            parts.append("straight through")
        if self.clamp_d is not None:
            parts.append(f"d clamped at {self.clamp_d:g}")
        if self.clamp is not None:
            parts.append(f"clamped at {self.clamp:g}")
        return ", ".join(parts)

    @property
    def pulls(self) -> str:
        """What its gradient is that of, in words."""
        if self.placed == "reward":
            found = _IN_REWARD[self.estimator]
        elif self.straight_through:
            found = _REVERSE
        elif self.ratio != "differentiated":
            found = _IN_LOSS[self.estimator]
        elif self.level == "token":
            found = _DIFFERENTIATED[self.estimator]
        else:
            found = "no KL's exact gradient, as the ratio is not the token's"
        if self.returns != "token":
            found += ", in expectation over whole sequences"
        if self.ratio is None:
            found += ", on-policy"
        clamped = self._of_clamped()
        return (found.removesuffix(", exact") if clamped else found) + clamped

    def _of_clamped(self) -> str:
        """What a clamped token pulls, as a clause."""
        if (self.clamp is None and self.clamp_d is None) or self.straight_through:
            return ""
        if self.placed == "reward":
            return "; a clamped token pulls the clipped value"
        if self.ratio == "differentiated":
            return "; a clamped token pulls rho times the limit"
        return "; a clamped token pulls nothing"

    def __str__(self) -> str:
        """One line: ``"0.04 x k3 in the loss: the forward KL's gradient, on-policy"``."""
        return f"{self.beta:g} x {self.term}: {self.pulls}"


def true_coefficient(d: Array, log_ratio: Array | None = None) -> Array:
    """The c of the reverse KL(pi || ref), -rho d: E_mu[-rho d grad log pi] is its gradient.

    Args:
        d: log ref - log pi, nats.
        log_ratio: log pi - log sampler, nats, same shape; None: rho = 1.
    """
    return -d if log_ratio is None else -namespace(d).exp(log_ratio) * d


def own_terms(penalty: Penalty, d: Array) -> tuple[Array, Array, Array]:
    """f, f' and f - f' of each token for itself, clamps and straight-through included.

    The derivative of a clamp is 0 beyond the limit and 1 at it, as automatic differentiation has
    it. k3's f - f' is -d: as a difference it would be one of two e^d.

    Args:
        penalty: its estimator, clamps and straight-through are looked at.
        d: log ref - log pi, nats.
    """
    xp = namespace(d)
    inside = d if penalty.clamp_d is None else xp.clip(d, -penalty.clamp_d, penalty.clamp_d)
    f, slope = VALUES[penalty.estimator](inside), SLOPES[penalty.estimator](inside)
    difference = -d if penalty.estimator == "k3" else f - slope
    if penalty.clamp_d is not None:
        dead = abs(d) > penalty.clamp_d
        slope, difference = xp.where(dead, 0.0, slope), xp.where(dead, f, difference)
    if penalty.clamp is not None:
        dead, f = abs(f) > penalty.clamp, xp.clip(f, -penalty.clamp, penalty.clamp)
        slope, difference = xp.where(dead, 0.0, slope), xp.where(dead, f, difference)
    if penalty.straight_through:
        slope = SLOPES["k2"](d)
        difference = f - slope
    return f, slope, difference


def _lengths(x: Array, mask: Array | None) -> Array:
    """[..., 1] tokens that count in each sequence, at least 1."""
    if mask is None:
        return x.shape[-1]
    return namespace(x).clip(mask.sum(-1)[..., None], 1, None)


def namespace(x: Array) -> Any:
    """Namespace of torch for its tensors, else of numpy; what both spell alike is used."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np
