"""Laws of the summary: merging, splitting, masking, any bit pattern."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klmonitor.numbers.buckets import edge_index
from klmonitor.pairs import PAIR_INDEX, default_pairs
from klmonitor.summary.batch import build
from klmonitor.summary.extremes import Place, first_largest
from klmonitor.summary.fields import CENTRE, SummaryConfig
from klmonitor.summary.pairsums import buckets
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary, merge_all
from tests.helpers.steps import choose_pass, reports_of, step_of

settings.register_profile("laws", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("laws")

CONFIG = SummaryConfig(groups=("math",), prompt_buckets=64)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", autouse=True, params=["compiled", "plain"])
def the_pass(request):
    """Both of the CPU's passes, whatever the size of a batch."""
    with pytest.MonkeyPatch.context() as patch:
        choose_pass(patch, request.param)
        yield request.param


def tokens_of(seed, rows=12, columns=40, scale=None):
    generator = np.random.default_rng(seed)
    scale = 10 ** generator.uniform(-4, 0.8) if scale is None else scale
    q = -generator.exponential(2.0, (rows, columns))
    p = q + scale * generator.standard_t(4, (rows, columns))
    mask = generator.random((rows, columns)) < 0.8
    ids = generator.integers(0, 1000, (rows, columns))
    prompts = generator.integers(0, 4, rows)
    q, p = (torch.tensor(x, dtype=torch.float32) for x in (q, p))
    return q, p, torch.tensor(mask), torch.tensor(ids), torch.tensor(prompts)


def summarise(parts, config=CONFIG, groups=0):
    state = Summary.empty(config)
    for i, (q, p, mask, ids, prompts) in enumerate(parts):
        batch = build({"policy": q, "ref": p}, mask=mask, token_ids=ids, prompt_ids=prompts)
        accumulate(state, batch, default_pairs(batch.log_probs), place=Place(0, i), groups=groups)
    return state


def values_of(state):
    return reports_of(state)["policy_ref"]


def assert_close(a, b, tolerance):
    """Every number of two reports agrees to tolerance x scale, and is nan together."""
    for name, x in a.values.items():
        y = b.values[name]
        if math.isnan(x) or math.isnan(y):
            assert math.isnan(x) == math.isnan(y), name
            continue
        stem = name.rsplit("/", 1)[0]
        scale = max(abs(x), abs(a.values.get(f"{stem}/mean", 0.0)), 1e-12)
        if name.startswith("dominance") or name in ("cv/corr", "gap_z", "k2/bias_z"):
            scale = max(scale, 1.0) * 1e4  # a ratio of differences: its own condition number
        if name == "gap":
            scale = max(scale, a["k3/mean"], abs(a["k1/mean"]))
        assert abs(x - y) <= tolerance * scale, (name, x, y)


def assert_same_state(a, b, tolerance=0.0):
    mine, theirs = a.whole(), b.whole()
    scale = np.maximum(np.abs(mine), np.abs(theirs))
    assert (np.abs(mine - theirs) <= tolerance * scale).all()
    assert torch.equal(a.maxima, b.maxima)
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.sequences[..., 1:4], b.sequences[..., 1:4])


@given(seeds)
def test_merge_is_associative_and_commutative_with_identity(seed):
    a, b, c = (summarise([tokens_of(seed + i)]) for i in range(3))
    for i, state in enumerate((a, b, c)):
        state.tokens[..., 1] = i  # as if from three ranks
        state.sequences[..., 1] = i
    assert_same_state(a.merge(b), b.merge(a))
    assert_same_state(a.merge(b).merge(c), a.merge(b.merge(c)), 1e-14)
    assert_same_state(a.merge(Summary.empty(CONFIG)), a)
    assert_same_state(merge_all([a, b, c]), a.merge(b).merge(c), 1e-14)


def test_merging_different_configurations_names_the_difference():
    with pytest.raises(ValueError, match=r"groups: \('math',\) against \(\)"):
        Summary.empty(CONFIG).merge(Summary.empty(SummaryConfig(prompt_buckets=64)))


def test_merge_makes_a_new_object():
    a, b = (summarise([tokens_of(i)]) for i in range(2))
    before = a.whole()
    merged = a.merge(b)
    merged.sums.add_(1)
    merged.arrays["histogram"][0][:] += 1
    assert np.array_equal(a.whole(), before)


