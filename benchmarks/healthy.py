"""How often all rules together alert on healthy steps with tokens, engines and prompts.

    python benchmarks/healthy.py                 # 12 worlds x 250 steps, a few minutes

Worlds of `klmonitor.simulate.engines` whose engine differs from the trainer by its rounding alone:
vocabularies of 300 to 3,000, 2 to 32 prompts of 8 completions, engine noise .005 to .1 on the
logits, with entropies and without; the policy walks away from its reference (which the pairs to
the reference see as a start-up that flattens), and two of the twelve have a heavier engine:
noise of t4. Every step's log-probs go through a `Monitor` with its default rules, which see
policy_ref, old_policy (an update's step apart) and, where there is an engine, rollout_old. Counted
are alerts of warn and critical, an event once; those that inform apart.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klmonitor import Monitor
from klmonitor.simulate.cases import Array, log_softmax, zipf_logits
from klmonitor.simulate.samples import draw

Indices = NDArray[np.int64]

CONTEXTS = 64


@dataclass(frozen=True)
class Healthy:
    """A healthy run.

    Attributes:
        vocabulary, prompts, length: of the tokens; 8 completions a prompt.
        noise: standard deviation of the engine's logits from the trainer's.
        drift: of an update's change of the logits.
        entropies: whether they are observed.
        heavy: the engine's noise is t of 4 degrees of freedom.
        on_policy: the trainer's own sampler; there is no engine.
    """

    vocabulary: int
    prompts: int
    length: int
    noise: float
    drift: float = 0.01
    entropies: bool = False
    heavy: bool = False
    on_policy: bool = False


RUNS = (
    Healthy(300, 2, 64, 0.02),
    Healthy(300, 16, 32, 0.1, entropies=True),
    Healthy(800, 8, 64, 0.005),
    Healthy(800, 8, 64, 0.03, drift=0.03, entropies=True),
    Healthy(800, 32, 32, 0.02, heavy=True),
    Healthy(800, 4, 128, 0.05, heavy=True, entropies=True),
    Healthy(3000, 8, 64, 0.02),
    Healthy(3000, 16, 64, 0.1),
    Healthy(800, 8, 64, 0.0, on_policy=True),
    Healthy(800, 2, 64, 0.0, on_policy=True, entropies=True),
    Healthy(800, 32, 64, 0.0, drift=0.03, on_policy=True),
    Healthy(3000, 4, 32, 0.0, on_policy=True),
)


def steps(run: Healthy, number: int, seed: int) -> Iterator[dict[str, Array]]:
    """What a monitor is given at every step."""
    rng = np.random.default_rng(seed)
    logits = zipf_logits(rng, CONTEXTS, run.vocabulary)
    start, rows = logits, 8 * run.prompts
    towards = rng.normal(0, 1, logits.shape)
    prompt_contexts = np.array(
        [rng.choice(CONTEXTS, 24, replace=False) for _ in range(run.prompts)]
    )
    for step in range(number):
        pace = run.drift / np.sqrt(1 + step / 20)  # a walk that slows down, and noise of its own
        updated = logits + pace * (0.3 * towards + rng.normal(0, 1, logits.shape))
        place = rng.integers(24, size=(rows, run.length))
        context = np.take_along_axis(np.repeat(prompt_contexts, 8, axis=0), place, axis=1)
        trainer, reference, policy = (log_softmax(x) for x in (logits, start, updated))
        spread = rng.standard_t(4, logits.shape) if run.heavy else rng.normal(size=logits.shape)
        engine = trainer if run.on_policy else log_softmax(logits + run.noise * spread)
        token = drawn(rng, engine, context)
        mask = np.arange(run.length) < rng.integers(run.length // 2, run.length + 1, rows)[:, None]
        given = {
            "old": trainer[context, token],
            "policy": policy[context, token],
            "ref": reference[context, token],
            "mask": mask,
            "prompt_ids": np.repeat(np.arange(run.prompts), 8) + run.prompts * step,
        }
        if not run.on_policy:
            given["rollout"] = engine[context, token]
        if run.entropies:
            given["entropy"] = -(np.exp(trainer) * trainer).sum(-1)[context]
        yield {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in given.items()}
        logits = updated


def drawn(rng: np.random.Generator, log_probs: Array, context: Indices) -> Indices:
    """A token for each context, from its distribution."""
    flat = context.ravel()
    counts = np.bincount(flat, minlength=CONTEXTS)
    order = np.argsort(flat, kind="stable")
    turn = np.empty_like(flat)
    turn[order] = np.arange(flat.size) - (counts.cumsum() - counts)[flat[order]]
    tokens = draw(rng, log_probs, int(counts.max()))[flat, turn]
    return np.asarray(tokens.reshape(context.shape))


def alerts(run: Healthy, number: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """Kinds of the alerts of warn and above, and of those that inform."""
    monitor, loud, quiet = Monitor(process_group=False), Counter[str](), Counter[str]()
    for step, given in enumerate(steps(run, number, seed), start=1):
        monitor.observe(**given)
        report = monitor.step(step)
        assert report is not None
        for alert in report.alerts:
            (quiet if alert.severity == "info" else loud)[f"{alert.pair} {alert.kind}"] += 1
    monitor.close()
    return loud, quiet


def main() -> None:
    """Print a line a run, and the rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    start, total, informed = time.perf_counter(), Counter[str](), Counter[str]()
    print("| vocabulary | prompts | engine | steps | alerts | informing |")
    print("|---|---|---|---|---|---|")
    for i, run in enumerate(RUNS):
        loud, quiet = Counter[str](), Counter[str]()
        for seed in range(args.seeds):
            more, rest = alerts(run, args.steps, 100 * seed + i)
            loud, quiet = loud + more, quiet + rest
        engine = "none" if run.on_policy else f"{run.noise:g}{' t4' if run.heavy else ''}"
        said = [", ".join(f"{k} {n}" for k, n in one.items()) or "-" for one in (loud, quiet)]
        row = (f"{run.vocabulary:,}", run.prompts, engine, args.steps * args.seeds, *said)
        print("|", " | ".join(map(str, row)), "|", flush=True)
        total, informed = total + loud, informed + quiet
    count = len(RUNS) * args.steps * args.seeds
    print(
        f"\n{1000 * total.total() / count:.2f} alerts in 1,000 healthy steps "
        f"({total.total()} in {count:,}), {1000 * informed.total() / count:.2f} that inform; "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
