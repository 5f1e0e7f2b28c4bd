"""Whatever bits log-probs have, a step's numbers are numbers: nothing raises or is printed."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klmonitor import Monitor, Penalty
from klmonitor.numbers.assemble import pair_reports
from klmonitor.numbers.sums import sums_of
from klmonitor.pairs import default_pairs
from klmonitor.summary.batch import build
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import COLUMN, SummaryConfig
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary
from tests.helpers.steps import choose_pass

ODD = (
    0.0,
    -0.0,
    3.0,
    -1e-40,
    -1e-12,
    -350.0,
    -500.0,
    -1e4,
    -3e38,
    3e38,
    math.inf,
    -math.inf,
    math.nan,
)
PENALTIES = (
    None,
    Penalty("k3", beta=0.1),
    Penalty("k2", ratio="detached", clamp_d=0.5),
    Penalty("k1", "reward"),
    Penalty("abs", "reward", returns="sequence"),
    Penalty("k3", ratio="differentiated", level="geometric"),
)
POLICIES = (("policy", "ref"), ("policy", "old", "ref"), ("policy", "old", "rollout", "ref"))


def batch(seed):
    """Log-probs of some policies, of which few, many or all are odd, and what is known beside."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 9)), int(rng.integers(1, 120))
    common = -rng.exponential(1.0, shape)
    given = {"mask": torch.tensor(rng.random(shape) < rng.choice([0.0, 0.8, 1.0]))}
    for name in POLICIES[rng.integers(len(POLICIES))]:
        values = common + rng.choice([0.0, 0.01, 2.0]) * rng.standard_t(2, shape)
        odd = rng.random(shape) < rng.choice([0.0, 0.02, 0.4, 1.0])
        values = np.where(odd, rng.choice(ODD, shape), values)
        given[name] = torch.tensor(values, dtype=torch.float32)
    for name in ("entropy", "advantages"):
        if rng.random() < 0.7:
            given[name] = torch.tensor(rng.choice([*ODD, 0.5, 0.1], shape), dtype=torch.float32)
    if rng.random() < 0.7:
        given["prompt_ids"] = torch.tensor(rng.integers(0, 3, shape[0]))
    if rng.random() < 0.3:
        given["version"] = torch.tensor(rng.integers(0, 5, shape[0]))
    return given


@pytest.fixture(scope="module", autouse=True, params=["compiled", "plain"])
def the_pass(request):
    """All of the CPU's passes."""
    with pytest.MonkeyPatch.context() as patch:
        choose_pass(patch, request.param)
        yield request.param


@settings(deadline=None, derandomize=True, max_examples=120)
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    st.sampled_from([(), ("math", "code")]),
    st.sampled_from(PENALTIES),
)
def test_no_bits_make_a_number_raise(seeds, groups, penalty):
    monitor = Monitor(groups=groups, penalty=penalty, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, seed in enumerate(seeds):
            monitor.observe(**batch(seed), group="math" if groups else None)
            report = monitor.step(number)
            for pair in report.pairs.values():
                values = dict(pair.values)
                assert {type(x) for x in values.values()} == {float}
                assert pair.verdict.text
                assert all(count > 0 for _, count in pair.histogram)
                assert all(token.where for token in pair.extremes)
    monitor.close()


TORN = ("histogram", "tokens", "sequences", "signatures", "pulls", "prompts")


@pytest.mark.parametrize("what", TORN)
def test_of_what_a_part_left_out_nothing_is_made_up(what):
    """Its numbers are unknown, the others as they are."""
    arrays = Summary.empty(SummaryConfig()).arrays
    arrays["sums"][0, 0, :] = np.random.default_rng(0).random(len(COLUMN))
    for name, count in {"core/n": 200.0, "on_policy": 200.0, "sequences": 10.0}.items():
        arrays["sums"][0, 0, COLUMN[name]] = count
    whole = pair_reports(sums_of(arrays, ("other",)))["policy_ref"].values
    arrays[what][0][...] = np.nan
    torn = pair_reports(sums_of(arrays, ("other",)))["policy_ref"].values
    assert torn["k1/mean"] == whole["k1/mean"]
    known = {name for name, x in whole.items() if not math.isnan(x)}
    changed = {name for name in known if not math.isclose(torn[name], whole[name])}
    assert all(math.isnan(torn[name]) for name in changed), changed


def test_a_damaged_histogram_makes_no_step_fail():
    """One of parts of tokens, as no pass makes it."""
    for share in (0.3, 1.03, 1.1, 1.6):
        summary = Summary.empty(SummaryConfig())
        batch = build(
            {name: torch.tensor([[-1.0, x, -3.0]]) for name, x in (("policy", -2.0), ("ref", -9.0))}
        )
        accumulate(summary, batch, default_pairs(batch.log_probs), place=Place())
        summary.arrays["histogram"][0][...] *= share
        (pair,) = pair_reports(sums_of(summary.arrays, ("other",))).values()
        assert dict(pair.values)["dominance/k1/level"] == 0


def test_what_overflows_is_unknown_and_no_rounding():
    summary = Summary.empty(SummaryConfig())
    given = {
        name: torch.tensor([[x] * 4] * 3, dtype=torch.float64)
        for name, x in (("policy", -1.0), ("ref", -1e300))
    }
    batch = build(given)
    accumulate(summary, batch, default_pairs(batch.log_probs), place=Place())
    (pair,) = pair_reports(sums_of(summary.arrays, ("other",))).values()
    assert math.isnan(pair["k2/bias_z"])
