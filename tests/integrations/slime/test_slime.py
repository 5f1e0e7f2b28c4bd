"""The function for slime's and miles's flag, on data in the layout that their sources give it.

Neither runs here (Megatron needs GPUs): Megatron's ``mpu`` is a stand-in, ranks are gloo processes.
"""

from __future__ import annotations

import logging
import sys
import types
from argparse import Namespace

import pytest
import torch
import torch.distributed as dist

from tests.helpers.doors import assert_exact, estimates, recorded
from tests.helpers.ranks import run_ranks

PAIRS = {
    "old_ref": ("log_probs", "ref_log_probs"),
    "rollout_old": ("rollout_log_probs", "log_probs"),
}


def rollout(seed, sequences=6):
    """The columns of a rank's rollout data: lists with a tensor a sequence."""
    make = torch.Generator().manual_seed(seed)
    data = {
        name: []
        for name in ("tokens", "loss_masks", *(key for pair in PAIRS.values() for key in pair))
    }
    for row in range(sequences):
        length, prompt = int(torch.randint(3, 20, (), generator=make)), 4 + row // 3
        old = -2 * torch.rand(length, generator=make) - 0.01
        data["tokens"].append(
            torch.cat([torch.full((prompt,), 7), torch.randint(0, 99, (length,), generator=make)])
        )
        data["loss_masks"].append(torch.randint(0, 2, (length,), generator=make, dtype=torch.int))
        data["loss_masks"][-1][0] = 1
        data["log_probs"].append(old)
        data["ref_log_probs"].append(
            (old + 0.1 * torch.randn(length, generator=make)).clamp(max=-1e-4)
        )
        data["rollout_log_probs"].append(
            (old + 0.02 * torch.randn(length, generator=make)).clamp(max=-1e-4)
        )
    data["response_lengths"] = [len(mask) for mask in data["loss_masks"]]
    data["total_lengths"] = [len(ids) for ids in data["tokens"]]
    data["advantages"] = [torch.ones(n) for n in data["response_lengths"]]
    return data


def megatron(tensor_rank=0, last=True, context=1):
    """Megatron's ``mpu``, as far as it is asked."""
    mpu = types.SimpleNamespace(
        get_tensor_model_parallel_rank=lambda: tensor_rank,
        is_pipeline_last_stage=lambda: last,
        get_context_parallel_world_size=lambda: context,
        get_data_parallel_group_gloo=lambda with_context_parallel: dist.group.WORLD,
    )
    core = types.ModuleType("megatron.core")
    core.mpu = mpu
    sys.modules |= {"megatron": types.ModuleType("megatron"), "megatron.core": core}


def tracking():
    """slime's own log function and step, whose rows are kept."""
    rows = []
    log = types.ModuleType("slime.observability.logging_utils")
    log.log = lambda args, metrics, step_key: rows.append((step_key, dict(metrics)))
    steps = types.ModuleType("slime.observability.metric_utils")
    steps.compute_rollout_step = lambda args, rollout_id: 10 * rollout_id
    sys.modules |= {log.__name__: log, steps.__name__: steps}
    return rows


def train(rank, world, save):
    """Three rollouts by each of the two calls; what was logged, and the last report's pairs."""
    import klmonitor_slime

    megatron()
    found = {}
    for flavour in ("slime", "miles"):
        rows = tracking()
        args = Namespace(save=f"{save}/{flavour}")
        klmonitor_slime._rank = None
        for rollout_id in range(3):
            rollout_data = rollout(100 * rollout_id + rank)
            if flavour == "slime":
                klmonitor_slime.watch(args, rollout_id, rollout_data)
            else:
                klmonitor_slime.watch(args)
            untouched = rollout(100 * rollout_id + rank)
            for key, column in untouched.items():
                pairs = zip(column, rollout_data[key], strict=True)
                assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
        watch = klmonitor_slime._rank.watch
        assert watch.monitor.errors == 0
        prompts = {name: pair["prompts"] for name, pair in watch.report.pairs.items()}
        watch.finish()
        found[flavour] = rows, prompts
    return found


def test_numbers_are_those_of_all_ranks(tmp_path):
    results = run_ranks(2, train, str(tmp_path))
    for flavour in ("slime", "miles"):
        rows, prompts = results[0][flavour]
        assert len(rows) == 3
        assert not results[1][flavour][0], "one rank logs"
        assert prompts["old_ref"] == 2  # of 4 and of 5 tokens, on both ranks
        kept = recorded(tmp_path / flavour / "klmonitor")
        largest = 0.0
        for rollout_id, (key, row) in enumerate(rows):
            assert (key, row["rollout/step"]) == ("rollout/step", 10 * rollout_id)
            both = [rollout(100 * rollout_id + rank) for rank in (0, 1)]
            for pair, (q, p) in PAIRS.items():
                columns = ([x for data in both for x in data[y]] for y in (q, p, "loss_masks"))
                expected = estimates(*columns)
                largest = max(largest, assert_exact(row, kept[rollout_id], pair, expected))
        assert sorted(kept) == [0, 1, 2]
        print(f"{flavour}: largest difference {largest:.2g}")


@pytest.fixture
def fresh(monkeypatch):
    import klmonitor_slime

    monkeypatch.setattr(klmonitor_slime, "_rank", None)
    for name in ("megatron", "megatron.core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return klmonitor_slime.watch


def said(caplog):
    return [record.message for record in caplog.records if record.name == "klmonitor"]


def test_context_parallel_ranks_train_on_and_one_line_says_why(fresh, caplog, tmp_path):
    megatron(context=2)
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        for step in range(3):
            fresh(Namespace(save=str(tmp_path)), step, rollout(step))
    assert len(said(caplog)) == 1
    assert "trains on without klmonitor: LookupError: context parallelism" in said(caplog)[0]


def test_without_megatron_training_goes_on(fresh, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        fresh(Namespace(save=str(tmp_path)), 0, rollout(0))
    assert "trains on without klmonitor: ImportError" in caplog.text


def test_wrong_options_are_refused_at_the_first_call(fresh, monkeypatch, tmp_path):
    megatron()
    monkeypatch.setenv("KLMONITOR_METRICSS", "core")
    with pytest.raises(ValueError, match=r"KLMONITOR_METRICSS.*metrics"):
        fresh(Namespace(save=str(tmp_path)), 0, rollout(0))


def others(rank, world, save):
    """Another tensor rank; a caller without the locals; rollouts without the trainer's own."""
    import klmonitor_slime

    megatron(tensor_rank=1)
    args = Namespace(save=f"{save}/none")
    klmonitor_slime.watch(args, 0, rollout(0))
    assert klmonitor_slime._rank.watch is None
    megatron()
    klmonitor_slime._rank = None
    klmonitor_slime.watch(Namespace(save=None))
    assert klmonitor_slime._rank.watch is None
    klmonitor_slime._rank = None
    for step in range(2):
        data = rollout(step)
        del data["log_probs"]
        klmonitor_slime.watch(Namespace(save=f"{save}/reused"), step, data)
    found = klmonitor_slime._rank.watch
    found.finish()
    return found.monitor.errors, len(found.report.pairs)


def test_other_ranks_and_versions_train_on(tmp_path):
    (result,) = run_ranks(1, others, str(tmp_path))
    assert result == (0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["reused"]
    notes = "\n".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert notes.count("no log_probs to compare with") == 1
