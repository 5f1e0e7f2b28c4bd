"""Alerts about what the KL term pulls: real tokens through a monitor, one term beside another."""

import math

import numpy as np
import pytest

from klmonitor import Monitor, Penalty
from klmonitor.rules.pull import pull_dead, pull_dominated, pull_reversed

KINDS = {"pull_dead", "pull_dominated", "pull_reversed"}


def raised(penalty, draw, steps=6, **given):
    """The alerts of these kinds, and the last report."""
    monitor, found = Monitor(penalty=penalty, strict=True), []
    for step in range(steps):
        d = draw(np.random.default_rng(step))
        q = np.full_like(d, -20.0)
        monitor.observe(policy=q, ref=q + d, **given)
        report = monitor.step(step)
        found += [alert for alert in report.alerts if KINDS.intersection(alert.kinds)]
    monitor.close()
    return found, report


def noise(scale, shift=0.0):
    """d with E[e^d] = 1 at shift 0: what sampled tokens have."""
    return lambda rng: scale * rng.normal(size=(32, 64)) - scale**2 / 2 + shift


def with_far(d_of, tokens, far):
    def draw(rng):
        d = d_of(rng)
        d[:tokens, 5] = far
        return d

    return draw


def test_a_clamp_that_lets_go_of_what_strayed_is_told_once():
    draw = with_far(noise(0.1), 20, -8.0)
    (alert,), report = raised(Penalty("k3", clamp=3.0, beta=0.04), draw)
    assert (alert.kind, alert.severity, alert.step) == ("pull_dead", "warn", 0)
    lost = report.pairs["policy_ref"]["penalty/dead_pull"]
    d = draw(np.random.default_rng(5))
    assert lost == pytest.approx(20 * 8 / np.abs(d).sum(), rel=1e-2)
    assert "pulls 20 tokens of 2048 not at all" in alert.message
    assert "the term is 0.04 x k3 in the loss, clamped at 3" in alert.message
    assert raised(Penalty("k3", clamp=3.0, straight_through=True), draw)[0] == []
    assert raised(Penalty("k3", clamp=10.0), draw)[0] == []
    assert raised(Penalty("k3", clamp=3.0), with_far(noise(0.1), 4, -8.0))[0] == []
    assert raised(Penalty("k3", clamp=3.0), with_far(noise(0.8), 8, -8.0))[0] == []


def test_tokens_that_hold_the_pull_are_named():
    draw = with_far(noise(0.05), 1, 7.0)
    (alert,), _ = raised(Penalty("k3"), draw)
    assert "pull_dominated" in alert.kinds
    finding = pull_dominated(Reading(raised(Penalty("k3"), draw)[1]), LIMITS["pull_dominated"])
    assert "5 tokens of 2048 hold" in finding.message
    assert "d = +7" in finding.message
    assert raised(Penalty("k2"), draw)[0] == []
    left = with_far(noise(0.002), 1, -30.0)
    finding = pull_dominated(Reading(raised(Penalty("k2"), left)[1]), LIMITS["pull_dominated"])
    assert finding.tokens[0].log_ratio == -30.0


def test_k3_in_the_reward_that_pushes_away_is_told():
    """On-policy its effective beta is 1 less that of k3 in the loss: below 0 for d that is
    skewed to the right."""

    def skewed(rng):
        return np.log(np.where(rng.random((64, 64)) < 0.25, 2.2, 0.6))

    penalty = Penalty("k3", "reward", beta=0.05)
    (alert,), _ = raised(penalty, skewed)
    assert (alert.kind, alert.severity) == ("pull_reversed", "warn")
    assert alert.values["effective_beta"] < 0
    assert alert.values["effective_beta"] + 4 * alert.values["se"] < 0
    assert "beta is 0.05; the term is 0.05 x k3 in the reward" in alert.message
    assert raised(Penalty("k1", "reward", beta=0.05), skewed)[0] == []
    assert raised(Penalty("k3", beta=0.05), skewed)[0] == []
    assert raised(Penalty("k3", "reward", beta=-0.05), skewed)[0] == []
    assert raised(penalty, lambda rng: 0.01 * skewed(rng))[0] == []


@pytest.mark.parametrize("scale", [0.001, 0.01, 0.1, 0.3])
@pytest.mark.parametrize(
    "penalty",
    [
        Penalty("k3"),
        Penalty("k1"),
        Penalty("k3", clamp=10.0),
        Penalty("k3", ratio="differentiated"),
        Penalty("k1", "reward", returns="sequence"),
        Penalty("k3", "reward"),
    ],
    ids=str,
)
def test_ordinary_tokens_raise_none(penalty, scale):
    assert raised(penalty, noise(scale), steps=25)[0] == []


class Reading:
    """What these rules look at: the pair."""

    def __init__(self, report):
        self.pair = report.pairs["policy_ref"]


LIMITS = {
    rule.kind: rule.thresholds
    for rule in __import__("klmonitor.rules.table", fromlist=["RULES"]).RULES
    if rule.kind in KINDS
}


def test_where_nothing_is_known_nothing_is_said():
    _, report = raised(None, noise(0.3))
    for judge in (pull_dead, pull_dominated, pull_reversed):
        assert judge(Reading(report), LIMITS[judge.__name__]) is None


def test_a_negative_beta_brings_the_receipt():
    from klmonitor.report import Report
    from klmonitor.rules import RuleSet

    _, report = raised(Penalty("k3", beta=-0.5), noise(0.3))
    one = Report(step=9, pairs=report.pairs, run_values={"run/beta": -0.5})
    (alert,) = [a for a in RuleSet().judge(one).alerts if a.kind == "negative_penalty"]
    assert "rewards distance from the reference; it is -0.5 x k3 in the loss" in alert.message
    assert "it pulls" in alert.message
    assert not math.isnan(alert.values["beta"])
