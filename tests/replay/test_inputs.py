"""What people hold of a run, read: each file is rebuilt here from what its writer writes."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from klmonitor.cli import main
from klmonitor.record import RecordWriter
from klmonitor.replay.curve import load_run
from klmonitor.sinks.tensorboard import TensorBoardSink
from tests.helpers.reports import make_report, small_report

RAMP = [2e-5 * n**1.5 for n in range(1, 61)]


def k3_of(path, pair="policy_ref", **options):
    """step -> k3."""
    reports = load_run(str(path), **options).reports
    return {r.step: r.pairs[pair].k3.mean for r in reports if pair in r.pairs}


def numbered(values):
    return {step: pytest.approx(value) for step, value in enumerate(values, 1)}


def write_csv(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_state(directory, values):
    directory.mkdir(parents=True, exist_ok=True)
    log = [
        {"step": n, "epoch": n / 60, "loss": 0.0, "kl": v, "learning_rate": 1e-6}
        for n, v in enumerate(values, 1)
    ]
    log += [{"step": len(values), "eval_kl": 7.0}, {"step": len(values), "train_runtime": 9.5}]
    path = directory / "trainer_state.json"
    path.write_text(json.dumps({"global_step": len(values), "log_history": log}))
    return path


# --- trainers --------------------------------------------------------------------------------
def test_a_trainers_state_is_its_log_history(tmp_path):
    assert k3_of(write_state(tmp_path, RAMP)) == numbered(RAMP)
    assert k3_of(tmp_path) == numbered(RAMP)


def test_an_output_directory_gives_its_newest_checkpoint(tmp_path):
    for number in (9, 60, 30):
        write_state(tmp_path / f"checkpoint-{number}", RAMP[:number])
    (tmp_path / "checkpoint-last").mkdir()
    assert k3_of(tmp_path) == numbered(RAMP)
    assert k3_of(tmp_path / "checkpoint-30") == numbered(RAMP[:30])


def test_a_record_goes_before_what_the_trainer_left(tmp_path):
    write_state(tmp_path, RAMP)
    writer = RecordWriter(tmp_path / "klmonitor")
    writer.step(small_report(5, k3__mean=0.25))
    writer.close()
    assert k3_of(tmp_path) == {5: 0.25}


COLOUR = "\x1b[36m(TaskRunner pid=4711)\x1b[0m "


@pytest.mark.parametrize("prefix", ["", COLOUR])
def test_verls_console_log(tmp_path, prefix):
    path = tmp_path / "train.log"
    lines = ["step 7: loading", f"{prefix}step:0 - val-core/gsm8k/acc:0.31"]
    for step, value in enumerate(RAMP, 1):
        lines += [
            f"Training Progress:  {step}%|#   | {step}/60 [00:12<01:40]\r"
            f"{prefix}step:{step} - actor/kl_loss:np.float64({value!r}) - actor/ppo_kl:-2e-05"
            f" - rollout_corr/k3_kl:-3.3e-10 - training/global_step:{step} - epoch:0"
        ]
    path.write_text("\n".join(lines))
    assert k3_of(path) == numbered(RAMP)
    assert set(k3_of(path, "rollout_old").values()) == {0.0}, "float32 rounds below 0"


def test_verls_file_logger(tmp_path):
    rows = [{"step": n, "data": {"actor/kl_loss": v, "x": "y"}} for n, v in enumerate(RAMP, 1)]
    path = tmp_path / "experiment.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert k3_of(path) == k3_of(tmp_path) == numbered(RAMP)


def test_what_hf_trainers_print(tmp_path):
    path = tmp_path / "slurm-1.out"
    rows = [f"  3%|3 | 3/99 [00:01<00:09]\r{{'loss': '0', 'kl': '{v!r}'}}" for v in RAMP]
    rows += ["{'kl': nan, 'loss': -inf}", "{'kl': np.float64(0.5)}"]
    path.write_text("\n".join(["{not an object}", *rows, "done"]))
    *_, unknown, last = found = list(k3_of(path).values())
    assert found[:-2] == pytest.approx(RAMP)
    assert (math.isnan(unknown), last) == (True, 0.5)


@pytest.mark.parametrize(
    "body",
    [
        {"args": {"lr": 1}, "trajectory": [{"step": n, "kl": v} for n, v in enumerate(RAMP, 1)]},
        {"name": "x", "step": list(range(1, 61)), "kl": RAMP},
        [{"step": n, "kl": v} for n, v in enumerate(RAMP, 1)],
    ],
    ids=["rows inside", "columns", "rows"],
)
def test_json_of_any_shape(tmp_path, body):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(body, indent=1))
    assert k3_of(path) == numbered(RAMP)


@pytest.mark.parametrize("name", ["update", "iteration", "Training_Step", "trainer/global_step"])
def test_other_names_of_the_step(tmp_path, name):
    path = tmp_path / "log.jsonl"
    rows = [{name: n, "kl": v, "kl_raw_key": "approxkl"} for n, v in enumerate(RAMP, 1)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert k3_of(path) == numbered(RAMP)


# --- trackers --------------------------------------------------------------------------------
HISTOGRAM = {"_type": "histogram", "values": [1, 2], "bins": [0.0, 1.0, 2.0]}
FULL = "train/kl/policy_ref"


def history():
    """Rows as wandb has them: of a profiler, of TRL with our metrics, of an evaluation."""
    rows = []
    for step, value in enumerate(RAMP, 1):
        rows += [
            {"_step": 9 * step, "profiling/Time taken": 0.5, "klmonitor/step": 1},
            {
                "_step": 9 * step + 1,
                "train/global_step": step,
                "train/kl": 77.0,
                f"{FULL}/k3/mean": value,
                f"{FULL}/k3/se": value / 9,
                f"{FULL}/log_ratio/histogram": HISTOGRAM,
            },
            {"_step": 9 * step + 2, "train/global_step": step, "eval/kl/policy_ref/k3/mean": 5.0},
        ]
    return rows


def test_a_history_of_wandb_as_json_lines(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("\n".join(map(json.dumps, history())))
    assert k3_of(path) == numbered(RAMP)
    assert load_run(str(path)).reports[0].pairs["policy_ref"].k3.se == pytest.approx(RAMP[0] / 9)


def test_a_history_of_wandb_as_csv(tmp_path):
    rows = history()
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name, "") for row in rows] for name in names}
    assert k3_of(write_csv(tmp_path / "history.csv", columns)) == numbered(RAMP)


def test_a_history_as_a_data_frame_prints_it(tmp_path):
    rows = history()
    names = list(dict.fromkeys(name for row in rows for name in row))
    path = tmp_path / "history.jsonl"
    path.write_text("\n".join(json.dumps({n: r.get(n, math.nan) for n in names}) for r in rows))
    assert k3_of(path) == numbered(RAMP)


def test_wandbs_own_file_is_named_with_the_way_to_export_it(tmp_path, capsys):
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(b":W&B\xbe\xe1\x00" + bytes(40))
    for place in (path, tmp_path):
        assert main(["backtest", str(place)]) == 2
        assert "wandb sync" in capsys.readouterr().err


def test_event_files(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "runs" / "a") as writer:
        for step, value in enumerate(RAMP, 1):
            writer.add_scalar("train/kl", value, step)
            writer.add_text("note", "words", step)
            writer.add_histogram("train/kl/policy_ref/log_ratio/histogram", np.arange(9), step)
    with SummaryWriter(tmp_path / "runs" / "hparams") as writer:
        writer.add_scalar("lr", 1.0, 1)
    assert k3_of(tmp_path) == numbered(RAMP)
    [file] = (tmp_path / "runs" / "a").iterdir()
    assert k3_of(file) == k3_of(file.parent) == numbered(RAMP)
    with SummaryWriter(tmp_path / "runs" / "b") as writer:
        writer.add_scalar("train/kl", 1.0, 1)
    with pytest.raises(ValueError, match=r"several directories: give one of .*a, .*b$"):
        load_run(str(tmp_path))


def test_our_own_event_file_tells_every_metric(tmp_path):
    sink = TensorBoardSink(tmp_path)
    reports = [make_report(step) for step in (1, 2)]
    for report in reports:
        sink(report)
    sink.close()
    found = load_run(str(tmp_path)).reports
    assert [report.step for report in found] == [1, 2]
    mine, theirs = (one[0].pairs["policy_ref"].values for one in (found, reports))
    assert mine["dominance/k3/j"] == pytest.approx(theirs["dominance/k3/j"], rel=1e-6)


# --- what is refused -------------------------------------------------------------------------
@pytest.fixture
def signed(tmp_path):
    """A log whose ``kl`` is a k1 beside two others, as verl's users keep it."""
    rng = np.random.default_rng(0)
    columns = {
        "global_step": range(1, 31),
        "wall_iso": ["2026-09-11T20:25:50"] * 30,
        "kl": (3e-5 * rng.normal(size=30)).tolist(),
        "rollout_train_kl": [3e-4] * 30,
        "kl_loss": RAMP[:30],
    }
    return write_csv(tmp_path / "metrics.csv", columns)


