"""What people repeat about k1, k2 and k3, and how far it holds: every number from exact sums.

`CLAIMS` is the table of docs/estimators.md; ``docs/tables.py`` writes it anew. The command of a row
shows its numbers in simulated batches too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from klmonitor.simulate.cases import Array
from klmonitor.simulate.moments import gaussian_truth
from klmonitor.simulate.study import ESTIMATORS, best_lambda, moments, study
from klmonitor.simulate.worlds import Pool, gaussian, make_pool

NEAR, MIDDLE, FAR = 0.1, 1.0, 3.0
"""mu of q = N(0, 1), p = N(mu, 1): KL .005, .5 and 4.5 nats."""
THREE = (np.array([0.6, 0.3, 0.1]), np.array([0.45, 0.3, 0.25]))
"""q and p of three tokens, as on the page."""


@dataclass(frozen=True)
class Claim:
    """One thing that people repeat.

    Attributes:
        said: the claim.
        verdict: ``"holds"``, ``"holds when ..."`` or ``"fails when ..."``.
        numbers: makes the sentence with the numbers.
        command: shows them again.
    """

    said: str
    verdict: str
    numbers: Callable[[], str]
    command: str


@dataclass(frozen=True)
class Noise:
    """Why the mean of k1 is noisy: sd / KL = spread x cancellation, exactly.

    Attributes:
        relative: standard deviation of one token's k1 over the KL.
        negative: share of tokens whose k1 is negative.
        spread: standard deviation over the mean of |k1|: 1.25 for a Gaussian around 0, more where
            extreme values carry it.
        cancellation: mean of |k1| over the KL: 1 if no token cancels another.
    """

    relative: float
    negative: float
    spread: float
    cancellation: float


def noise_of_k1(pool: Pool) -> Noise:
    """The two factors of a pool's noise."""
    mean, sd = moments(pool, ESTIMATORS["k1"])
    size = pool.mean(np.abs(pool.d))
    return Noise(sd / mean, pool.mean((pool.d > 0).astype(float)), sd / size, size / mean)


def half_negative_and_quiet() -> Pool:
    """Two equally likely tokens: r = 1.99, so that k1 is -.69, and r = .01."""
    r = np.array([1.99, 0.01])
    d = np.log(r)
    return Pool("half negative", float(-d.mean()), d, np.array([0.5, 0.5]))


def few_negative_and_noisy() -> Pool:
    """One token in 1,000 has r = .001, so that its k1 is 6.9; the others have r = 1 - .002.

    A last token, of the mass that is left, takes what p has to spare: k1 is negative for it alone.
    """
    weight = np.array([0.979, 0.001, 0.02])
    r = np.array([0.998, 0.001, 0.0])
    r[2] = (1 - weight @ r) / weight[2]
    d = np.log(r)
    return Pool("few negative", float(-(weight @ d)), d, weight)


def gradients(q: Array, p: Array) -> dict[str, Array]:
    """Expected gradients in q's logits, over tokens drawn from q.

    Of the KL(q || p) itself; of k1 in the reward, E[k1 grad log q]; of k1 and of k3 in a loss that
    is differentiated, E[grad k]; of KL(p || q). grad log q(x) = 1[x] - q.
    """
    d = np.log(p) - np.log(q)
    score = np.eye(len(q)) - q
    r = np.exp(d)
    kl = float(q @ -d)
    return {
        "kl": q * (-d - kl),
        "k1 in the reward": (q * -d) @ score,
        "k1 in the loss": q @ score,
        "k2 in the loss": (q * -d) @ score,
        "k3 in the loss": (q * (1 - r)) @ score,
        "reverse": q - p,
    }


def crossing() -> float:
    """The KL between Gaussians at which k3's variance overtakes k1's: e^x - 1 - x = x, x = 2 KL."""
    low, high = 1.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.exp(middle) - 1 < 2 * middle else (low, middle)
    return low / 2


def negative_means(kl: float, tokens: int) -> float:
    """P(mean k1 < 0) between Gaussians, exactly: k1 is Gaussian."""
    return 0.5 * math.erfc(math.sqrt(tokens * kl / 2) / math.sqrt(2))


@lru_cache
def _pool(case: str, kl: float) -> Pool:
    return make_pool(case, kl)


def _k1_is_unbiased() -> str:
    near, far = gaussian_truth(NEAR), gaussian_truth(FAR)
    return (
        f"Gaussians: sd of one token over the KL {near.sd['k1'] / near.kl:.3g} at KL .005, "
        f"{far.sd['k1'] / far.kl:.2f} at 4.5, where k3 has {far.sd['k3'] / far.kl:.3g}"
    )


def _negative_values() -> str:
    def said(pool: Pool) -> str:
        found = noise_of_k1(pool)
        return (
            f"{found.relative:.3g} = {found.spread:.3g} x {found.cancellation:.3g} at "
            f"{found.negative:.0%} negative"
        )

    return (
        "sd over KL = spread x cancellation (mean abs(k1) over KL): Gaussians at KL .005 "
        f"{said(gaussian(NEAR**2 / 2))}; half negative and quiet "
        f"{said(half_negative_and_quiet())}; few negative and noisy "
        f"{said(few_negative_and_noisy())}"
    )


def _k2_is_biased() -> str:
    shares = [
        gaussian_truth(mu).mean["k2"] / gaussian_truth(mu).kl - 1 for mu in (NEAR, MIDDLE, FAR)
    ]
    cold = _pool("temperature", 0.1)
    sharper = moments(cold, ESTIMATORS["k2"])[0] / cold.kl - 1
    collapsed = _pool("collapse", 0.01)
    missed = moments(collapsed, ESTIMATORS["k2"])[0] / collapsed.kl - 1
    return (
        f"Gaussians: bias {shares[0]:+.2%} at KL .005, {shares[1]:+.0%} at .5, {shares[2]:+.0%} at "
        f"4.5; p sharper, KL .1: {sharper:+.0%}; collapse, KL .01: {missed:+.0%}"
    )


