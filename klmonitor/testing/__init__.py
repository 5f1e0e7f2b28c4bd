"""Runs and batches that go wrong in known ways, seeded: for tests, benchmarks and the docs."""

from klmonitor.testing.batches import BATCHES, TokenArrays, batch_report, token_batch
from klmonitor.testing.series import (
    EVENTS,
    FAMILIES,
    Series,
    drift,
    kl_series,
    reports,
    runaway,
    spike,
    step,
)

__all__ = [
    "BATCHES",
    "EVENTS",
    "FAMILIES",
    "Series",
    "TokenArrays",
    "batch_report",
    "drift",
    "kl_series",
    "reports",
    "runaway",
    "spike",
    "step",
    "token_batch",
]
