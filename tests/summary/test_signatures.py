"""The signatures of causes, by both passes: against their formulas, and as sums that merge."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klmonitor.numbers.signatures import Signatures
from klmonitor.pairs import default_pairs
from klmonitor.summary import signatures as signed
from klmonitor.summary.batch import build
from klmonitor.summary.extras import Extras, Versions, checked_entropy
from klmonitor.summary.fields import (
    PROBABILITIES,
    SAMPLED,
    SIGNATURE,
    SummaryConfig,
)
from klmonitor.summary.intake import Intake, Known
from klmonitor.summary.sequences import unpacked
from klmonitor.summary.state import Summary
from tests.helpers.steps import choose_pass

ROWS, COLUMNS = 7, 23


def drawn(seed=0, rows=ROWS, columns=COLUMNS):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (rows, columns))
    found = {
        "rollout": old + rng.normal(0, 0.3, old.shape),
        "old": old,
        "ref": old + rng.normal(0, 0.5, old.shape),
    }
    mask = rng.random(old.shape) < 0.8
    mask[:, 0] &= rng.random(rows) < 0.5
    mask[0] = False  # a sequence without tokens
    return found, mask, rng.exponential(1.0, old.shape), np.arange(rows) % 5


def ratio_of(a, b):
    """Sum of a over sum of b, with its error by sequence."""
    a, b = np.array(a), np.array(b)
    value, n = a.sum() / b.sum(), len(a)
    return value, math.sqrt(n / (n - 1) * ((a - value * b) ** 2).sum()) / b.sum()


def plain(log_probs, mask, entropy, lag):
    """Sums and ratios of the pair rollout_old, row by row."""
    q, p, f = (log_probs[name] for name in ("rollout", "old", "ref"))
    rows = [i for i in range(len(q)) if mask[i].any()]
    terms = {
        name: [] for name in ("d", "gap", "surprise", "who", "first", "last", "middle", "lone")
    }
    shift, slope, context, products = [], [], [], []
    by_lag = {f"lag{k}": [] for k in range(4)}
    for i in rows:
        at = np.flatnonzero(mask[i])
        d = p[i, at] - q[i, at]
        n = len(at)
        terms["d"].append((d.sum(), n))
        terms["gap"].append(((np.exp(d) - 1).sum(), n))
        terms["surprise"].append(((-p[i, at] - entropy[i, at]).sum(), n))
        terms["who"].append((((q[i, at] - f[i, at]) ** 2 - d**2).sum(), n))
        terms["first"].append((abs(d[0]) if n > 1 else 0.0, float(n > 1)))
        terms["lone"].append((abs(d[0]) if n == 1 else 0.0, float(n == 1)))
        terms["last"].append((abs(d[-1]) if n > 1 else 0.0, float(n > 1)))
        terms["middle"].append((np.abs(d[1:-1]).sum(), max(n - 2, 0)))
        k = min(lag[i], 3)
        k3 = np.exp(d) - 1 - d
        for name, into in by_lag.items():
            into.append((k3.sum(), n) if name == f"lag{k}" else (0.0, 0.0))
        x, y = q[i, at] - q[i, at].mean(), p[i, at] - p[i, at].mean()
        bend = (y - x) * (x + y) / 2
        bend = bend - bend.mean()
        near = [(t, t + 1) for t in range(n - 1) if at[t + 1] == at[t] + 1]
        before, after = (sum(x[b] * y[a] for a, b in near), sum(x[a] * y[b] for a, b in near))
        shift.append((before - after, (x @ x + y @ y) / 2))
        context.append((sum(bend[b] * y[a] - bend[a] * y[b] for a, b in near), bend @ bend))
        slope.append(((y - x) @ (x + y) / 2, ((x + y) / 2) @ ((x + y) / 2)))
        products.append((x @ x, y @ y, x @ y, before, after))
    ratios = terms | {"shift": shift, "slope": slope, "context": context} | by_lag
    sums = dict(zip(("qq", "pp", "qp", "before", "after"), np.sum(products, axis=0), strict=True))
    return ratios, sums


def taken(log_probs, layout, known=None):
    intake = Intake()
    arrays = {name: values.astype(np.float32) for name, values in log_probs.items()}
    intake.add(arrays, layout, None, None, "train", 0, known or Known())
    return intake.take("train")


@pytest.fixture(autouse=True)
def _numpy_as_in_the_package():
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(params=["plain", "compiled"], autouse=True)
def _each_pass(request, monkeypatch):
    """Plain torch, and the compiled pass; it is seen that no other does the work."""
    choose_pass(monkeypatch, request.param)
    compiled, offered = [], signed.KERNEL.add
    monkeypatch.setattr(
        signed.KERNEL, "add", lambda *a: compiled.append(offered(*a)) or compiled[-1]
    )
    yield
    assert set(compiled) <= {request.param == "compiled"}


def signs_of(summary, place=3):
    """Of the pair rollout_old."""
    return Signatures(summary.arrays["signatures"][place].tolist())


def packed(array, mask, rows):
    return np.concatenate([array[i][mask[i]] for i in rows])


PACKED = {"packed": [0, 5, 1, 23, 2, 11, 9], "packed alike": [0, 20, 23, 17, 19, 22, 15]}
"""Lengths of sequences: as rows the first would be mostly empty."""


@pytest.mark.parametrize("layout", ["rows", *PACKED])
def test_every_mean_equals_its_formula(layout):
    log_probs, mask, entropy, lag = drawn()
    if layout in PACKED:  # packed input has no holes: only counted tokens are there
        mask = np.arange(COLUMNS) < np.array(PACKED[layout])[:, None]
    ratios, sums = plain(log_probs, mask, entropy, lag)
    if layout == "rows":
        known = Known(entropy.astype(np.float32), 4 - lag, 4)
        signs = signs_of(taken(log_probs, {"mask": mask}, known))
    else:
        rows = range(ROWS)
        ends = np.cumsum([0, *mask.sum(1)])
        flat = {name: packed(x, mask, rows) for name, x in log_probs.items()}
        known = Known(packed(entropy, mask, rows).astype(np.float32), 4 - lag, 4)
        signs = signs_of(taken(flat, {"cu_seqlens": ends}, known))
    for name, terms in ratios.items():
        expected = ratio_of(*zip(*terms, strict=True))
        found = signs.mean(name)
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6, nan_ok=True), name
    for name, value in sums.items():
        assert signs.sum(name) == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_the_metrics_of_sequences_and_probabilities():
    log_probs, mask, entropy, _ = drawn(3, rows=40)
    signs = signs_of(taken(log_probs, {"mask": mask}, Known(entropy.astype(np.float32))))
    q, p = log_probs["rollout"], log_probs["old"]
    d = np.where(mask, p - q, 0.0)
    seen = mask.any(1)
    ratio = np.exp(d.sum(1))[seen]
    assert signs.sum("sequences") == seen.sum()
    assert signs.share("ratio_above", "sequences") == pytest.approx((ratio > 3).mean())
    assert signs.share("ratio_below", "sequences") == pytest.approx((ratio < 1 / 3).mean())
    assert signs.sum("ratio") == pytest.approx(ratio.sum(), rel=1e-5)
    assert signs.sum("ratio2") == pytest.approx((ratio**2).sum(), rel=1e-5)
    k3 = np.where(mask, np.exp(d) - 1 - d, 0.0).max(1)
    assert signs.share("largest", "sequences") == pytest.approx(k3[seen].mean(), rel=1e-4)
    assert signs.entropy == pytest.approx(entropy[mask].mean(), rel=1e-5)
    edges = (0.0, *PROBABILITIES, np.inf)
    for i in range(len(PROBABILITIES) + 1):
        inside = mask & (np.exp(np.minimum(q, 0)) >= edges[i]) & (np.exp(q) < edges[i + 1])
        if i == len(PROBABILITIES):
            inside = mask & (np.exp(np.minimum(q, 0)) >= edges[i])
        assert signs.sum(f"n_{i}") == inside.sum()
        expected = np.abs(d[inside]).sum()
        assert signs.sum(f"abs_{i}") == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_counts_of_what_cannot_be_and_where_padding_is():
    log_probs, _, _, _ = drawn(5, rows=10, columns=40)
    for name in log_probs:
        log_probs[name][:, 30:] = -7.0  # of one value under all
    log_probs["rollout"][0, 3] = 0.0
    log_probs["rollout"][1, :3] = 2.0
    log_probs["old"][2, 4] = -1e10
    log_probs["old"][:3, 5] = [-0.04, -1.0, -2.0]
    log_probs["rollout"][:3, 5] = 0.0
    mask = np.ones((10, 40), dtype=bool)
    mask[9] = False
    signs = signs_of(taken(log_probs, {"mask": mask}))
    found = {name: signs.sum(name) for name in ("zero_q", "huge_p", "high_q", "padded", "rows")}
    assert found == {"zero_q": 3, "huge_p": 1, "high_q": 3, "padded": 90, "rows": 9}
    assert signs.sum("padded_rows") == 9


def test_zeros_all_over_a_peaked_model_are_no_padding():
    rng = np.random.default_rng(0)
    peaked = np.where(rng.random((16, 50)) < 0.9, 0.0, -rng.exponential(1.0, (16, 50)))
    signs = signs_of(taken({"rollout": peaked, "old": peaked * 1.001}, {}))
    assert signs.sum("padded_rows") == 0
    assert signs.sum("zero_q") == 0


def test_parts_of_a_batch_add_up_to_the_whole():
    log_probs, mask, entropy, lag = drawn(7, rows=12)
    whole = taken(log_probs, {"mask": mask}, Known(entropy.astype(np.float32), 4 - lag, 4))
    parts = [
        taken(
            {name: x[some] for name, x in log_probs.items()},
            {"mask": mask[some]},
            Known(entropy[some].astype(np.float32), (4 - lag)[some], 4),
        )
        for some in (slice(0, 5), slice(5, 12))
    ]
    merged = parts[1].merge(parts[0])
    np.testing.assert_allclose(
        merged.arrays["signatures"], whole.arrays["signatures"], rtol=1e-12, atol=1e-12
    )


def test_only_whole_rows_of_so_many_tokens_are_taken():
    rows, columns = 40, 3000
    log_probs, *_ = drawn(1, rows, columns)
    batch = build({name: torch.tensor(x) for name, x in log_probs.items()})
    state = Summary.empty(SummaryConfig())
    pairs = default_pairs(batch.log_probs)
    taken_now = signed.add(state, batch, pairs, Extras(), 0)
    assert taken_now == SAMPLED // columns * columns
    assert state.signatures[3, SIGNATURE["tokens"]] == taken_now
    assert signed.add(state, batch, pairs, Extras(), taken_now) == taken_now
    assert state.signatures[3, SIGNATURE["tokens"]] == taken_now


@pytest.mark.parametrize("first", [SAMPLED - 10, 5000])
def test_a_packed_sequence_that_is_cut_is_left_out(first):
    lengths = [first] * ((SAMPLED - 10) // first) + [SAMPLED]
    values = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0, *np.cumsum(lengths)])
    batch = build({"rollout": values, "old": values + 0.1}, cu_seqlens=ends)
    state = Summary.empty(SummaryConfig())
    signed.add(state, batch, default_pairs(batch.log_probs), Extras(), 0)
    assert state.signatures[3, SIGNATURE["tokens"]] == sum(lengths[:-1])
    assert state.signatures[3, SIGNATURE["sequences"]] == len(lengths) - 1


def test_packed_sequences_become_rows_where_these_are_not_mostly_empty():
    for name, lengths in PACKED.items():
        segments = torch.repeat_interleave(torch.arange(7), torch.tensor(lengths))
        found = unpacked(segments)
        assert (found is None) == (name == "packed")
        if found is not None:
            rows, places, inside = found
            assert rows.count == 7
            assert rows.segments is None
            assert inside.sum(1).tolist() == lengths
            assert places[inside].tolist() == list(range(sum(lengths)))


def test_an_entropy_or_a_version_that_does_not_fit_is_refused():
    batch = build({"rollout": torch.zeros(3, 4), "old": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match=r"entropy has shape \[3, 5\]"):
        checked_entropy(torch.zeros(3, 5), batch)
    with pytest.raises(TypeError, match="entropy has dtype"):
        checked_entropy(torch.zeros(3, 4, dtype=torch.long), batch)
    with pytest.raises(ValueError, match=r"version has shape \[2\]"):
        Versions().lag(torch.zeros(2, dtype=torch.long), None, batch)
    with pytest.raises(TypeError, match="version has dtype"):
        Versions().lag(torch.zeros(3), None, batch)


def test_the_lag_is_from_the_largest_version_so_far_or_the_one_that_is_told():
    batch = build({"rollout": torch.zeros(3, 4), "old": torch.zeros(3, 4)})
    versions = Versions()
    assert versions.lag(np.array([3, 5, 4]), None, batch).tolist() == [2, 0, 1]
    assert versions.lag(4, None, batch).tolist() == [1, 1, 1]
    assert versions.lag(4, 9, batch).tolist() == [5, 5, 5]
    assert versions.lag(None, 9, batch) is None
