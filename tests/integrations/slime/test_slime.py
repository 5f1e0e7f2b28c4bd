"""The function for slime's and miles's flag, on data in the layout that their sources give it.

Neither runs here (Megatron needs GPUs): Megatron's ``mpu`` is a stand-in, ranks are gloo processes.
"""

from __future__ import annotations

import json
import logging
import sys
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.helpers.doors import estimates
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


def train(rank, world, save, flavour, tensor_rank=0):
    import klmonitor_slime

    megatron(tensor_rank)
    rows = tracking()
    args = Namespace(save=save)
    for rollout_id in range(3):
        rollout_data = rollout(100 * rollout_id + rank)
        kept = {
            key: [x.clone() if torch.is_tensor(x) else x for x in column]
            for key, column in rollout_data.items()
        }
        if flavour == "slime":
            klmonitor_slime.watch(args, rollout_id, rollout_data)
        else:
            klmonitor_slime.watch(args)
        for key, column in kept.items():  # the data is looked at, not touched
            assert all(
                torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                for a, b in zip(column, rollout_data[key], strict=True)
            )
    found = klmonitor_slime._rank.watch
    if found is None:
        return rows, None
    assert found.monitor.errors == 0
    pairs = {name: dict(pair.values) for name, pair in found.report.pairs.items()}
    found.finish()
    return rows, pairs


@pytest.mark.parametrize("flavour", ["slime", "miles"])
def test_numbers_are_those_of_all_ranks(tmp_path, flavour):
    results = run_ranks(2, train, str(tmp_path), flavour)
    assert not results[1][0], "one rank logs"
    largest = 0.0
    for rollout_id, (key, row) in enumerate(results[0][0]):
        assert (key, row["rollout/step"]) == ("rollout/step", 10 * rollout_id)
        for pair, (q, p) in PAIRS.items():
            both = [rollout(100 * rollout_id + rank) for rank in (0, 1)]
            expected = estimates(
                *([x for data in both for x in data[name]] for name in (q, p, "loss_masks"))
            )
            for name in ("k1", "k2", "k3"):
                assert row[f"kl/{pair}/{name}/mean"] == pytest.approx(
                    expected[name], rel=0, abs=1e-9
                )
                largest = max(largest, abs(row[f"kl/{pair}/{name}/mean"] - expected[name]))
    assert len(results[0][0]) == 3
    assert results[0][1]["old_ref"]["prompts"] == 2  # prompts of 4 and of 5 tokens, on both ranks
    read = Path(tmp_path, "klmonitor", "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in read] == [0, 1, 2]
    print(f"{flavour}: largest difference {largest:.2g}")


def test_a_rank_that_has_another_ones_tokens_does_nothing(tmp_path):
    (result,) = run_ranks(1, train, str(tmp_path), "slime", 1)
    assert result == ([], None)
    assert not list(tmp_path.iterdir())


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


def other_version(rank, world, save):
    """A caller without the locals, and rollouts without the trainer's own log-probs."""
    import klmonitor_slime

    megatron()
    klmonitor_slime.watch(Namespace(save=None))
    assert klmonitor_slime._rank.watch is None
    klmonitor_slime._rank = None
    args = Namespace(save=save)
    for step in range(2):
        data = rollout(step)
        del data["log_probs"]
        klmonitor_slime.watch(args, step, data)
    found = klmonitor_slime._rank.watch
    found.finish()
    return found.monitor.errors, len(found.report.pairs)


def test_other_versions_train_on(tmp_path):
    (result,) = run_ranks(1, other_version, str(tmp_path))
    assert result == (0, 0)
    notes = "\n".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert notes.count("no log_probs to compare with") == 1
