"""Reports for tests: plausible ones of full size, and any that types allow (hypothesis)."""

import random
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st

from klmonitor.record import RecordWriter
from klmonitor.report import Alert, ExtremeToken, PairReport, Report
from klmonitor.rules import RuleSet
from klmonitor.testing import BATCHES, batch_report, token_batch

FLOATS = (
    *(f"{k}/{m}" for k in ("k1", "k2", "k3") for m in ("mean", "se", "var")),
    *(f"{k}/running_{m}" for k in ("k1", "k2", "k3") for m in ("mean", "var")),
    *("k1/negative_share", "k1/cancellation", "k2/bias", "k2/bias_z", "gap", "gap_z", "spike/z"),
    *("cv/lambda", "cv/corr", "cv/variance_ratio", "iw/k1/mean", "iw/k3/mean", "iw/ess", "ess"),
    *(f"log_ratio/{q}" for q in ("p0.1", "p1", "p50", "p99", "p99.9", "min", "max")),
    *(f"dominance/{k}/{m}" for k in ("k1", "k3") for m in ("v", "j", "top_share")),
    *("k1/mean_without_top", "k3/mean_without_top", "dominance/top_sequence_share"),
    "sequence/ratio_beyond_3",
    *("outliers/rate", "sequence/k1", "sequence/k3"),
    *(f"group/math/{k}/{m}" for k in ("k1", "k3") for m in ("mean", "se")),
    *(f"group/other/{k}/{m}" for k in ("k1", "k3") for m in ("mean", "se")),
    *(f"group/code/{k}/{m}" for k in ("k1", "k3") for m in ("mean", "se")),
    *(f"penalty/{m}" for m in ("beta", "pull", "effective_beta", "effective_beta_se")),
    *(f"penalty/{m}_share" for m in ("dead", "opposite", "top")),
)
COUNTS = (
    *("tokens", "sequences", "prompts", "on_policy", "nonfinite", "positive_logp", "clamped"),
    *("low_precision", "outliers/k1", "outliers/k3", "dominance/level", "best"),
    *(f"log_ratio/{side}{n}" for side in ("le_-", "ge_") for n in (1, 2, 5, 10)),
    *("dominance/k1/level", "dominance/k3/level"),
)


def make_pair(name: str, rng: random.Random, buckets: int = 120) -> PairReport:
    """A pair with every metric, four buckets an octave on both sides of 0."""
    values = {metric: rng.gauss(0, 1) * 10 ** rng.uniform(-5, 1) for metric in FLOATS}
    values |= {metric: float(rng.randrange(10 ** rng.randrange(1, 6))) for metric in COUNTS}
    edges = [2.0 ** (-12 + i // 4) * (1 + i % 4 / 4) for i in range(buckets // 2)]
    signed = [-edge for edge in reversed(edges)] + edges
    assert all(low < high for low, high in pairwise(signed))
    histogram = tuple((edge, float(rng.randrange(1, 20000))) for edge in signed)
    return PairReport(name=name, values=values, histogram=histogram)


def make_report(step: int, *names: str, alerts: tuple[Alert, ...] = ()) -> Report:
    """A full report of the pairs named (`policy_ref` if none is)."""
    rng = random.Random(step)
    pairs = {name: make_pair(name, rng) for name in names or ("policy_ref",)}
    run = {"kl/alerts": float(len(alerts)), "klmonitor/active": 1.0, "klmonitor/errors": 0.0}
    return Report(
        step=step, first_step=step, time=1.7e9 + step, pairs=pairs, alerts=alerts, run_values=run
    )


def small_report(step: int, phase: str = "train", **values: float) -> Report:
    """A report of one pair with just these metrics (``__`` stands for ``/``)."""
    metrics = {name.replace("__", "/"): value for name, value in values.items()}
    pair = PairReport("policy_ref", metrics or {"k1/mean": float(step)})
    return Report(step=step, first_step=step, phase=phase, pairs={pair.name: pair})


def make_token(position: int = 0, text: str | None = None, log_ratio: float = -9.5) -> ExtremeToken:
    """An extreme token of `policy_ref`."""
    return ExtremeToken(
        "policy_ref", "left", log_ratio, -0.25, log_ratio - 0.25, 0, 1, 2, position, 42, None, text
    )


def make_alert(step: int = 7, **changes: object) -> Alert:
    """A spike."""
    fields: dict[str, object] = {
        "step": step,
        "kind": "spike",
        "severity": "warn",
        "pair": "policy_ref",
        "message": "k3 is 12 x its level",
        "since": step,
        "values": {"z": 8.25},
        "tokens": (make_token(),),
    }
    return Alert(**(fields | changes))


# --- anything that the types allow -----------------------------------------------------------
text = st.text(st.characters(), max_size=8)  # surrogates included
floats = st.floats()
counts = st.integers(0, 10**6)

tokens = st.builds(
    ExtremeToken,
    pair=text,
    tail=st.sampled_from(["left", "right"]),
    log_ratio=floats,
    log_q=floats,
    log_p=floats,
    rank=counts,
    micro_batch=counts,
    sequence=counts,
    position=counts,
    token_id=st.none() | counts,
    prompt_id=st.none() | counts,
    text=st.none() | text,
)
alerts = st.builds(
    Alert,
    step=counts,
    kind=text,
    severity=st.sampled_from(["info", "warn", "critical"]),
    pair=st.none() | text,
    message=text,
    believe=text,
    action=text,
    source=text,
    phase=st.sampled_from(["open", "worse", "end"]),
    since=counts,
    values=st.dictionaries(text, floats, max_size=3),
    tokens=st.lists(tokens, max_size=2).map(tuple),
)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """Any report without tokens and alerts, which rows of their own hold."""
    names = draw(st.lists(text, max_size=3, unique=True))
    pairs: Mapping[str, PairReport] = {
        name: PairReport(
            name,
            values=draw(st.dictionaries(text, floats, max_size=4)),
            histogram=tuple(draw(st.lists(st.tuples(edges, bucket_counts), max_size=4))),
        )
        for name in names
    }
    return Report(
        step=draw(counts),
        pairs=pairs,
        first_step=draw(counts),
        phase=draw(st.sampled_from(["train", "eval"])),
        time=draw(st.floats(0, 1e10)),
        run_values=draw(st.dictionaries(text, floats, max_size=2)),
    )


edges = st.floats(-128, 128)
bucket_counts = st.integers(1, 10**9).map(float)


def recorded_run(path: Path, steps: int) -> list[Alert]:
    """Record a run that an odd batch meets every eighth step from 32 on; what was alerted."""
    rules, live = RuleSet(), []
    writer = RecordWriter(path)
    for step in range(steps):
        name = BATCHES[step // 8 % len(BATCHES)] if step > 25 and step % 8 == 0 else "clean"
        batch = token_batch(name, sequences=8, length=32, vocabulary=64, seed=step)
        one = batch_report(batch, step)
        writer.step(one)
        writer.tokens(step, one.extremes)
        live += rules.judge(one).alerts
    writer.close()
    return live