def test_a_pair_without_tokens_takes_no_memory_and_a_copy_is_the_same():
    state = summarise([tokens_of(0)])
    for name in ("histogram", "prompts"):
        assert set(state.arrays[name]) == {PAIR_INDEX["policy_ref"]}
    copied = pickle.loads(pickle.dumps(state))
    assert_same_state(copied, state)
    assert_same_state(copied.merge(state), state.merge(state))


@pytest.mark.filterwarnings("error")
def test_merging_infinite_sums_is_silent():
    a, b = (summarise([tokens_of(0)]) for _ in range(2))
    for state, value in ((a, math.inf), (b, -math.inf)):
        state.sums[0, 0] = value
        state.arrays["histogram"][0][:] = value
    merged = a.merge(b)
    assert merged.sums[0, 0].isnan().all()
    assert np.isnan(merged.arrays["histogram"][0]).all()


@given(seeds, st.lists(st.integers(1, 11), max_size=4))
def test_splitting_by_rows_changes_nothing(seed, cuts):
    whole = tokens_of(seed)
    edges = [0, *sorted(set(cuts)), 12]
    parts = [tuple(x[a:b] for x in whole) for a, b in pairwise(edges)]
    one, many = values_of(summarise([whole])), values_of(summarise(parts))
    assert_close(one, many, 1e-12)
    assert [t.log_ratio for t in one.extremes] == [t.log_ratio for t in many.extremes]
    assert [t.token_id for t in one.extremes] == [t.token_id for t in many.extremes]


@given(seeds)
def test_permuting_padding_and_packing_change_only_rounding(seed):
    q, p, mask, ids, prompts = tokens_of(seed)
    one = values_of(summarise([(q, p, mask, ids, prompts)]))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(q)))
    pad = torch.full((len(q), 7), torch.nan)
    padded = (
        torch.cat([q, pad], 1)[order],
        torch.cat([p, pad], 1)[order],
        torch.cat([mask, torch.zeros_like(pad, dtype=torch.bool)], 1)[order],
        torch.cat([ids, torch.zeros_like(pad, dtype=ids.dtype)], 1)[order],
        prompts[order],
    )
    assert_close(one, values_of(summarise([padded])), 1e-6)
    lists = [[x[i][mask[i]] for i in range(len(q))] for x in (q, p)]
    batch = build({"policy": lists[0], "ref": lists[1]}, prompt_ids=prompts)
    state = Summary.empty(CONFIG)
    accumulate(state, batch, default_pairs(batch.log_probs), place=Place())
    assert_close(one, values_of(state), 1e-6)


@given(seeds, st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]))
def test_what_lies_under_the_mask_changes_nothing(seed, garbage):
    q, p, mask, ids, prompts = tokens_of(seed)
    clean = summarise([(q, p, mask, ids, prompts)])
    dirty = summarise([(*(torch.where(mask, x, garbage) for x in (q, p)), mask, ids, prompts)])
    assert np.array_equal(clean.whole(), dirty.whole())
    assert torch.equal(clean.maxima, dirty.maxima)
    assert torch.equal(clean.tokens, dirty.tokens)


@given(
    hnp.arrays(np.uint32, (2, 3, 7), elements=st.integers(0, 2**32 - 1)),
    hnp.arrays(np.bool_, (3, 7)),
)
def test_any_float32_bits_are_summed_or_counted(bits, mask):
    q, p = torch.from_numpy(bits.view(np.float32).copy())
    batch = build({"policy": q, "ref": p}, mask=torch.from_numpy(mask))
    state = Summary.empty(CONFIG)
    accumulate(state, batch, default_pairs(batch.log_probs), place=Place())
    d = (p.double() - q.double()).numpy()[mask]
    finite = np.isfinite(d)
    step = step_of(state)
    if not mask.any():
        assert not step
        return
    values = reports_of(state)["policy_ref"].values
    assert values["tokens"] == finite.sum()
    assert values["nonfinite"] == (~finite).sum()
    assert values["clamped"] == (d[finite] > 350).sum()
    sums = step["policy_ref"]
    assert sums.histogram.sum() == finite.sum()
    assert np.isfinite([sums.column(f"{part}/d") for part in ("core", "tail")]).all()
    assert not np.isnan([sums.column(f"{part}/k3") for part in ("core", "tail")]).any()
    if finite.any():
        assert (sums.largest, sums.smallest) == (d[finite].max(), -d[finite].min())


