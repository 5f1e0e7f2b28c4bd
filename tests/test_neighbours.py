"""Neighbours of the reported situations: what is said is true, and no wrong cause is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klmonitor import Monitor
from tests.test_situations import (
    COLUMNS,
    PROMPTS,
    ROWS,
    Policies,
    engine_of,
    log_softmax,
    said,
    score,
    steps,
)


def told(reports, kind="impossible"):
    (alert,) = said(reports, kind)
    return alert.message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a, b: (a, np.full_like(b, -1.0)), "one and the same value at every token"),
        (
            lambda a, b: (a, np.broadcast_to(b.mean(1, keepdims=True), b.shape).copy()),
            "a mean over the sequence",
        ),
        (lambda a, b: (a, b.cumsum(1)), "sums over sequences, or another quantity, on one side"),
        (lambda a, b: (0 * a, 0 * b), "exactly 0 for all 2,048 tokens"),
        (
            lambda a, b: tuple(np.repeat(x.sum(1, keepdims=True), 2, 1) for x in (a, b)),
            "sums over sequences, no log-probs of tokens?",
        ),
    ],
)
def test_numbers_that_are_no_token_s_are_told_first(change, what):
    reports = engine_of(change, number=2)
    assert what in told(reports)
    pair = reports[-1].pairs["rollout_policy"]
    assert pair.cause.impossible
    assert np.isnan(pair["best"])


@pytest.mark.parametrize("left", [False, True])
def test_padding_that_counts_is_told_on_either_side(left):
    rng = np.random.default_rng(0)
    length = rng.integers(16, COLUMNS - 8, ROWS)
    real = np.arange(COLUMNS) < length[:, None]
    real = real[:, ::-1] if left else real

    def padded(mine, theirs):
        return tuple(np.where(real, x, 0.0) for x in (mine, theirs))

    reports = engine_of(padded, pair=("policy", "ref"), number=2)
    assert f"{(~real).sum():,} tokens at the ends of 32 of 32 sequences" in told(reports)
    masked = engine_of(padded, pair=("policy", "ref"), number=2, mask=real)
    assert not said(masked, "impossible")


def test_a_mask_that_is_inverted_is_told_by_one_value_everywhere():
    def make(_):
        one = np.full((ROWS, COLUMNS), -2.3)
        return {"policy": one, "ref": one - 0.4}, {"prompt_ids": PROMPTS}

    assert "a mask that is inverted?" in told(steps(Monitor(process_group=False), 2, make))


@pytest.mark.parametrize(
    ("factor", "named"), [(1.4427, "1.4 times"), (0.4343, "0.43 times"), (1 / COLUMNS, "0.016 t")]
)
def test_log_probs_that_are_a_multiple_are_no_temperature_and_no_cut(factor, named):
    """Another base of the logarithm, a mean over the length."""
    reports = engine_of(lambda a, b: (a, factor * b))
    pair = reports[-1].pairs["rollout_policy"]
    assert pair.cause.name == "scaled"
    assert f"rollout's log-probs are about {named}" in pair.cause.text
    assert np.isnan(pair["best"])


def test_a_softmax_over_more_than_the_vocabulary_is_named():
    reports = engine_of(lambda a, b: (a, b - 0.03))
    pair = reports[-1].pairs["rollout_policy"]
    assert pair.cause.name == "unnormalised"
    assert "policy's tokens have 0.97 of rollout's mass" in pair.cause.text
    assert "draws tokens that q hardly would" not in reports[-1].explain()


def test_policies_passed_the_wrong_way_round_are_told():
    world = Policies(2, drift=0.6)

    def make(_):
        context, token = world.tokens()
        policy, ref = score(world.base, context, token), score(world.other, context, token)
        return {"policy": ref, "ref": policy}, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 5, make)
    pair = reports[-1].pairs["policy_ref"]
    assert pair.cause.name == "turned round"
    assert "the tokens fit draws from ref, not from policy" in pair.cause.text
    assert said(reports, "gap")[0].believe.startswith("neither")


@pytest.mark.parametrize("share", [0.005, 0.02])
def test_single_tokens_here_and_there_are_no_whole_sequences(share):
    """Rare large log-ratios on both sides, as a router's other choice of experts makes them."""
    rng = np.random.default_rng(3)

    def routed(mine, theirs):
        return mine, theirs + 2.0 * rng.normal(size=mine.shape) * (rng.random(mine.shape) < share)

    reports = engine_of(routed, number=8)
    names = {report.pairs["rollout_policy"].cause.name for report in reports}
    assert "sequences" not in names
    assert not {"temperature", "cut", "reference", "scaled", "first token"} & names


