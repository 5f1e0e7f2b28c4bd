"""Situations that people reported, rebuilt small: what a monitor says of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klmonitor import Monitor

ROWS, COLUMNS, CONTEXTS, WORDS = 32, 64, 300, 600


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class Policies:
    """A trainer's policy, one near it, and draws of tokens from it."""

    def __init__(self, seed=0, drift=0.15):
        self.rng = np.random.default_rng(seed)
        exponent = 0.8 + 1.2 * self.rng.random((CONTEXTS, 1))
        self.base = -exponent * np.log(np.arange(1, WORDS + 1))
        self.base += 0.3 * self.rng.normal(size=self.base.shape)
        self.other = self.base + drift * self.rng.normal(size=self.base.shape)

    def tokens(self, logits=None, rows=ROWS):
        """Contexts and tokens [rows, COLUMNS] drawn from the base, or from given logits."""
        context = self.rng.integers(0, CONTEXTS, (rows, COLUMNS))
        noise = self.rng.gumbel(size=(rows, COLUMNS, WORDS))
        source = self.base if logits is None else logits
        return context, (source[context] + noise).argmax(-1)


def score(logits, context, token):
    return log_softmax(logits)[context, token]


def steps(monitor, number, make):
    reports = []
    for step in range(1, number + 1):
        log_probs, layout = make(step)
        arrays = {name: torch.tensor(x) for name, x in log_probs.items()}
        monitor.observe(**arrays, **layout)
        reports.append(monitor.step(step))
    return reports


PROMPTS = np.arange(ROWS) // 4


def said(reports, kind):
    return [alert for report in reports for alert in report.alerts if alert.kind == kind]


def engine_of(change, *, pair=("policy", "rollout"), number=6, seed=0, **layout):
    """Reports of steps whose second policy's log-probs were changed."""
    world = Policies(seed)

    def make(_):
        context, token = world.tokens()
        mine = score(world.base, context, token)
        theirs = mine + 0.001 * world.rng.normal(size=mine.shape)
        mine, theirs = change(mine, theirs)
        return dict(zip(pair, (mine, theirs), strict=True)), {"prompt_ids": PROMPTS, **layout}

    return steps(Monitor(process_group=False), number, make)


def last_columns(n, value):
    def change(mine, theirs):
        theirs = theirs.copy()
        theirs[:, -n:] = value
        return mine, theirs

    return change


@pytest.mark.parametrize(
    ("change", "count", "what"),
    [
        (last_columns(5, 0.0), "exactly 0 for 160 tokens", "a placeholder, no score"),
        (lambda a, b: (a, 0 * b), "exactly 0 for 2,0", "a placeholder, no score"),
        (last_columns(1, 1.0), "above 0 for 32 tokens (1 at micro-batch 0", "not log-probs"),
        (lambda a, b: (a, np.exp(b)), "above 0 for 1,", "probabilities"),
        (lambda a, b: (a, -b), "above 0 for 2,0", "negative log-likelihoods"),
        (last_columns(2, -1e10), "beyond +-10,000 for 64 tokens", "a sentinel"),
    ],
)
def test_input_that_cannot_be_is_told_first_and_once(change, count, what):
    reports = engine_of(change)
    (alert,) = said(reports, "impossible")
    assert (alert.step, alert.severity) == (1, "critical")
    assert count in alert.message
    assert what in alert.message
    for report in reports:
        pair = report.pairs["rollout_policy"]
        assert pair.cause.impossible
        assert np.isnan(pair["best"])
        assert pair.verdict.text.startswith("neither: rollout's log-probs are")
        assert pair.cause.text in report.explain().splitlines()[1]
    assert not said(reports, "gap")
    assert "collapsed" not in " ".join(report.explain() for report in reports)


def test_padding_that_counts_is_told():
    def padded(mine, theirs):
        return tuple(np.where(np.arange(COLUMNS) < 40, x, 0.0) for x in (mine, theirs))

    reports = engine_of(padded, pair=("policy", "ref"))
    (alert,) = said(reports, "impossible")
    assert "768 tokens at the ends of 32 of 32 sequences" in alert.message
    assert "forgot the mask?" in alert.message


