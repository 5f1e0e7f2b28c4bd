"""A real wandb run, opened by the trainer: what we add to it, and that no text is in it."""

import json
import types
from pathlib import Path

import pytest
from datasets import Dataset

from klmonitor.attachment import attach
from klmonitor.cli import main
from tests.helpers.wandb_reader import records

wandb = pytest.importorskip("wandb")

IN_PROMPTS = "zxqcanaryj"
DECODED = "decodedcanary7731"


def files_with(text, *places):
    return {
        path.name
        for place in places
        for path in Path(place).rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    }


def test_a_trainers_run_gets_the_media_and_no_text(make_trainer, monkeypatch, tmp_path):
    """Prompts and all tokens hold a canary; an alert opens, since the limit is that low."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    wandb.teardown()  # what it read before does not count
    trainer = make_trainer(3, beta=0.04, report_to=["wandb"], logging_steps=1)
    prompts = trainer.train_dataset["prompt"]
    trainer.train_dataset = Dataset.from_dict(
        {"prompt": [f"{IN_PROMPTS} {text}" for text in prompts]}
    )
    real = trainer.processing_class
    trainer.processing_class = types.SimpleNamespace(decode=lambda ids: DECODED)
    handle = attach(trainer, sinks=["tensorboard"], rules={"limit": {"policy_ref": 1e-9}})
    trainer.processing_class = real
    trainer.train()
    handle.detach()
    run = wandb.run
    run.finish()
    assert handle.monitor.errors == 0
    record = Path(trainer.args.output_dir) / "klmonitor"
    assert list((record / "tensorboard").iterdir())
    [page] = (Path(run.dir) / "media" / "html").rglob("report_*.html")
    assert "steps 1 to 3" in page.read_text(encoding="utf-8")
    tables = sorted((Path(run.dir) / "media" / "table").rglob("*.table.json"))
    assert tables
    assert all("text" not in json.loads(one.read_text())["columns"] for one in tables)
    assert main(["report", str(record), "-o", str(tmp_path / "report.html")]) == 0
    assert files_with(DECODED, tmp_path, trainer.args.output_dir) == {"tokens.jsonl"}
    assert files_with(IN_PROMPTS, tmp_path, trainer.args.output_dir) == set()
    [log] = Path(run.dir).parent.glob("*.wandb")
    content = b"".join(records(log.read_bytes()))  # whole again: blocks cut what they hold
    for name in (b"train/kl/policy_ref/k3/mean", b"log_ratio", b"klmonitor/report"):
        assert name in content
    assert IN_PROMPTS.encode() not in content
    assert DECODED.encode() not in content
