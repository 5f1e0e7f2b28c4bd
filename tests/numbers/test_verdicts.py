"""The one verdict: every reason in its place; none is named that an open alert excludes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from klmonitor import Monitor
from klmonitor.numbers.sums import GAP_SHARE, GAP_Z
from klmonitor.numbers.verdicts import EITHER, GAP_FLOOR, UNRESOLVED, gap_fails, verdict
from klmonitor.report import Cause
from klmonitor.testing import BATCHES, token_batch

CLEAN = {
    "tokens": 1000.0,
    "on_policy": 1.0,
    "identical": 0.0,
    "low_precision": 0.0,
    "k1/mean": 0.021,
    "k1/se": 0.002,
    "k3/mean": 0.02,
    "k3/se": 0.001,
    "cv/lambda": 0.95,
    "cv/mean": 0.0202,
    "cv/se": 0.0009,
    "gap": -0.001,
    "gap_z": -1.0,
    "dominance/k1/level": 0.0,
    "dominance/k3/level": 0.0,
    "k1/mean_without_top": 0.019,
    "k3/mean_without_top": 0.018,
    "iw/k1/mean": 0.03,
    "iw/k3/mean": 0.04,
    "iw/ess": 0.5,
}


NEARLY = {"on_policy": 0.0, "iw/k1/mean": 0.0211, "iw/k3/mean": 0.0201, "iw/ess": 0.99}
"""An engine that rounds drew the tokens."""
NO_MIXTURE = {"cv/lambda": math.nan, "cv/mean": math.nan}
BEST = {"cv": 0, "k1": 1, "k3": 3, None: math.nan}


@pytest.mark.parametrize(
    ("changes", "open_kinds", "estimator", "words"),
    [
        ({}, (), "k3", "less noisy here (in their best mixture k3 counts 95%, lambda 0.95)"),
        (
            {"cv/lambda": EITHER - 0.01},
            (),
            "k1",
            "less noisy here (in their best mixture k3 counts 9%, lambda 0.09)",
        ),
        ({"cv/lambda": 0.05, "ess": 0.4}, (), "k1", "lambda 0.05, and k3's interval cannot hold"),
        ({"cv/lambda": EITHER + 0.01}, (), "cv", "less noisy than either (k3 counts 11%)"),
        ({"cv/lambda": 0.99 - EITHER}, (), "cv", "cv = 0.0202 nats"),
        ({"cv/lambda": 0.5, "cv/se": 0.0011}, (), "cv", "tokens weighs them (k3 counts 50%)"),
        ({"cv/lambda": 0.5, "clusters": 16.0}, (), "cv", "(95 % interval 0.0183 to 0.0222)"),
        (
            {"cv/lambda": 0.5, "cv/mean": 0.001, "cv/se": 0.001, "clusters": 64.0},
            (),
            "cv",
            "(95 % interval 0 to 0.003)",
        ),
        (
            {"cv/lambda": 0.4, "cv/mean": math.nan},
            (),
            "k1",
            "less noisy here (in their best mixture k3 counts 40%, lambda 0.40)",
        ),
        (NO_MIXTURE, (), "k3", "its error is the smaller, 0.001"),
        (NO_MIXTURE | {"k3/se": 0.01}, (), "k1", "its error is the smaller, 0.002"),
        ({"tokens": 0.0}, (), None, "no token was counted"),
        ({"identical": 1.0}, (), None, "the very same log-probs"),
        ({"low_precision": 1.0, "k3/mean": 0.9 * UNRESOLVED}, (), None, "16 bits"),
        ({"low_precision": 1.0, "k3/mean": 1.1 * UNRESOLVED}, (), "k3", "less noisy"),
        ({"on_policy": 0.0}, (), None, "k1 = 0.03, k3 = 0.04 nats (effective share of tokens 50%)"),
        (
            NEARLY,
            (),
            "k3",
            "which changes little (importance-weighted 0.0201 nats",
        ),
        (
            NEARLY | {"gap": 0.01, "gap_z": 9.0},
            (),
            None,
            "k3 - k1 is more than draws from q leave, though weighted",
        ),
        (NEARLY | {"gap": 0.01}, ("gap",), None, "though weighted for what drew the tokens"),
        (
            NEARLY | {"gap": -0.01, "gap_z": -9.0},
            (),
            "k1",
            "k1 = 0.021 nats, if p's log-probs are those of these tokens: k3 misses",
        ),
        (
            NEARLY | {"gap": -0.01, "gap_z": -9.0, "iw/k1/mean": 0.03},
            (),
            None,
            "no longer samples, and another policy drew the tokens (importance-weighted k1 = 0.03",
        ),
        (
            {"on_policy": 0.0, "gap": math.nan, "gap_z": math.nan},
            ("gap",),
            None,
            "(effective share of tokens 50%)",
        ),
        ({"gap": 0.01, "gap_z": 9.0}, (), None, "the sampler draws tokens that q hardly would"),
        ({"gap": 0.01, "gap_z": 1.0}, ("gap",), None, "the sampler draws tokens"),
        ({"gap": -0.01, "gap_z": -9.0}, (), "k1", "k3 misses what q no longer samples"),
        ({"gap": -0.01, "gap_z": -2.0}, ("gap",), "k1", "k3 misses what q no longer samples"),
        ({}, ("k1_negative",), None, "k1 has averaged below 0"),
        ({"dominance/k1/level": 1.0}, (), "k3", "k3 = 0.02 nats: a few tokens carry k1"),
        ({"dominance/k3/level": 2.0, "k3/se": 0.01}, (), "k1", "k1 = 0.021 nats: a few tokens"),
        # a dominated estimator may still have the smaller error, where no alert excludes it
        ({"dominance/k3/level": 1.0}, (), "k3", "k3 without its largest tokens, 0.018 nats"),
        ({"dominance/k3/level": 1.0}, ("dominance_k3",), "k1", "k1 = 0.021 nats: a few tokens"),
        (
            {"dominance/k3/level": 2.0, "k1/mean": 0.003},
            ("dominance_k3",),
            None,
            "a few tokens carry k3, which is 0.018 nats without them, and the error of k1, 0.002",
        ),
        ({"dominance/k1/level": 1.0, "dominance/k3/level": 2.0}, (), "k1", "k1 before k3"),
        ({"dominance/k1/level": 2.0, "dominance/k3/level": 1.0}, (), "k3", "k3 before k1"),
        (
            {"dominance/k1/level": 1.0, "dominance/k3/level": 2.0},
            ("dominance_k1",),
            None,
            "a few tokens carry both; without them k1 = 0.019 nats and k3 = 0.018 nats",
        ),
        ({"dominance/k1/level": 2.0, "dominance/k3/level": 2.0}, (), None, "carry both"),
        (
            {"gap": -0.01, "gap_z": -9.0, "dominance/k1/level": 1.0},
            (),
            None,
            "a few tokens carry k1; without them k1 = 0.019 nats",
        ),
    ],
)
def test_each_reason_in_its_place(changes, open_kinds, estimator, words):
    found = verdict(CLEAN | changes, open_kinds)
    assert found.estimator == estimator
    assert words in found.text
    assert found.text.startswith("neither" if estimator is None else estimator)
    assert found.best == pytest.approx(BEST[estimator], nan_ok=True)


def test_input_that_cannot_be_is_said_before_all_else():
    found = verdict(CLEAN | {"tokens": 0.0}, ("gap",), Cause("zeros", "all are 0", impossible=True))
    assert (found.estimator, found.text) == (None, "neither: all are 0")


def test_where_too_little_is_known_nothing_is_said():
    assert verdict({}).text == ""
    assert "too little is known" in verdict({"tokens": 1.0, "on_policy": 1.0}).text
    assert verdict({"k3/mean": 0.1}).estimator is None


def test_a_gap_of_rounding_is_none():
    wild = CLEAN | {"k3/mean": 1e-6, "gap_z": -9.0}
    assert not gap_fails(wild | {"gap": -0.9 * GAP_FLOOR})
    assert gap_fails(wild | {"gap": -1.1 * GAP_FLOOR})
    assert not gap_fails(wild | {"gap": -9 * GAP_FLOOR, "low_precision": 1.0})


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_the_gap_test_s_thresholds(factor):
    """Ten per cent of either decides."""
    inside = CLEAN | {"gap": -2 * GAP_SHARE * CLEAN["k3/mean"], "gap_z": -factor * GAP_Z}
    assert gap_fails(inside) == (factor > 1)
    share = CLEAN | {"gap": -factor * GAP_SHARE * CLEAN["k3/mean"], "gap_z": -2 * GAP_Z}
    assert gap_fails(share) == (factor > 1)


EXCLUDED = {
    "dominance_k1": lambda numbers: {"k1"},
    "dominance_k3": lambda numbers: {"k3"},
    "gap": lambda numbers: {"k1", "k3"} if numbers["gap"] > 0 else {"k3"},
    "k1_negative": lambda numbers: {"k1", "k3"},
}
"""What an open alert of a kind excludes, written down apart from the verdict."""


def batches(number, seed=0):
    """Random batches: every pathology, some noise, any number of sequences."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        made = token_batch(
            BATCHES[int(rng.integers(len(BATCHES)))],
            sequences=int(rng.integers(2, 24)),
            length=int(rng.integers(4, 40)),
            vocabulary=64,
            noise=float(10 ** rng.uniform(-4, 0.5)),
            seed=seed + i,
        )
        log_p = np.where(rng.random(made.log_p.shape) < rng.choice([0, 0.01]), -30.0, made.log_p)
        yield made, log_p


