"""The verdict: which metric changes it, on tokens drawn for the purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klmonitor import Monitor
from klmonitor.numbers.student import interval

ROWS, COLUMNS = 64, 128


def sampled(q, p, *, seed=0, rows=ROWS, columns=COLUMNS):
    """Log-probs under q and p of tokens drawn from q, a distribution over a small vocabulary."""
    generator = np.random.default_rng(seed)
    x = generator.choice(len(q), size=(rows, columns), p=q)
    return {"policy": torch.tensor(np.log(q)[x]), "ref": torch.tensor(np.log(p)[x])}


def near(distribution, scale, seed=1):
    generator = np.random.default_rng(seed)
    logits = np.log(distribution) + scale * generator.normal(size=len(distribution))
    return np.exp(logits) / np.exp(logits).sum()


def verdict(batch, **options):
    monitor = Monitor(strict=True, **options)
    monitor.observe(**batch)
    report = monitor.step(7)
    return report.explain(), report.pairs["policy_ref"]


Q = np.full(200, 1 / 200)
CLEAN = sampled(Q, near(Q, 0.5))


def with_token(d):
    batch = {name: value.clone() for name, value in CLEAN.items()}
    batch["ref"][3, 5] = batch["policy"][3, 5] + d
    return batch | {"token_ids": torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)}


def test_an_ordinary_step_believes_the_mixture_and_finds_no_fault():
    text, pair = verdict(CLEAN)
    assert pair["best"] == 0
    lines = text.splitlines()
    assert "KL(policy || ref) over 8,192 tokens in 64 sequences" in lines[0]
    low, high = interval(pair["cv/mean"], pair["cv/se"], 64, positive=True)
    interval_told = f"(95 % interval {low:.3g} to {high:.3g}), the mixture"
    assert lines[-1].strip().startswith(f"believe cv = {pair['cv/mean']:.3g} nats {interval_told}")
    assert pair["cv/se"] < min(pair["k1/se"], pair["k3/se"])
    assert "dominated" not in text


def test_a_token_on_the_right_dominates_k3():
    text, pair = verdict(with_token(9.0))
    assert "k3 is severely dominated" in text
    assert f"token id {3 * COLUMNS + 5}" in text
    assert "believe k1" in text
    assert f"{pair['k3/mean_without_top']:.4g} without" in text


def test_a_token_on_the_left_dominates_k1():
    text, _ = verdict({name: value[:4] for name, value in with_token(-40.0).items()})
    assert "k1 is severely dominated" in text
    assert "d = -40 at micro-batch 0, sequence 3, position 5" in text


def test_cancellation_changes_the_verdict_on_k1():
    tiny = sampled(Q, near(Q, 0.02))
    text, pair = verdict(tiny)
    assert pair["k1/cancellation"] > 0.9
    assert "k1 is mostly cancellation" in text
    assert "its sign says nothing" in text
    moderate, pair = verdict(sampled(Q, near(Q, 1.5)))
    assert pair["k1/cancellation"] < 0.9
    assert "cancellation" not in moderate


def test_bias_z_changes_the_verdict_on_k2():
    wide, pair = verdict(sampled(Q, near(Q, 1.5)))
    assert abs(pair["k2/bias_z"]) > 3
    assert "k2 is biased here" in wide
    narrow, pair = verdict(sampled(Q, near(Q, 0.05)))
    assert abs(pair["k2/bias_z"]) < 3
    assert "k2 is biased" not in narrow


def test_the_control_variate_changes_which_estimator_is_believed():
    """p at temperature 1.7 of a peaked q: k3 is the noisier one, lambda is below one half."""
    generator = np.random.default_rng(5)
    logits = 2.5 * generator.normal(size=200)
    q, p = (np.exp(logits / t) / np.exp(logits / t).sum() for t in (1.0, 1.7))
    text, pair = verdict(sampled(q, p))
    assert pair["cv/lambda"] < 0.5
    assert pair["cv/variance_ratio"] > 1
    assert abs(pair["gap_z"]) < 5
    assert f"believe cv = {pair['cv/mean']:.3g} nats" in text
    assert f"k3 counts {pair['cv/lambda']:.0%}" in text


@pytest.mark.parametrize(("scale", "name"), [(0.02, "k3"), (0.5, "cv")])
def test_at_the_ends_of_lambda_the_mixture_is_one_of_the_two(scale, name):
    text, pair = verdict(sampled(Q, near(Q, scale)))
    assert pair["best"] == {"k3": 3, "cv": 0}[name]
    assert f"believe {name}" in text


def test_a_level_that_is_far_is_said_whatever_its_trend():
    generator = np.random.default_rng(5)
    q, p = (generator.dirichlet(np.full(200, 0.4)) + 1e-9 for _ in range(2))
    text, pair = verdict(sampled(q / q.sum(), p / p.sum()))
    assert pair.k1.mean > 1
    assert f"{pair.k1.mean:.2g} nats per token: the policy has left the reference" in text


def test_the_gap_changes_the_verdict_where_the_sampler_is_not_q():
    """q cut at top-p .9 drew the tokens: mean(r) is the kept mass, not 1."""
    generator = np.random.default_rng(6)
    q = np.sort(generator.dirichlet(np.full(200, 0.3)))[::-1] + 1e-6
    q /= q.sum()
    cut = np.where(np.cumsum(q) < 0.9, q, 0)
    x = generator.choice(200, size=(ROWS, COLUMNS), p=cut / cut.sum())
    p = near(q, 0.05)
    batch = {"policy": torch.tensor(np.log(q)[x]), "ref": torch.tensor(np.log(p)[x])}
    honest, _ = verdict(sampled(q, p))
    assert "hardly" not in honest
    collapsed = {"policy": batch["policy"] - np.log(cut.sum()), "ref": batch["ref"]}
    text, pair = verdict(collapsed)
    assert abs(pair["gap_z"]) > 5
    assert f"{-pair['gap']:.2g} of ref's mass lies where policy hardly samples" in text
    assert f"believe k1 = {pair['k1/mean']:.3g} nats: k3 misses what q no longer samples" in text


def test_neither_is_believed_where_another_policy_drew_the_tokens():
    """Drawn from p, which q is far from: mean(r) is 1 + chi^2(p || q), above 1."""
    generator = np.random.default_rng(7)
    q = generator.dirichlet(np.full(200, 3.0))
    p = near(q, 0.7)
    x = generator.choice(200, size=(ROWS, COLUMNS), p=p)
    text, pair = verdict({"policy": torch.tensor(np.log(q)[x]), "ref": torch.tensor(np.log(p)[x])})
    assert pair["gap_z"] > 5
    assert "the tokens fit draws from ref, not from policy" in text
    assert "believe neither: the tokens fit draws from p, not from q" in text


def test_precision_is_said_where_it_cannot_resolve_the_kl():
    q = near(Q, 1.0)
    batch = {k: v.bfloat16() for k, v in sampled(q, near(q, 0.003)).items()}
    text, _ = verdict(batch)
    assert "16-bit precision" in text


@pytest.mark.parametrize(("rows", "said"), [(12, True), (64, False)])
def test_few_sequences_are_said(rows, said):
    text, _ = verdict({k: v[:rows] for k, v in CLEAN.items()})
    assert (f"standard errors are unreliable: {rows} sequences" in text) == said


@pytest.mark.parametrize(("noise", "best"), [(0.02, 3.0), (1.0, math.nan)])
def test_off_policy_gives_the_weighted_estimates(noise, best):
    """Tokens of an engine that differs by its rounding are as good as the policy's own."""
    generator = torch.Generator().manual_seed(0)
    old = CLEAN["policy"] + noise * torch.randn(ROWS, COLUMNS, generator=generator)
    text, pair = verdict(CLEAN | {"old": old})
    assert pair["on_policy"] == 0
    assert pair["best"] == pytest.approx(best, nan_ok=True)
    if math.isnan(best):
        weighted = f"importance-weighted k1 = {pair['iw/k1/mean']:.4g}"
        assert f"believe neither: q did not draw these tokens; {weighted}" in text
    else:
        weighted = f"importance-weighted {pair['iw/k3/mean']:.3g} nats"
        assert f"another policy drew the tokens, which changes little ({weighted}" in text


