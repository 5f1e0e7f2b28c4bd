"""Workers' sums on their way to a driver, without Ray and without a trainer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klmonitor import Penalty
from klmonitor.hooks.feed import Capture, Feed
from klmonitor.hooks.objective import Objective, PenaltyRead
from klmonitor.hooks.options import Options
from klmonitor.hooks.remote import RemoteWatch, refuse
from klmonitor.hooks.worker import RemoteWorker
from tests.helpers.mailbox import LocalMailbox


class Words(Capture):
    """Of a driver that captures nothing itself."""

    def __init__(self, feed):
        self.feed = feed

    def wraps(self):
        return {}

    def sources(self):
        return {"policy": "the workers", "old": "the workers"}

    def missing(self):
        return {"ref": "none", "rollout": "none"}


class Driver(RemoteWatch):
    """The least that an adapter adds."""

    def __init__(self, output_dir, options=None, **given):
        super().__init__(
            "a trainer",
            options or Options(),
            output_dir=output_dir,
            objective=Objective(),
            penalty=PenaltyRead(),
            tokenizer=None,
            **given,
        )
        self.capture = Words(Feed(self.monitor, self.guards))


@pytest.fixture
def driver(tmp_path, monkeypatch):
    monkeypatch.setattr("klmonitor.hooks.remote.Mailbox", LocalMailbox)
    monkeypatch.setattr("klmonitor.hooks.worker.Mailbox", LocalMailbox)
    LocalMailbox.box, LocalMailbox.dead = None, False
    made = Driver(str(tmp_path))
    yield made
    made.detach()


def tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    policy = -torch.rand(4, 16, generator=generator) - 0.1
    return {"policy": policy, "old": policy - 0.1 * torch.rand(4, 16, generator=generator)}


def d_of(given):
    return (given["policy"].double() - given["old"].double()).flatten().numpy()


def update(worker, *seeds, place=(0, 1, True)):
    worker.begin()
    for seed in seeds:
        worker.observe(**tokens(seed))
    worker.end(*place)


def test_what_workers_sum_is_the_drivers_step(driver):
    driver.open_mailbox({"groups": (), "word": "heard"})
    workers = [RemoteWorker(), RemoteWorker()]
    update(workers[0], 1, 2, place=(0, 2, True))
    update(workers[1], 3, place=(1, 2, True))
    update(RemoteWorker(), 3, place=(1, 2, False))  # a copy that sees the same tokens
    driver.collect(1)
    driver.finish_step(1)
    d = np.concatenate([d_of(tokens(seed)) for seed in (1, 2, 3)])
    pair = driver.report.pairs["old_policy"]
    assert pair.tokens == d.size
    assert pair.k3.mean == pytest.approx((np.expm1(d) - d).mean(), rel=1e-9)
    assert workers[0].settings["word"] == "heard"
    assert driver.joined({"loss": 1.0}, 1)["kl/old_policy/k3/mean"] == pair.k3.mean
    assert driver.joined({"loss": 1.0}, 2) == {"loss": 1.0}


def test_the_workers_are_told_which_pairs_and_which_term(driver):
    driver.open_mailbox({"pairs": ("old_policy",), "penalty": {"old_policy": Penalty("k2")}})
    worker = RemoteWorker()
    worker.begin()
    worker.observe(**tokens(1), ref=tokens(2)["old"])
    worker.end(0, 1, True)
    driver.collect(1)
    driver.finish_step(1)
    assert set(driver.report.pairs) == {"old_policy"}


def test_an_update_that_failed_is_thrown_away_and_counted(driver):
    driver.open_mailbox({})
    worker = RemoteWorker()
    worker.begin()
    worker.observe(**tokens(1))  # and then it fails
    update(worker, 2)
    driver.collect(1)
    driver.finish_step(1)
    assert driver.report.pairs["old_policy"].tokens == 64
    assert driver.report.health.dropped == 1


def test_a_mailbox_that_dies_is_told_by_both_and_ends_nothing_else(
    driver, monkeypatch, capsys, caplog
):
    for module in ("remote", "worker"):  # which asks Ray's own error
        monkeypatch.setattr(f"klmonitor.hooks.{module}.is_timeout", lambda error: False)
    driver.open_mailbox({})
    worker = RemoteWorker()
    update(worker, 1)
    driver.collect(1)
    LocalMailbox.dead = True
    update(worker, 2)
    update(worker, 3)
    for step in (1, 2):
        driver.collect(step)
        driver.finish_step(step)
    lines = capsys.readouterr().err.splitlines() + [r.getMessage() for r in caplog.records]
    assert len([line for line in lines if "mailbox is gone" in line]) == 2
    assert not driver.report.health.active


def test_without_a_mailbox_a_worker_says_so_once(driver, caplog):
    worker = RemoteWorker()
    update(worker, 1)
    update(worker, 2)
    assert worker.over
    assert len([r for r in caplog.records if "no mailbox" in r.getMessage()]) == 1


def test_more_can_be_told_later(driver):
    driver.open_mailbox({"stop": False})
    driver.tell({"stop": True})
    assert LocalMailbox.find().settings() == {"watch": True, "stop": True}


def test_metrics_that_cannot_be_are_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="most"):
        Driver(str(tmp_path), Options(metrics="most"))
    with pytest.raises(ValueError, match="option recompute is none of theirs"):
        refuse(Options(recompute=True), ("reference", "recompute"), "none of theirs")