def test_versions_that_are_told_are_not_asked_for():
    """All sequences of one lag: there is no floor to compare with, and that is said."""
    world = Policies(4, drift=0.3)

    def make(step):
        context, token = world.tokens(world.other)
        arrays = {"rollout": score(world.other, context, token)}
        layout = {"version": step - 4, "current_version": step, "prompt_ids": PROMPTS}
        return arrays | {"old": score(world.base, context, token)}, layout

    pair = steps(Monitor(process_group=False), 5, make)[-1].pairs["rollout_old"]
    assert pair.cause.name == "coarse or stale"
    assert "no sequence is of lag 0" in pair.cause.text
    assert "pass version=" not in pair.cause.text


def test_a_trainer_that_scores_otherwise_is_named_beside_an_engine_that_serves_the_reference():
    """Dropout in one of two scorings lies as near to the reference as the reference itself."""
    world = Policies(5)

    def make(_):
        context, token = world.tokens()
        noisy = world.base + 0.5 * world.rng.normal(size=world.base.shape)
        return {
            "rollout": score(world.base, context, token),
            "old": score(noisy, context, token),
            "ref": score(world.other, context, token),
        }, {"prompt_ids": PROMPTS}

    pair = steps(Monitor(process_group=False), 5, make)[-1].pairs["rollout_old"]
    assert pair.cause.name == "reference"
    assert (
        "or old and ref are swapped; or old alone is scored otherwise (dropout" in pair.cause.text
    )


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize(("sharper", "nobody"), [(0.6, True), (1.5, False)])
def test_tokens_of_others_text_are_not_told_as_a_temperature_alone(sharper, nobody, engine):
    """Prompt tokens under the mask are surprising, however they are scored; a cut's are not."""
    world = Policies(14)
    every = log_softmax(world.base)
    entropy = -(np.exp(every) * every).sum(-1)

    def make(_):
        context, token = world.tokens()
        logits = sharper * world.base[context[:, :16]]
        token[:, :16] = (logits + world.rng.gumbel(size=logits.shape)).argmax(-1)
        mine = score(world.base, context, token)
        given = {"old": mine, "ref": score(world.other, context, token)}
        given |= {"rollout": mine + 0.005 * world.rng.normal(size=mine.shape)} if engine else {}
        return given, {"prompt_ids": PROMPTS, "entropy": torch.tensor(entropy[context])}

    pairs = steps(Monitor(process_group=False), 5, make)[-1].pairs
    cause = pairs["rollout_old" if engine else "old_ref"].cause
    offered = (
        "or sampled by nobody (prompt or tool tokens that the mask keeps: decode them to tell)"
    )
    assert (offered in cause.text) == nobody
    assert ("more surprising" in cause.text) == nobody


def test_rows_far_apart_are_no_coarse_engine():
    """Every eighth row is shifted: k3 of many nats is no rounding and no lag."""

    def some(mine, theirs):
        rows = np.arange(ROWS) % 8 == 0
        return mine, np.where(rows[:, None], np.roll(theirs, 1, axis=1), theirs)

    reports = engine_of(some, number=8)
    for report in reports:
        pair = report.pairs["rollout_policy"]
        assert pair.cause.name in ("sequences", "unknown", "shift")
        assert "coarse engine or stale weights" not in pair.cause.text or pair.k3.mean > 1


def test_a_collapse_stays_one_where_a_freak_token_turns_the_gap():
    """The open alert says that q lacks mass; a step whose few tokens turn the sign says no more."""
    rng = np.random.default_rng(6)
    logits = -1.3 * np.log(np.arange(1, 401)) + 0.3 * rng.normal(size=400)
    q, p = log_softmax(4 * logits), log_softmax(logits)
    monitor = Monitor(process_group=False)
    for step in range(1, 9):
        token = rng.choice(400, (ROWS, COLUMNS), p=np.exp(q))
        mine, theirs = q[token], p[token]
        if step == 8:
            theirs[0, 0] = mine[0, 0] + 7.5
        monitor.observe(policy=mine, ref=theirs, prompt_ids=PROMPTS)
        report = monitor.step(step)
    pair = report.pairs["policy_ref"]
    assert "gap" in pair.open_kinds
    assert pair["gap"] > 0
    assert pair.verdict.text == (
        "neither: the gap of the last steps is more than draws from q leave, and a few tokens make "
        "this step's"
    )


def test_a_healthy_run_with_an_engine_believes_the_reference_s_kl():
    """The engine draws the tokens; its rounding changes nothing, and neither is no answer."""
    world = Policies(7)

    def make(_):
        context, token = world.tokens()
        old = score(world.base, context, token)
        rollout = old + 0.01 * world.rng.normal(size=old.shape)
        arrays = {"rollout": rollout, "old": old, "ref": score(world.other, context, token)}
        return arrays, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 4, make)
    assert not [alert for report in reports for alert in report.alerts]
    for report in reports:
        assert report.pairs["old_ref"]["on_policy"] == 0
        assert report.pairs["old_ref"]["best"] == 3