def test_no_verdict_is_longer_than_six_lines():
    batch = with_token(9.0)
    batch["ref"][5, 6] = batch["policy"][5, 6] - 40
    batch["ref"][0, 0] = float("nan")
    few = {
        name: value[:8].float().bfloat16() for name, value in batch.items() if name != "token_ids"
    }
    text, _ = verdict(few)
    assert 2 <= len(text.splitlines()) <= 6
    assert "believe k1 before k3" in text


@pytest.mark.parametrize(
    ("d", "said"),
    [
        (
            torch.zeros(4, 8),
            "believe neither: both policies gave the very same log-probs, so every estimate is 0",
        ),
        (torch.full((4, 8), torch.nan), "32 tokens have a nan or infinite log-ratio"),
    ],
)
def test_where_there_is_nothing_to_estimate_nothing_is_believed(d, said):
    q = -torch.rand(4, 8)
    text, pair = verdict({"policy": q, "ref": q + d})
    assert said in text
    assert "believe neither" in text
    assert np.isnan(pair["best"])


def test_completions_of_one_prompt_tell_of_no_other():
    ids = torch.zeros(ROWS, dtype=torch.long)
    assert "one prompt: standard errors tell of its" in verdict(CLEAN | {"prompt_ids": ids})[0]
    assert "64 prompts" not in verdict(CLEAN | {"prompt_ids": torch.arange(ROWS)})[0]


def test_the_quieter_estimator_is_believed_though_a_token_stands_out_in_it():
    """A token of 12 standard deviations, and yet k3's error is a fifth of k1's."""
    q = -torch.rand(ROWS, COLUMNS, dtype=torch.float64)
    d = 0.001 * torch.randn(
        q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    d[3, 5] = 0.03
    text, pair = verdict({"policy": q, "ref": q + d})
    assert pair["dominance/k3/level"] >= 1
    assert pair.k3.se < pair.k1.se
    assert "believe k3 without its largest tokens" in text
