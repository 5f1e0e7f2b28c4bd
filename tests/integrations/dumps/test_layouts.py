"""Dumps of trainers, written here by the keys that their sources document.

None of NeMo-RL, prime-rl, slime, miles and SkyRL installs on a CPU with this Python, so none of
the files below comes from the trainer's own writer. Names, nesting, padding and alignment follow
(August 2026): NeMo-RL ``Logger.log_batched_dict_as_jsonl`` of ``grpo_train``; prime-rl
``trainer.rl.token_export.TokenExporter``; slime ``observability.train_data_utils``; miles and older
slime ``MegatronTrainRayActor.train``; SkyRL ``training_batch.TensorBatch.__reduce__``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from klmonitor.cli import main
from klmonitor.record import read_run
from tests.helpers.dumps import differences, make_run, watch_live

PROMPT = 5
"""Tokens of every prompt."""
STEPS = 12


@pytest.fixture(scope="module")
def tokens():
    return list(make_run(steps=STEPS, sequences=8, lengths=True))


def prompt_of(one):
    """Ids of a prompt: completions of one have the same."""
    return [7, 1000 + one.prompt, 3, 2, 9]


def by_step(tokens):
    steps = sorted({one.step for one in tokens})
    return [(step, [one for one in tokens if one.step == step]) for step in steps]


def padded(values, before, width, fill=0):
    """`before` fills, the values, and fills up to a width."""
    return [fill] * before + list(values) + [fill] * (width - before - len(values))


def as_nemo_rl(tokens, directory):
    for step, some in by_step(tokens):
        width = PROMPT + max(len(one.ids) for one in some) + 2
        with (directory / f"train_data_step{step}.jsonl").open("w") as file:
            for index, one in enumerate(some):
                response = {
                    "token_loss_mask": one.mask.astype(float).tolist(),
                    "advantages": [0.5] * len(one.ids),
                    "generation_logprobs": one.log_probs["rollout"].tolist(),
                    "prev_logprobs": one.log_probs["old"].tolist(),
                }
                row = {
                    "content": [["user: ...", "assistant: ..."]],
                    "rewards": [1.0],
                    "input_lengths": [PROMPT + len(one.ids)],
                    "token_ids": [padded(prompt_of(one) + one.ids.tolist(), 0, width)],
                    "sample_loss_mask": [1.0],
                    **{name: [padded(v, PROMPT, width, 0.0)] for name, v in response.items()},
                    "idx": index,
                }
                file.write(json.dumps(row) + "\n")
    return ["rollout", "old"], {}


def as_prime_rl(tokens, directory):
    for step, some in by_step(tokens):
        folder = directory / "token_exports" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "STABLE").touch()
        for index, one in enumerate(some):
            width = PROMPT + len(one.ids)
            row = {
                "schema_version": 1, "step": step, "rank": index % 2, "micro_step": 0,
                "micro_sequence_idx": index, "export_sequence_idx": index,
                "env_name": one.group,
                "token_ids": prompt_of(one) + one.ids.tolist(),
                "position_ids": list(range(width)),
                "loss_mask": [False] * PROMPT + one.mask.tolist(),
                "advantages": [0.0] * width,
                "inference_logprobs": padded(one.log_probs["rollout"].tolist(), PROMPT, width, 0.0),
                "trainer_logprobs": padded(one.log_probs["policy"].tolist(), PROMPT, width, -9.0),
                "entropy": padded(one.entropy.tolist(), PROMPT, width, 0.0),
                "mismatch_kl": [None] * width,
            }  # fmt: skip
            with (folder / f"rank_{index % 2}.jsonl").open("a") as file:
                file.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")
    return ["rollout", "policy"], {"groups": ["code", "math"], "entropy": True}


def slime_sample(one):
    return {
        "tokens": torch.tensor(prompt_of(one) + one.ids.tolist()),
        "total_lengths": PROMPT + len(one.ids),
        "response_lengths": len(one.ids),
        "loss_masks": torch.from_numpy(one.mask.astype(np.int32)),
        "rollout_log_probs": torch.from_numpy(one.log_probs["rollout"]),
        "log_probs": torch.from_numpy(one.log_probs["old"]),
        "ref_log_probs": torch.from_numpy(one.log_probs["ref"]),
        "entropy": torch.from_numpy(one.entropy),
        "kl": torch.zeros(len(one.ids)),
    }


def as_slime(tokens, directory):
    """Format 2: a list of samples."""
    (directory / "train_data").mkdir()
    for step, some in by_step(tokens):
        body = {
            "format_version": 2,
            "rollout_id": step,
            "rank": 0,
            "samples": [{"data_parallel_rank": 0, **slime_sample(one)} for one in some],
            "dp_shards": [{"rank": 0, "partition": list(range(len(some)))}],
        }
        torch.save(body, directory / "train_data" / f"{step}.pt")
    return ["rollout", "old", "ref"], {"entropy": True}


def as_miles(tokens, directory):
    """Columns, a file a rank."""
    for step, some in by_step(tokens):
        for rank in range(2):
            mine = [slime_sample(one) for one in some[rank::2]]
            data = {name: [sample[name] for sample in mine] for name in mine[0]}
            body = {"rollout_id": step, "rank": rank, "rollout_data": data}
            torch.save(body, directory / f"{step}_{rank}.pt")
    return ["rollout", "old", "ref"], {"entropy": True}


def _rebuild_tensor_batch(cls, state):
    raise AssertionError("SkyRL is not installed where its dump is read")


class TrainingInputBatch(dict):
    """Pickled as SkyRL's is."""

    def __reduce__(self):
        def serialized(array):
            if array.dtype == np.float16:  # as bfloat16 is, which numpy does not know
                import io

                buffer = io.BytesIO()
                torch.save(torch.from_numpy(array.astype(np.float32)).bfloat16(), buffer)
                return {"format": "torch", "data": buffer.getvalue()}
            return {
                "format": "numpy", "data": array.tobytes(), "shape": array.shape,
                "dtype": str(array.dtype),
            }  # fmt: skip

        state = {
            "batch_dict": {k: None if v is None else serialized(v) for k, v in self.items()},
            "batch_size": 8,
            "device": None,
            "metadata": {"uids": None},
        }
        return _rebuild_tensor_batch, (TrainingInputBatch, state)