def test_a_negative_value_is_no_k3_and_the_candidates_are_told(signed, capsys):
    assert main(["backtest", str(signed)]) == 2
    said = capsys.readouterr().err
    assert "column 'kl' is no k3 but a signed one, as k1 is: " in said
    assert "of 30 values are below 0" in said
    assert "'rollout_train_kl' (never below 0, 0.0003 to 0.0003)" in said
    assert "'kl_loss' (a KL loss of policy and ref: k3 in verl" in said
    assert "--column k1=kl" in said
    chosen = {"k3": "kl_loss", "k1": "kl"}
    assert k3_of(signed, columns=chosen) == numbered(RAMP[:30])
    assert load_run(str(signed), chosen).reports[0].pairs["policy_ref"].k1.mean != 0


def test_a_negative_choice_is_refused_too(signed):
    with pytest.raises(ValueError, match="column 'kl' is no k3"):
        load_run(str(signed), {"k3": "kl"})
    with pytest.raises(
        ValueError, match=r"no column for k3.* perhaps 'kl' \(\d+ of 30 values below"
    ):
        load_run(str(signed), {"k1": "kl"})


def test_a_file_without_k3_tells_what_its_columns_are(tmp_path):
    path = write_csv(tmp_path / "ppo.csv", {"step": [1, 2], "objective/kl": [3.0, 4.0]})
    with pytest.raises(ValueError, match=r"perhaps 'objective/kl' \(TRL's sum over each sequence"):
        load_run(str(path))


