"""Time klmonitor beside what others do with the same tokens: `make bench`.

Everything runs in one process, and within a size every contender runs once per round, so that a
busy machine slows all of them alike; printed are medians with the middle half of the rounds.
Writes `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks import coldstart
from klmonitor import Monitor, exact_kl
from klmonitor.boundary import Boundary
from klmonitor.pairs import default_pairs
from klmonitor.summary.batch import build
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.passes import TOKENS, accumulate
from klmonitor.summary.state import Summary

TARGET = Path(__file__).parent / "RESULTS.md"
SIZES = {4096: (16, 256), 65_536: (64, 1024), 1_048_576: (1024, 1024), 8_388_608: (8192, 1024)}
Contender = Callable[[], object]
P = ParamSpec("P")
R = TypeVar("R")
PAIRS = 40
"""Of one thread and two."""
SETTLE = 0.02
"""Seconds in which the threads that torch has woken go to sleep again."""


def tokens(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs of a policy and of a reference near it, and a mask of ragged responses."""
    generator = torch.Generator().manual_seed(0)
    q = -torch.empty(rows, columns).exponential_(0.7, generator=generator)
    p = q + 0.1 * torch.randn(rows, columns, generator=generator)
    lengths = torch.randint(columns // 4, columns + 1, (rows, 1), generator=generator)
    return q, p, torch.arange(columns) < lengths


def contenders(q: torch.Tensor, p: torch.Tensor, mask: torch.Tensor) -> dict[str, Contender]:
    """Name -> what is timed."""
    state = Summary.empty(SummaryConfig())

    def ours() -> None:
        batch = build({"policy": q, "ref": p}, mask=mask)
        accumulate(state, batch, default_pairs(batch.log_probs), place=Place())

    def floor() -> None:
        q.sum(), p.sum(), mask.count_nonzero()

    def trl() -> torch.Tensor:
        d = p - q
        return ((torch.exp(d) - d - 1) * mask).sum() / mask.sum()

    def masked_mean(x: torch.Tensor) -> torch.Tensor:
        return (x * mask).sum() / (mask.sum() + 1e-8)

    def verl() -> list[torch.Tensor]:
        d = p - q
        ratio = torch.exp(d)
        values = (-d, ratio - d - 1, d.abs(), ratio, ratio.square())
        return [masked_mean(x) for x in values]

    found: dict[str, Contender] = {
        "memory floor: read q, p and the mask once": floor,
        "klmonitor: the whole pass": ours,
        "one k3 mean, as TRL computes it": trl,
        "five masked means, as verl computes them": verl,
    }
    try:
        from torchmetrics import MeanMetric

        metrics = [MeanMetric() for _ in range(6)]

        def torchmetrics_six() -> None:
            d = (p - q)[mask]
            ratio = torch.exp(d)
            for metric, x in zip(
                metrics, (-d, d * d / 2, ratio - d - 1, d.abs(), ratio, d), strict=True
            ):
                metric.update(x)

        found["six torchmetrics MeanMetric"] = torchmetrics_six
    except ImportError:
        sys.stderr.write("torchmetrics is not installed: left out\n")
    try:
        from ddsketch import DDSketch

        if q.numel() <= 65_536:
            sketch = DDSketch(0.01)

            def ddsketch_add() -> None:
                for value in (p - q)[mask].tolist():
                    sketch.add(value)

            found["ddsketch, one add a token (quantiles alone)"] = ddsketch_add
    except ImportError:
        sys.stderr.write("ddsketch is not installed: left out\n")
    return found


def timed(found: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, one per round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, run in found.items():
            if torch.get_num_threads() > 1:  # what the one before leaves spinning is not this one's
                time.sleep(SETTLE)
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4)
    return low, median, high


def passes(threads: int, quick: bool) -> list[str]:
    """The table of passes at one number of threads."""
    torch.set_num_threads(threads)
    lines = [
        f"### {threads} thread{'s' if threads > 1 else ''}",
        "",
        "| tokens | what | median ms (middle half) | x floor | x one k3 mean |",
        "|---|---|---|---|---|",
    ]
    for size, shape in SIZES.items():
        if quick and size > 1_048_576:
            continue
        rounds = max(5, min(200, 20_000_000 // size))
        results = timed(contenders(*tokens(*shape)), rounds)
        medians = {name: spread(values)[1] for name, values in results.items()}
        names = list(medians)
        for name, values in results.items():
            low, median, high = (1e3 * x for x in spread(values))
            lines.append(
                f"| {size:,} | {name} | {median:.3g} ({low:.3g}-{high:.3g}) "
                f"| {medians[name] / medians[names[0]]:.3g} "
                f"| {medians[name] / medians[names[2]]:.3g} |"
            )
    return [*lines, ""]


def shared(quick: bool) -> list[str]:
    """The pass by two threads beside the same by one, in turn: both meet the same machine."""
    size = 1_048_576 if quick else 8_388_608
    ours = contenders(*tokens(*SIZES[size]))["klmonitor: the whole pass"]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(PAIRS + 1):
        for threads, found in seconds.items():
            torch.set_num_threads(threads)
            time.sleep(SETTLE)
            started = time.perf_counter()
            ours()
            if number:
                found.append(time.perf_counter() - started)
    ratios = [two / one for one, two in zip(*seconds.values(), strict=True)]
    low, median, high = spread(ratios)
    return [
        f"Two threads take {median:.2f} ({low:.2f}-{high:.2f}) of the time of one for {size:,} "
        f"tokens, in {PAIRS} pairs taken in turn.",
        "",
    ]


def exact(quick: bool) -> list[str]:
    """Exact KL beside sampled, at a vocabulary of 152k."""
    torch.set_num_threads(1)
    positions, vocabulary = (16 if quick else 64), 152_064
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(positions, vocabulary, generator=generator, dtype=torch.float32).bfloat16()
    p = (q.float() + 0.1 * torch.randn(positions, vocabulary, generator=generator)).bfloat16()
    log_q, log_p = q.float().log_softmax(-1), p.float().log_softmax(-1)
    x = torch.distributions.Categorical(logits=log_q).sample()[:, None]
    sampled_q, sampled_p = log_q.gather(1, x), log_p.gather(1, x)

    def sampled() -> None:
        batch = build({"policy": sampled_q, "ref": sampled_p})
        state = Summary.empty(SummaryConfig())
        accumulate(state, batch, default_pairs(batch.log_probs), place=Place())

    def divergence(chunk: int) -> None:
        for q_rows, p_rows in zip(q.split(chunk), p.split(chunk), strict=True):
            log_q, log_p = q_rows.float().log_softmax(-1), p_rows.float().log_softmax(-1)
            F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)

    whats = {
        "exact_kl": lambda: exact_kl(q, p),
        "sixteen": lambda: divergence(16),
        "one": lambda: divergence(1),
        "sampled": sampled,
    }
    results = timed(whats, 3)
    per = {name: 1e6 * spread(values)[1] / positions for name, values in results.items()}
    return [
        f"## Exact KL, vocabulary {vocabulary:,} (bf16 logits, one thread)",
        "",
        f"{per['exact_kl']:,.0f} us a position, beside {per['sixteen']:,.0f} us for `F.kl_div` in "
        f"chunks of 16 positions (float32, off by 1e-6 nats), {per['one']:,.0f} us one at a time, "
        f"and {per['sampled']:.1f} us a position for the sampled pass on {positions} tokens.",
        "",
    ]


SETTINGS: dict[str, dict[str, Any]] = {
    "one pair": {},
    "two pairs (each batch is trained on twice)": {"num_iterations": 2},
}


def overhead(quick: bool) -> list[str]:
    """Our own part of a training step of the demo's model, and what attaching does to it."""
    rows = [
        "## A training step of the demo",
        "",
        "TRL's GRPO on one thread, attached with the defaults: record, rules, extreme tokens with "
        "their text. Means over the steps of runs taken in turn, which differ where only every "
        "other step generates; of our own part also the quartiles. Its share is that of the "
        "watched steps less our part: both were timed in the same seconds. The record's thread "
        "works beside the step, for as much time of a CPU as is stated.",
        "",
        "| | without, ms | with, ms | inside our hooks, ms | of the rest of a step "
        "| the record's thread, ms |",
        "|---|---|---|---|---|---|",
    ]
    rows += [_overhead(name, config, quick) for name, config in SETTINGS.items()]
    return [*rows, "", *_reporters()]


def _overhead(name: str, config: dict[str, Any], quick: bool) -> str:
    from klmonitor.attachment import attach
    from klmonitor_trl.demo import tiny
    from klmonitor_trl.watch import watch_of

    torch.set_num_threads(1)
    steps, rounds = (12, 1) if quick else (60, 3)
    plain: list[float] = []
    watched: list[float] = []
    own: list[float] = []
    beside: list[float] = []
    spent = _Timed.spent
    with tempfile.TemporaryDirectory() as directory:
        model = tiny.save_tiny_model(Path(directory) / "model")
        for number in range(2 * rounds):
            out = Path(directory) / f"run-{number}"
            seed = number // 2
            trainer = tiny.make_trainer(model, out, steps=steps, beta=0.04, seed=seed, **config)
            clock: list[float] = []
            trainer.add_callback(_clock(clock, spent))
            before_it = _background_seconds()  # of threads that the passes have left
            handle = attach(trainer) if number % 2 else None
            for guard in watch_of(trainer).guards.values() if handle else ():
                guard.__class__ = _Timed
            spent.clear()
            trainer.train()
            durations = clock[1::2]
            (watched if handle else plain).extend(durations[3:])
            if handle:
                own.extend(clock[::2][3:])
                handle.monitor.flush()
                beside.append((_background_seconds() - before_it) / steps)
                handle.detach()
    before, after, mine, theirs = (1e3 * statistics.fmean(x) for x in (plain, watched, own, beside))
    low, _, high = spread(own)
    return (
        f"| {name} | {before:.1f} | {after:.1f} | "
        f"{mine:.2f} ({1e3 * low:.2f}-{1e3 * high:.2f}) | {100 * mine / (after - mine):.1f} % | "
        f"{theirs:.2f} |"
    )


def _background_seconds() -> float:
    """CPU time of our threads so far."""
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name.startswith("klmonitor") and thread.ident is not None
    ]
    return sum(map(time.clock_gettime, clocks))


class _Timed(Boundary):
    """A hook's boundary that notes the training thread's time within, once where they are nested.

    The boundaries that are further inside (of a rule, of a sink) are left as they are: two clocks
    around each of fifty would be a twentieth of what is measured.
    """

    spent: ClassVar[list[float]] = []
    inside: ClassVar[bool] = False

    def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        if _Timed.inside or threading.current_thread() is not threading.main_thread():
            return super().__call__(call, *args, **kwargs)
        _Timed.inside = True
        started = time.perf_counter()
        try:
            return super().__call__(call, *args, **kwargs)
        finally:
            self.spent.append(time.perf_counter() - started)
            _Timed.inside = False


def _clock(clock: list[float], spent: list[float]) -> object:
    """A callback that notes, for each step, the time in our hooks and the whole time."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Takes the time between the ends of steps."""

        last = math.nan

        def on_step_end(self, *_: object, **__: object) -> None:
            now = time.perf_counter()
            if not math.isnan(self.last):
                clock.extend((sum(spent), now - self.last))
            spent.clear()
            self.last = now

    return Clock()


def long_run(quick: bool) -> list[str]:
    """What a step costs at the beginning and at the end of a long run: time, memory, disk."""
    steps = 600 if quick else 10_000
    q, p, mask = tokens(16, 16)
    ids = torch.randint(0, 97, q.shape, generator=torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(2)
    seconds, resident, written = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        monitor = Monitor(run_dir=directory, rules="default", merge_rows=True)
        for step in range(steps):
            old = q + 0.02 * torch.randn(q.shape, generator=noise)
            ref = p + 0.02 * torch.randn(q.shape, generator=noise)
            started = time.perf_counter()
            monitor.observe(
                policy=q, old=old, ref=ref, mask=mask, token_ids=ids, prompt_ids=ids[:, 0] // 8
            )
            monitor.step(step)
            monitor.take_logged()
            seconds.append(time.perf_counter() - started)
            if step % (steps // 10) == steps // 10 - 1:
                monitor.flush()
                resident.append(_resident())
                written.append(sum(f.stat().st_size for f in Path(directory).iterdir()))
        monitor.close()
    tenth = steps // 10
    rows = [
        f"## {steps:,} steps of one monitor",
        "",
        "Two pairs, record, rules and extreme tokens; without a trainer, so a step's whole cost.",
        "",
        "| steps | median ms a step | 90 % | resident memory, MB | record, kB a step |",
        "|---|---|---|---|---|",
    ]
    for number in range(10):
        part = sorted(seconds[number * tenth : (number + 1) * tenth])
        before = written[number - 1] if number else 0
        rows.append(
            f"| {number * tenth + 1:,}-{(number + 1) * tenth:,} | {1e3 * part[tenth // 2]:.2f} | "
            f"{1e3 * part[9 * tenth // 10]:.2f} | {resident[number] / 1e6:.0f} | "
            f"{(written[number] - before) / tenth / 1e3:.1f} |"
        )
    return [*rows, ""]


def _resident() -> float:
    """Memory of this process, bytes; nan where the system does not say."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return math.nan
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _reporters() -> list[str]:
    """What the trainer's own reporters take for our series."""
    from torch.utils.tensorboard import SummaryWriter

    series = 14
    with tempfile.TemporaryDirectory() as directory:
        writer = SummaryWriter(directory)
        values = []
        for step in range(200):
            started = time.perf_counter()
            for number in range(series):
                writer.add_scalar(f"kl/{number}", 1.0, step)
            values.append(time.perf_counter() - started)
        writer.close()
    low, median, high = (1e3 * x for x in spread(values))
    return [
        f"Apart from that, a TensorBoard reporter takes {median:.2f} ms ({low:.2f}-{high:.2f}) a "
        f"row for the {series} series of one pair.",
        "",
    ]


def machine() -> list[str]:
    """What this ran on."""
    model = platform.processor() or platform.machine()
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return [
        f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f} at the start; "
        f"{time.strftime('%Y-%m-%d')}, klmonitor {version('klmonitor')}.",
        "",
    ]


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds, no file")
    quick = parser.parse_args().quick
    lines = ["# Timings", "", "Written by `make bench`.", "", *machine(), "## The pass", ""]
    loader = TOKENS.loader
    assert loader is not None
    if not loader.wait(300):
        sys.stderr.write(f"the compiled pass is not there: {loader.error}\n")
    for threads in (1, 2):
        lines += passes(threads, quick)
    lines += shared(quick) + exact(quick) + overhead(quick) + long_run(quick) + coldstart.parts()
    if not quick:
        lines += coldstart.starts() + coldstart.beside()
    text = "\n".join(lines)
    print(text)
    if not quick:
        TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