def as_skyrl(tokens, directory):
    name = "skyrl.backends.skyrl_train.training_batch"
    module = ModuleType(name)
    module.TrainingInputBatch, module._rebuild_tensor_batch = (
        TrainingInputBatch,
        _rebuild_tensor_batch,
    )
    before = TrainingInputBatch.__module__
    sys.modules.update(
        dict.fromkeys(("skyrl", "skyrl.backends", "skyrl.backends.skyrl_train"), module)
    )
    sys.modules[name] = module
    TrainingInputBatch.__module__ = _rebuild_tensor_batch.__module__ = name
    (directory / "dumped_data").mkdir()
    try:
        for step, some in by_step(tokens):
            width = max(len(one.ids) for one in some)

            def left(values, fill=0.0, width=width):
                return np.array([padded(v, width - len(v), width, fill) for v in values])

            batch = TrainingInputBatch(
                sequences=left([prompt_of(o) + o.ids.tolist() for o in some], 0, width + PROMPT),
                attention_mask=left([[1] * (PROMPT + len(o.ids)) for o in some], 0, width + PROMPT),
                loss_mask=left([o.mask for o in some]).astype(np.float32),
                response_mask=left([[1] * len(o.ids) for o in some], 0),
                action_log_probs=left([o.log_probs["old"] for o in some]).astype(np.float32),
                base_action_log_probs=left([o.log_probs["ref"] for o in some]).astype(np.float32),
                rollout_logprobs=left([o.log_probs["rollout"] for o in some]).astype(np.float32),
                values=None,
                advantages=left([[1.0] * len(o.ids) for o in some]).astype(np.float16),
            )
            path = directory / "dumped_data" / f"global_step_{step}_training_input.pkl"
            path.write_bytes(pickle.dumps(batch))
    finally:
        TrainingInputBatch.__module__ = _rebuild_tensor_batch.__module__ = before
        for key in [key for key in sys.modules if key.partition(".")[0] == "skyrl"]:
            del sys.modules[key]
    return ["rollout", "old", "ref"], {"trust": True}