@given(seeds, st.integers(1, 40))
def test_the_extreme_tokens_are_the_first_of_a_full_sort(seed, quantum):
    """Ties included: log-probs on a coarse grid."""
    q, p, mask, ids, _ = tokens_of(seed, rows=30, columns=50, scale=1.0)
    q, p = torch.round(q * quantum) / quantum, torch.round(p * quantum) / quantum
    halves = [
        (q[:17], p[:17], mask[:17], ids[:17], None),
        (q[17:], p[17:], mask[17:], ids[17:], None),
    ]
    report = values_of(summarise(halves))
    d = torch.where(mask, p.double() - q.double(), 0.0).numpy()
    rows = [
        (d[r, c], (0, r, c) if r < 17 else (1, r - 17, c)) for r in range(30) for c in range(50)
    ]
    for tail, sign in (("left", -1), ("right", 1)):
        expected = sorted((-abs(x), place) for x, place in rows if sign * x > 0)[:16]
        got = [t for t in report.extremes if t.tail == tail]
        places = [(t.micro_batch, t.sequence, t.position) for t in got]
        assert places == [place for _, place in expected]
        for token in got:
            row = token.sequence + 17 * token.micro_batch
            assert token.token_id == ids[row, token.position].item()
            assert token.log_p - token.log_q == pytest.approx(token.log_ratio, rel=1e-6)


def test_ties_in_rows_longer_than_a_tile_go_to_the_earliest_token():
    q = torch.full((40, 9000), -2.0)
    p = q + (torch.rand(q.shape, generator=torch.Generator().manual_seed(0)) < 1e-3)
    batch = build({"policy": q, "ref": p})
    state = Summary.empty(CONFIG)
    accumulate(state, batch, default_pairs(batch.log_probs), place=Place())
    expected = (p > q).flatten().nonzero().flatten()[:16]
    sequence, position = state.tokens[PAIR_INDEX["policy_ref"], 1, :, 3:5].long().T
    assert torch.equal(9000 * sequence + position, expected)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(1, 20))
def test_first_largest_is_a_stable_sort(values, top):
    tensor = torch.tensor(values, dtype=torch.float64)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:top]
    assert first_largest(tensor, top).tolist() == expected


@given(st.floats(2**-20, 127.0))
def test_buckets_truncate(d):
    step = buckets(torch.tensor([d, -d], dtype=torch.float64)).tolist()
    exponent = math.floor(math.log2(d))
    if math.ldexp(1.0, exponent) > d:
        exponent -= 1
    inside = int((d / math.ldexp(1.0, exponent) - 1) * 64)
    expected = 1 + 64 * (exponent + 20) + inside
    assert step == [CENTRE + expected, CENTRE - 1 - expected]


@pytest.mark.parametrize("edge", [1.0, 2.0, 5.0, 10.0, 1.5])
def test_thresholds_are_exact_edges(edge):
    below = np.nextafter(edge, 0)
    at, under = (buckets(torch.tensor([x], dtype=torch.float64)).item() for x in (edge, below))
    assert (at, under) == (CENTRE + edge_index(edge), CENTRE + edge_index(edge) - 1)


def test_a_threshold_off_the_edges_is_refused():
    with pytest.raises(ValueError, match=r"2\.3 nats is no bucket edge: choose"):
        edge_index(2.3)


def test_groups_add_up_and_undeclared_ones_count_as_other():
    q, p, mask, ids, prompts = tokens_of(5)
    rows = torch.tensor([0, 1] * 6)
    state = summarise([(q, p, mask, ids, prompts)], groups=rows)
    report = values_of(state)
    for index, name in enumerate(("math", "other")):
        chosen = mask & (rows == index).unsqueeze(1)
        d = (p.double() - q.double())[chosen]
        assert report[f"group/{name}/k1/mean"] == pytest.approx(-d.mean().item(), rel=1e-12)
    assert PAIR_INDEX["policy_ref"] == 0
    assert state.sums[0].sum(0)[0].item() == mask.sum().item()