def disagreements(number, seed=0):
    """Steps at which alerts, explain() and best do not say the same of a pair."""
    monitor, found, believed = Monitor(rules="sensitive", strict=True), [], set()
    for step, (made, log_p) in enumerate(batches(number, seed)):
        monitor.observe(policy=made.log_q, ref=log_p, mask=made.mask)
        report = monitor.step(step)
        for pair in report.pairs.values():
            excluded = set().union(*(EXCLUDED[k](pair) for k in pair.open_kinds if k in EXCLUDED))
            best = {0.0: "cv", 1.0: "k1", 3.0: "k3"}.get(pair["best"])
            believed.add(best)
            said = report.explain().splitlines()[-1].strip()
            alerts = [alert.believe for alert in report.alerts if alert.pair == pair.name]
            if (
                best in excluded
                or (best == "cv" and excluded)
                or best != pair.verdict.estimator
                or said != f"believe {pair.verdict.text}"
                or not said.startswith(f"believe {best or 'neither'}")
                or any(believe != pair.verdict.text for believe in alerts)
            ):
                found.append((step, pair.open_kinds, best, said, alerts))
    monitor.close()
    return found, believed


def test_alerts_words_and_best_agree_on_random_batches():
    """benchmarks/agreement.py does the same on 10,000."""
    found, believed = disagreements(400)
    assert found == []
    assert believed == {"cv", "k1", "k3", None}
