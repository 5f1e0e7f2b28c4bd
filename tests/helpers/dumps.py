"""A run with known tokens: watched live, and as rows that a trainer might have dumped."""

from __future__ import annotations

import atexit
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klmonitor import Monitor
from klmonitor.record import read_run


def dump_what_is_observed(path):
    """From now on in this process: every sequence that any monitor observes becomes a row."""
    file = Path(path).open("w")  # noqa: SIM115  # as long as the process
    atexit.register(file.close)
    waiting = []
    observe, step = Monitor.observe, Monitor.step

    def listed(value, index):
        return value[index].detach().cpu().tolist()

    def observing(self, **given):
        columns = {k: v for k, v in given.items() if k in COLUMNS and v is not None}
        assert set(columns) >= {k for k, v in given.items() if v is not None} - KNOWN_ONLY_LIVE
        for index in range(len(columns["mask"])):
            row = {COLUMNS[k]: listed(v, index) for k, v in columns.items()}
            waiting.append({k: v if k != "mask" else [int(x) for x in v] for k, v in row.items()})
        return observe(self, **given)

    def stepping(self, number, **given):
        for row in waiting:
            file.write(json.dumps({"step": int(number), **row}) + "\n")
        waiting.clear()
        return step(self, number, **given)

    Monitor.observe, Monitor.step = observing, stepping


COLUMNS = {
    **{name: name for name in ("policy", "old", "rollout", "ref", "mask", "entropy")},
    "token_ids": "tokens",
    "prompt_ids": "prompt",
}
KNOWN_ONLY_LIVE = {"phase", "version", "advantages", "beta"}
"""What `observe` is given and no dump has."""


@dataclass
class Tokens:
    """One sequence of one step, response alone; float32."""

    step: int
    prompt: int
    group: str
    log_probs: dict[str, np.ndarray]
    mask: np.ndarray
    ids: np.ndarray
    entropy: np.ndarray


def make_run(steps=30, sequences=16, length=24, seed=0, lengths=False):
    """Sequences of a run whose KL jumps at two thirds; their lengths may differ."""
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        spread = 1.0 if step > steps * 2 // 3 else 0.1
        for index in range(sequences):
            n = int(rng.integers(length // 2, length + 1)) if lengths else length
            old = -rng.exponential(1.0, n).astype(np.float32) - 0.01
            moved = {"old": 0.0, "policy": 0.02, "rollout": 0.03, "ref": spread}
            log_probs = {
                name: np.minimum(old + rng.normal(0, s, n), -1e-4).astype(np.float32)
                for name, s in moved.items()
            }
            mask = rng.random(n) < 0.9
            mask[0] = True
            yield Tokens(
                step, index // 4, ("math", "code")[index % 2], log_probs, mask,
                rng.integers(1, 1000, n), rng.exponential(1.0, n).astype(np.float32),
            )  # fmt: skip


def watch_live(tokens, run_dir, policies, *, groups=(), prompts=True, entropy=False):
    """The same tokens given to a monitor, a micro-batch a step."""
    monitor = Monitor(run_dir, groups=groups, process_group=False)
    by_step: dict[int, list[Tokens]] = {}
    for one in tokens:
        by_step.setdefault(one.step, []).append(one)
    for step, some in by_step.items():
        monitor.observe(
            mask=np.concatenate([one.mask for one in some]),
            token_ids=np.concatenate([one.ids for one in some]),
            cu_seqlens=np.cumsum([0, *(len(one.ids) for one in some)]),
            prompt_ids=np.array([one.prompt for one in some]) if prompts else None,
            group=[one.group for one in some] if groups else None,
            entropy=np.concatenate([one.entropy for one in some]) if entropy else None,
            **{name: np.concatenate([one.log_probs[name] for one in some]) for name in policies},
        )
        monitor.step(step)
        monitor.flush()
    monitor.close()
    return read_run(run_dir)


def differences(live, read, tolerance=1e-9):
    """Numbers of two records that differ by more, relative to their size where above 1."""
    found = []
    assert [r.step for r in live.reports] == [r.step for r in read.reports]
    for one, other in zip(live.reports, read.reports, strict=True):
        assert one.pairs.keys() == other.pairs.keys()
        for name, pair in one.pairs.items():
            values = other.pairs[name].values
            assert pair.values.keys() ^ values.keys() == set()
            for metric, value in pair.values.items():
                both = math.isnan(value) and math.isnan(values[metric])
                if not both and not abs(value - values[metric]) <= tolerance * max(1, abs(value)):
                    found.append((one.step, name, metric, value, values[metric]))
    return found