WRITERS = {
    "nemo-rl": as_nemo_rl,
    "prime-rl": as_prime_rl,
    "slime": as_slime,
    "miles": as_miles,
    "skyrl": as_skyrl,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_trainers_dump_is_read_as_its_tokens_would_have_been(name, tokens, tmp_path, capsys):
    dump = tmp_path / "dump"
    dump.mkdir()
    policies, options = WRITERS[name](tokens, dump)
    trust = ["--trust"] if options.pop("trust", False) else []
    live = watch_live(tokens, tmp_path / "live", policies, **options)
    assert main(["read", str(dump), "-o", str(tmp_path / "run"), *trust]) == 0
    said = capsys.readouterr().out
    title = {"miles": "slime or miles", "nemo-rl": "NeMo-RL", "skyrl": "SkyRL"}.get(name, name)
    assert title in said
    for policy in policies:
        assert f"is {policy}" in said
    read = read_run(tmp_path / "run")
    assert read.meta["layout"] == {"miles": "slime"}.get(name, name)
    assert differences(live, read) == []
    for one, other in zip(live.reports, read.reports, strict=True):
        for pair in one.pairs:
            ids = [
                [(t.log_ratio, t.token_id) for t in r.pairs[pair].extremes] for r in (one, other)
            ]
            assert ids[0] == ids[1]


def test_prompts_are_found_in_the_tokens(tokens, tmp_path):
    """Two prompts of four completions a step: two clusters, not eight."""
    as_nemo_rl(tokens, tmp_path)
    assert main(["read", str(tmp_path), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    for report in read_run(tmp_path / "run").reports:
        assert report.pairs["rollout_old"]["prompts"] == 2
        assert report.pairs["rollout_old"]["sequences"] == 8


def test_a_pickle_is_refused_with_its_risk(tokens, tmp_path, capsys):
    as_skyrl(tokens, tmp_path)
    assert main(["read", str(tmp_path), "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "is a pickle: loading it runs whatever code the file holds" in said
    assert "--trust" in said
    assert not (tmp_path / "run").exists()


def test_a_pt_file_that_is_a_program_is_not_run(tmp_path, capsys):
    mark = tmp_path / "ran"

    class Program:
        def __reduce__(self):
            return mark.touch, ()

    torch.save({"rollout_id": 1, "samples": [Program()]}, tmp_path / "1.pt")
    assert main(["read", str(tmp_path / "1.pt"), "-o", str(tmp_path / "run")]) == 2
    assert not mark.exists()
    said = capsys.readouterr().err
    assert "1.pt: holds more than tensors and plain objects, so it is a pickle" in said


def test_the_layout_can_be_chosen_and_columns_changed(tokens, tmp_path):
    as_nemo_rl(tokens, tmp_path)
    for path in tmp_path.glob("*.jsonl"):
        path.write_text(path.read_text().replace("prev_logprobs", "mine"))
    argv = ["read", str(tmp_path), "-o", str(tmp_path / "run"), "--quiet", "--layout", "nemo-rl"]
    assert main([*argv, "--old", "mine"]) == 0
    assert [r.step for r in read_run(tmp_path / "run").reports] == list(range(1, STEPS + 1))


def test_prompts_by_their_tokens_have_the_names_of_their_hash():
    """Padding on the left is no part of a prompt."""
    from klmonitor_dumps.sequences import _prompt

    full, real = np.array([0, 0, 0, 5, 6, 7, 8]), np.array([0, 0, 0, 1, 1, 1, 1])
    short = np.array([5, 6, 7])
    assert _prompt(full, 2, None, real) == _prompt(short, 1, None, None)
    assert _prompt(full, 2, None, real) != _prompt(full, 2, None, None)
    assert _prompt(full, 3, np.array([False, True, True]), real) == _prompt(full, 2, None, real)
    assert _prompt(full, 2, None, real) != _prompt(full, 1, None, real)
    known = hashlib.blake2b(np.array([5, 6]).tobytes(), digest_size=8).hexdigest()
    assert _prompt(full, 2, None, real) == known