def _control_variate() -> str:
    def correlation(pool: Pool) -> float:
        r = np.expm1(pool.d)
        mean, sd = moments(pool, ESTIMATORS["k1"])
        centred = r - pool.mean(r)
        return pool.mean((-pool.d - mean) * centred) / (sd * math.sqrt(pool.mean(centred**2)))

    sizes = [correlation(gaussian(mu**2 / 2)) for mu in (NEAR, MIDDLE, FAR)]
    zero = abs(_pool("zipf", 0.01).mean(np.expm1(_pool("zipf", 0.01).d)))
    cut = _pool("top-p", 0.01)
    return (
        f"Gaussians: correlation of r - 1 and k1 {sizes[0]:.3f} at KL .005, {sizes[1]:.2f} at .5, "
        f"{sizes[2]:.3f} at 4.5; E[r - 1] is 0 to {'1e-9' if zero < 1e-9 else f'{zero:.0e}'} for "
        f"tokens of q, {cut.mean(np.expm1(cut.d)):+.4f} where they come from top-p .95"
    )


def _lambda_is_one() -> str:
    best = [best_lambda(gaussian(mu**2 / 2)) for mu in (NEAR, MIDDLE, FAR)]
    hot = best_lambda(_pool("heavy-p", 0.1))
    cold = best_lambda(_pool("temperature", 0.1))
    return (
        f"best lambda between Gaussians {best[0]:.3f} at KL .005, {best[1]:.2f} at .5, "
        f"{best[2]:.4f} at 4.5; at KL .1 p wider {hot:.2f}, p sharper {cold:.2f}"
    )


def _k3_never_negative() -> str:
    d = np.linspace(-20, 20, 400_001)
    wide = _pool("heavy-p", 0.5)
    k1, k3 = (moments(wide, ESTIMATORS[name])[1] / wide.kl for name in ("k1", "k3"))
    collapsed = study(_pool("collapse", 0.02), (1024,), lambdas=(), batches=200)
    seen = {one.estimator: one for one in collapsed.outcomes}
    return (
        f"smallest value on a grid {float((np.expm1(d) - d).min()):.0g}; noisier than k1 above a "
        f"KL of {crossing():.3f} between Gaussians; p wider, KL .5: sd over KL {k3:.3g}, k1's "
        f"{k1:.2g}; collapse, KL .02, 1,024 tokens: the median batch reads "
        f"{seen['k3'].median / collapsed.kl:.1f} KL (k1: {seen['k1'].median / collapsed.kl:.1f})"
    )


def _reward_or_loss() -> str:
    found = gradients(*THREE)

    def vector(name: str) -> str:
        return "(" + ", ".join(f"{x + 0.0:+.3f}" for x in np.round(found[name], 9)) + ")"

    return (
        "q = (.6, .3, .1), p = (.45, .3, .25), in q's logits: k1 in the reward "
        f"{vector('k1 in the reward')} is the gradient of KL(q || p); k3 in the loss "
        f"{vector('k3 in the loss')} is that of KL(p || q); k1 in the loss "
        f"{vector('k1 in the loss')}"
    )


def _jumps() -> str:
    few, many = negative_means(0.01, 64), negative_means(0.01, 4096)
    sd = math.sqrt(2 * 0.5 / 16)
    return (
        f"Gaussians at KL .01: the mean of k1 is negative in {few:.0%} of batches of 64 tokens, in "
        f"{many:.0g} of 4,096; at KL .5 a batch of 16 tokens is off by {sd:.2f} nats (one sd), at "
        f".005 by {math.sqrt(2 * 0.005 / 16):.3f}"
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "k1 is unbiased and has a high variance",
        "holds when policies are near; when they are far it is the quiet one",
        _k1_is_unbiased,
        "simulate --kl 4.5",
    ),
    Claim(
        "k1 is noisy because half of its values are negative",
        "fails: extreme values together with cancellation make the noise, whatever the signs",
        _negative_values,
        "simulate --kl .005",
    ),
    Claim(
        "k2 has a low variance and a bias that grows with the KL",
        "holds when d is small; the bias may also be negative",
        _k2_is_biased,
        "simulate --case temperature --kl .1",
    ),
    Claim(
        "r - 1 has expectation 0 and goes against -log r: a control variate",
        "holds when the tokens come from q; worth little when policies are far",
        _control_variate,
        "simulate --case top-p",
    ),
    Claim(
        "lambda = 1, which is k3, is the control variate's best weight",
        "holds when policies are near",
        _lambda_is_one,
        "simulate --case heavy-p --kl .1 --plot cv.svg",
    ),
    Claim(
        "k3 is never negative, unbiased, and better than k1",
        "the first two hold; better fails when the KL is large, p wider than q, or q collapsed",
        _k3_never_negative,
        "simulate --case collapse --kl .02 --batch 1024",
    ),
    Claim(
        "k1 in the reward (PPO) and k3 in the loss (GRPO) are the same penalty",
        "fails: their gradients are those of two different KLs, and k1 in the loss has none",
        _reward_or_loss,
        "see docs/penalty.md",
    ),
    Claim(
        "with small batches or far policies a k1 penalty jumps",
        "holds",
        _jumps,
        "simulate --batch 64,4096",
    ),
)
"""In the order of the page."""
