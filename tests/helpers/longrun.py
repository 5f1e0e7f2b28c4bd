"""A record of many steps of two pairs, quickly written: what a page must hold and draw."""

import math
import random

from tests.helpers.pages import SPIKE_K3, SPIKES, write_lines

QUANTILES = {
    "p0.1": -0.5, "p1": -0.2, "p25": -0.05, "p50": 0.001, "p75": 0.05, "p99": 0.2, "p99.9": 0.5,
}  # fmt: skip
PAIRS = ("policy_ref", "old_policy")


def write_long_run(path, steps=20_000, seed=0):
    """k3 of the first pair is `SPIKE_K3` at each step of `SPIKES`; the directory."""
    path.mkdir(parents=True)
    rng = random.Random(seed)
    edges = sorted(round(s * 2.0 ** (i / 2 - 8), 4) for s in (-1, 1) for i in range(20))
    write_lines(path / "steps.jsonl", (_row(rng, step, edges) for step in range(steps)))
    return path


def _row(rng, step, edges):
    pairs = {name: _pair(rng, step, name, edges) for name in PAIRS}
    return {"step": step, "first_step": step, "pairs": pairs}


def _pair(rng, step, name, edges):
    k3 = 0.01 * math.exp(0.2 * rng.gauss(0, 1))
    if name == "policy_ref" and step in SPIKES:
        k3 = SPIKE_K3
    sizes = {f"{k}/{m}": k3 * rng.uniform(0.8, 1.2) for k in ("k1", "k2") for m in ("mean", "var")}
    sizes |= {f"{k}/{m}": k3 / 10 for k in ("k1", "k2", "k3") for m in ("se", "running_var")}
    sizes |= {f"log_ratio/{q}": v * rng.uniform(0.8, 1.2) for q, v in QUANTILES.items()}
    sizes |= {f"dominance/{k}/top_share": rng.uniform(0.02, 0.1) for k in ("k1", "k3")}
    sizes |= {"k3/mean": k3, "k3/var": k3, "spike/z": rng.gauss(0, 1), "tokens": 1000}
    sizes |= {f"outliers/{k}": rng.randrange(5) for k in ("k1", "k3")} | {"outliers/rate": 3}
    counts = [rng.randrange(1, 500) for _ in edges]
    return {"values": sizes, "histogram": {"edges": edges, "counts": counts}}