def test_no_value_at_all_is_status_2(tmp_path, capsys):
    reason = ["GRPO beta=0.0"] * 2
    columns = {"update": [1, 2], "kl": ["", ""], "kl_available": [False] * 2, "kl_reason": reason}
    path = write_csv(tmp_path / "empty.csv", columns)
    assert main(["backtest", str(path)]) == main(["tune", str(path)]) == 2
    assert "has no value of k3: 'kl' empty in all 2 rows" in capsys.readouterr().err
    RecordWriter(tmp_path / "run").close()
    assert main(["backtest", str(tmp_path / "run")]) == 2
    assert "no KL in any of its 0 training steps" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.log", "rows.jsonl", "rows.json", "rows.csv"])
def test_a_file_of_nothing_is_refused_with_what_would_do(tmp_path, name):
    path = tmp_path / name
    path.write_text("" if name != "rows.json" else "[]")
    with pytest.raises(ValueError, match=r"(rows|JSON)"):
        load_run(str(path))


def test_a_directory_of_nothing_or_of_several_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trainer_state\.json there or in checkpoint-\*"):
        load_run(str(tmp_path))
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, {"step": [1], "kl": [0.1]})
    with pytest.raises(ValueError, match=r"2 files of rows: give one of a\.csv, b\.csv"):
        load_run(str(tmp_path))