def test_what_the_mask_hides_is_harmless():
    def behind(mine, theirs):
        mine, theirs = mine.copy(), theirs.copy()
        mine[:, 40:], theirs[:, 40:] = -1e10, 1.0
        theirs[::2, 50:] = np.nan
        return mine, theirs

    mask = np.broadcast_to(np.arange(COLUMNS) < 40, (ROWS, COLUMNS))
    reports = engine_of(behind, mask=mask)
    assert not [alert for report in reports for alert in report.alerts]
    assert not any(report.pairs["rollout_policy"].cause.name for report in reports)


def test_a_peaked_model_may_give_exact_zeros():
    def peaked(mine, theirs):
        sure = np.random.default_rng(1).random(mine.shape) < 0.7
        return np.where(sure, 0.0, mine), np.where(sure, -1e-7, theirs)

    assert not said(engine_of(peaked), "impossible")


def test_logits_of_the_neighbouring_position_are_named():
    world = Policies(3)

    def make(_):
        context, token = world.tokens(world.other)
        before = np.roll(context.ravel(), 1).reshape(context.shape)
        return {
            "policy": score(world.other, before, token),
            "ref": score(world.base, context, token),
        }, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 6, make)
    (alert,) = said(reports, "cause")
    assert "the tensors are shifted by one position" in alert.message
    assert "the position before" in alert.message


def test_sequences_of_one_prompt_are_named():
    world = Policies(4)
    far = world.base + 0.9 * world.rng.normal(size=world.base.shape)

    def make(_):
        context, token = world.tokens()
        rollout = score(world.base, context, token)
        old = rollout + 0.01 * world.rng.normal(size=rollout.shape)
        old[PROMPTS == 2] = score(far, context, token)[PROMPTS == 2]
        return {"rollout": rollout, "old": old}, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 2, make)
    pair = reports[-1].pairs["rollout_old"]
    assert pair.cause.name == "sequences"
    assert "4 of 32 sequences, all of one prompt, hold" in pair.cause.text
    assert {f"{n} of micro-batch 0" in pair.cause.text for n in (8, 9, 10, 11)} == {True}


@pytest.mark.parametrize("odd", [1, 2, 3, 5, 7])
def test_odd_tokens_of_a_thousand_are_believed_by_neither(odd):
    rng = np.random.default_rng(odd)
    rollout = -2 * rng.random((10, 100)) - 0.1
    policy = rollout + 1e-3 * rng.normal(size=rollout.shape)
    policy.flat[rng.permutation(1000)[:odd]] -= 50
    monitor = Monitor(process_group=False)
    monitor.observe(rollout=rollout, policy=policy, prompt_ids=np.arange(10))
    report = monitor.step(1)
    pair = report.pairs["rollout_policy"]
    assert (pair["dominance/k3/level"], pair["dominance/k3/tokens"]) == (2, odd)
    assert np.isnan(pair["best"])
    assert "believe neither: a few tokens carry both" in report.explain()


@pytest.mark.parametrize("prompts", [2, 4, 8])
def test_a_wrong_temperature_is_told_within_three_steps_however_few_prompts(prompts):
    """Sampled and scored by the trainer at T = .6, scored by the engine at 1."""
    world = Policies(5)
    rows = 8 * prompts

    def make(_):
        context, token = world.tokens(world.base / 0.6, rows)
        return {
            "rollout": score(world.base, context, token),
            "policy": score(world.base / 0.6, context, token),
        }, {"prompt_ids": np.arange(rows) // 8}

    reports = steps(Monitor(process_group=False), 3, make)
    (negative,) = said(reports, "k1_negative")
    assert "standard errors below 0, which no KL is" in negative.message
    assert said(reports, "gap")
    assert "at different temperatures" in reports[-1].pairs["rollout_policy"].cause.text
    assert np.isnan(reports[-1].pairs["rollout_policy"]["best"])


def test_rounding_of_two_kernels_is_no_gap():
    """Log-probs of one policy that differ by a float32's last bits, all to one side."""

    def rounded(mine, _):
        return mine.astype(np.float32), np.nextafter(mine.astype(np.float32), np.float32(0))

    reports = engine_of(rounded)
    assert reports[-1].pairs["rollout_policy"].k3.mean < 1e-12
    assert not [alert for report in reports for alert in report.alerts]
