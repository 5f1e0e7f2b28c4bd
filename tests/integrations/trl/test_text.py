"""The text of tokens stays on the machine, in one file, unless the user says otherwise."""

from __future__ import annotations

import json
import logging
import stat
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from klmonitor.attachment import attach
from klmonitor.hooks.text import TokenText
from klmonitor.record.rows import RECORDED_TOKENS

IN_PROMPTS = "zxqcanaryj"
DECODED = "decodedcanary7731"
ALERTING = {"limit": {"policy_ref": 1e-9}}


def run(make_trainer, monkeypatch, out, log_tokens):
    """Four steps with alerts, logged to TensorBoard and to a wandb that writes what it is given."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(out / "tb"))
    trainer = make_trainer(4, beta=0.04, report_to=["tensorboard"])
    trainer.args.output_dir = str(out)
    prompts = trainer.train_dataset["prompt"]
    trainer.train_dataset = Dataset.from_dict(
        {"prompt": [f"{IN_PROMPTS} {text}" for text in prompts]}
    )
    wandb = types.ModuleType("wandb")
    wandb.run = FakeRun(out / "wandb.jsonl")
    wandb.Table = lambda columns, data: {"columns": columns, "data": data}
    wandb.Histogram = lambda np_histogram: {"histogram": np_histogram}
    wandb.Html = lambda html, inject: {"html": html}
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    handle = attach_decoding(trainer, lambda ids: DECODED, log_tokens=log_tokens, rules=ALERTING)
    trainer.train()
    handle.detach()
    assert handle.monitor.errors == 0


def attach_decoding(trainer, decode, **options):
    """Attach with another decoder than the one that TRL uses for its rewards."""
    real = trainer.processing_class
    trainer.processing_class = types.SimpleNamespace(decode=decode)
    handle = attach(trainer, **options)
    trainer.processing_class = real
    return handle


class FakeRun:
    """A run that keeps what it is given; only the calls of the sinks."""

    settings = types.SimpleNamespace(mode="offline")
    step = 0

    def __init__(self, path):
        self.path = path

    def log(self, row, **options):
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def define_metric(self, *names, **options):
        pass

    def alert(self, title, text, **options):
        with self.path.open("a") as file:
            file.write(json.dumps({"alert": title, "text": text}) + "\n")


def files_with(out, text):
    found = [
        path for path in out.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]
    return {f"{path.relative_to(out).parts[0]}/{path.name}" for path in found}


def test_a_canary_is_in_one_file_alone(make_trainer, monkeypatch, tmp_path, capsys, caplog):
    with caplog.at_level(logging.DEBUG):
        run(make_trainer, monkeypatch, tmp_path, "local")
    assert (tmp_path / "wandb.jsonl").read_text().count('"alert"') >= 1
    assert list((tmp_path / "tb").rglob("events*"))
    assert (tmp_path / "klmonitor" / "alerts.jsonl").read_text()
    assert files_with(tmp_path, DECODED) == {"klmonitor/tokens.jsonl"}
    assert files_with(tmp_path, IN_PROMPTS) == set()
    mode = stat.S_IMODE((tmp_path / "klmonitor" / "tokens.jsonl").stat().st_mode)
    assert mode == 0o600
    private = (tmp_path / "klmonitor" / "tokens.jsonl").read_text()
    rows = [json.loads(line) for line in private.splitlines()]
    around = [one for row in rows for one in row.get("around", ())]
    assert around
    assert all({DECODED} == {text for text in one["text"] if text} for one in around)
    in_a_row = json.dumps(around[0]["ids"], separators=(",", ":"))
    assert len(around[0]["ids"]) > 2
    assert files_with(tmp_path, in_a_row[1:-1]) == {"klmonitor/tokens.jsonl"}
    said = capsys.readouterr()
    for text in (DECODED, IN_PROMPTS):
        assert text not in said.out + said.err
        assert text not in caplog.text


def test_no_text_at_all(make_trainer, monkeypatch, tmp_path):
    run(make_trainer, monkeypatch, tmp_path, False)
    assert files_with(tmp_path, DECODED) == set()
    assert files_with(tmp_path, '"around"') == set()


def test_text_in_the_trackers_if_asked_for(make_trainer, monkeypatch, tmp_path):
    run(make_trainer, monkeypatch, tmp_path, True)
    found = files_with(tmp_path, DECODED)
    assert {"klmonitor/tokens.jsonl", "wandb.jsonl/wandb.jsonl"} <= found
    assert any(name.startswith("tb/events") for name in found)
    assert "klmonitor/alerts.jsonl" not in found
    assert files_with(tmp_path, '"log_q":[') == {"klmonitor/tokens.jsonl"}
    rows = [json.loads(line) for line in (tmp_path / "wandb.jsonl").read_text().splitlines()]
    table = next(row["kl/extreme_tokens"] for row in rows if "kl/extreme_tokens" in row)
    assert table["columns"][:4] == ["step", "pair", "tail", "d"]
    assert files_with(tmp_path, IN_PROMPTS) == set()


def test_the_text_is_the_token_within_what_came_before_it(make_trainer):
    kept = []
    trainer = make_trainer(2, beta=0.04)
    handle = attach(trainer)
    observe = handle.monitor.observe

    def keep(**given):
        kept.append(given["token_ids"].clone())
        return observe(**given)

    handle.monitor.observe = keep
    trainer.train()
    handle.detach()
    tokenizer = trainer.processing_class
    lines = (Path(trainer.args.output_dir) / "klmonitor" / "tokens.jsonl").read_text().splitlines()
    in_context = 0
    for step, line in enumerate(lines):
        tokens = json.loads(line)["tokens"]
        tails = Counter(token["tail"] for token in tokens)
        seen = set()
        for token in tokens:
            ids, position = kept[step][token["sequence"]].tolist(), token["position"]
            assert ids[position] == token["token_id"]
            before = ""
            # an ordinary step has the context of the first of each tail, a dominated one of all
            if token["tail"] not in seen or tails[token["tail"]] > RECORDED_TOKENS:
                before = tokenizer.decode(ids[max(position - 12, 0) : position]) if position else ""
            seen.add(token["tail"])
            in_context += bool(before)
            assert token["text"] == f"{before}⟦{tokenizer.decode([token['token_id']])}⟧"
    assert in_context >= 2


def test_a_decoder_that_fails_costs_the_text_alone(make_trainer):
    trainer = make_trainer(4, beta=0.04)
    handle = attach_decoding(trainer, lambda ids: 1 / 0)
    trainer.train()
    handle.detach()
    assert handle.monitor.errors == 3
    lines = (Path(trainer.args.output_dir) / "klmonitor" / "tokens.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all(token.get("text") is None for line in lines for token in json.loads(line)["tokens"])


@pytest.mark.parametrize("rank", [0, 1])
def test_context_is_that_of_this_processs_own_tokens(rank):
    import torch

    from klmonitor.report import ExtremeToken

    text = TokenText(types.SimpleNamespace(decode=lambda ids: f"{ids}"), rank=0)
    text.keep("train", torch.arange(20).reshape(2, 10))
    token = ExtremeToken("policy_ref", "left", -3.0, -1.0, -4.0, rank, 0, 1, 2, token_id=12)
    (found,) = text.annotate([token], "train")()
    assert found.text == ("[10, 11]⟦[12]⟧" if rank == 0 else "⟦[12]⟧")
    text.forget("train")
    assert text.annotate([token], "train")()[0].text == "⟦[12]⟧"


def test_ids_on_a_gpu_are_waited_for_when_they_are_decoded_and_not_before(monkeypatch):
    import torch

    from klmonitor.hooks import text as module
    from klmonitor.report import ExtremeToken
    from klmonitor.summary.arrivals import Arrival, sent

    waited = []
    event = types.SimpleNamespace(synchronize=lambda: waited.append(1))
    ids = torch.arange(20).reshape(2, 10)
    far = types.SimpleNamespace(ndim=2, is_cpu=False, copied=ids)
    monkeypatch.setattr(module, "sent", lambda ids: Arrival(sent(ids.copied).given, [event]))
    text = TokenText(types.SimpleNamespace(decode=lambda ids: f"{ids}"), rank=0)
    text.keep("train", far)
    ids.zero_()  # what is on a GPU is copied before it can be written to
    token = ExtremeToken("policy_ref", "left", -3.0, -1.0, -4.0, 0, 0, 1, 2, token_id=12)
    decoding = text.annotate([token], "train")
    text.forget("train")
    assert not waited
    assert decoding()[0].text == "[10, 11]⟦[12]⟧"
    assert waited


def test_all_of_an_important_tail_come_with_context():
    import torch

    from klmonitor.report import ExtremeToken

    text = TokenText(types.SimpleNamespace(decode=lambda ids: f"{ids}"), rank=0)
    text.keep("train", torch.arange(20).reshape(1, 20))
    tokens = [
        ExtremeToken("policy_ref", tail, -3.0, -1.0, -4.0, 0, 0, 0, position, token_id=position)
        for tail, last in (("left", RECORDED_TOKENS + 1), ("right", RECORDED_TOKENS))
        for position in range(1, last + 1)
    ]
    found = [token.text.startswith("[") for token in text.annotate(tokens, "train")()]
    assert found == [True] * (RECORDED_TOKENS + 1) + [True] + [False] * (RECORDED_TOKENS - 1)


def test_a_trainer_may_set_its_tokenizer_s_padding_while_text_is_decoded(make_trainer):
    """The tokenizers library refuses to change one that another thread is using."""
    trainer = make_trainer(1, beta=0.04)
    tokenizer = trainer.processing_class
    text = TokenText(tokenizer, rank=0)
    assert text._tokenizer._tokenizer is not tokenizer._tokenizer
    assert text._tokenizer.decode([5, 6, 7]) == tokenizer.decode([5, 6, 7])


def test_a_tokenizer_that_cannot_be_copied_costs_the_text_alone(make_trainer, capfd):
    trainer = make_trainer(2, beta=0.04)

    def refuse(memo):
        raise TypeError("cannot be copied")

    trainer.processing_class.__deepcopy__ = refuse
    handle = attach(trainer)
    trainer.train()
    handle.detach()
    assert handle.monitor.errors == 0
    assert "recorded without text: no copy of the tokenizer (TypeError: cannot be copied)" in (
        capfd.readouterr().err
    )
    path = Path(trainer.args.output_dir) / "klmonitor" / "tokens.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2
    assert all(token.get("text") is None for row in rows for token in row["tokens"])
    assert any(token["token_id"] >= 0 for row in rows for token in row["tokens"])
