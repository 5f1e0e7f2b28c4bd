"""Record first, then the sinks; at the end the record is whole before a sink makes use of it."""

from __future__ import annotations

import threading
import time

import torch

from klmonitor import Monitor
from klmonitor.boundary import HealthLog
from klmonitor.record import RecordWriter, read_run
from klmonitor.sinks import FanOut
from klmonitor.sinks.delivery import Delivery
from tests.helpers.reports import make_report


class Reader:
    """A sink that reads the record when it is closed, as the one that logs the page does."""

    def __init__(self, run_dir):
        self.run_dir, self.found, self.seen = run_dir, None, []

    def __call__(self, report):
        self.seen.append(report.step)

    def close(self):
        self.found = [report.step for report in read_run(self.run_dir).reports]


def test_the_record_is_flushed_before_sinks_are_closed(tmp_path):
    """Without that the rows of the last moments, which the writer looks for later, are missing."""
    log, reader = HealthLog(), Reader(tmp_path)
    delivery = Delivery(log, RecordWriter(tmp_path), FanOut([reader], log=log))
    for step in range(60):
        delivery.send(make_report(step, "policy_ref"))
    delivery.close()
    assert reader.found == list(range(60))


def test_a_record_that_fails_costs_no_sink_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr(RecordWriter, "step", lambda *_: 1 / 0)
    reader = Reader(tmp_path)
    monitor = Monitor(tmp_path, sinks=[reader])
    for step in range(3):
        monitor.observe(policy=torch.zeros(2, 8) - 1, ref=torch.zeros(2, 8) - 2)
        report = monitor.step(step)
    assert reader.seen == [0, 1, 2]
    assert report.run_values["klmonitor/errors"] == 2, "those of the steps before"
    monitor.close()


class Late:
    """A sink that counts its losses from its first report on."""

    def __call__(self, report):
        self.errors, self.dropped = report.step + 1, 2 * (report.step + 1)

    def close(self):
        """Nothing waits."""


def test_what_a_sink_counts_is_counted_from_when_it_counts():
    log = HealthLog()
    delivery = Delivery(log, sinks=FanOut([Late(), lambda report: None], log=log))
    for step in range(3):
        delivery.send(make_report(step, "policy_ref"))
    assert (delivery.health().errors, delivery.health().dropped) == (3, 6)


def test_rows_that_the_record_lost_are_dropped_ones(tmp_path):
    log, stop = HealthLog(), threading.Event()
    record = RecordWriter(tmp_path, capacity=4)
    record._worker.submit(lambda: stop.wait(60), now=True)
    delivery = Delivery(log, record, keep_tokens=False)
    while not record._worker._running:
        time.sleep(0.01)
    for step in range(10):
        delivery.send(make_report(step, "policy_ref"))
    assert delivery.health().dropped == 6
    assert delivery.health().errors == 0
    stop.set()
    delivery.close()
