"""The quick tier: no Ray. verl builds the batches and calls its functions; ours watch them.

The hooks are bound to the verl that is installed; a `DataProto` of verl's goes through verl's
rejection and advantages on the driver, its `ppo_loss` on the worker, its `Tracking` at the end; and
k1, k3 of every pair equal a recomputation in float64 to 1e-9.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from klmonitor.record import read_run
from tests.integrations.raylab.marks import labs

from .conftest import LocalMailbox, Owner, Tokenizer, tokens, truth

pytestmark = pytest.mark.verl
EXACT = 1e-9
REJECTION = {"rollout_is": "token", "rollout_rs": "token_k1", "rollout_rs_threshold": "0.98_1.02"}


REJECTION_OF_06 = {
    "rollout_is": "token",
    "rollout_rs": "token",
    "rollout_rs_threshold": 1.02,
    "rollout_rs_threshold_lower": 0.98,
}


class Lab:
    """A run of verl whose pieces are called one by one."""

    def __init__(self, verl, tmp_path, monkeypatch, rank=0, ranks=1, **algorithm):
        from omegaconf import OmegaConf

        from klmonitor_verl.plugin import PROCESS

        self.verl, self.process = verl, PROCESS
        self.config = {
            "trainer": {
                "default_local_dir": str(tmp_path / "run"),
                "experiment_name": "lab",
                "save_freq": -1,
                "resume_mode": "disable",
            },
            "algorithm": {"adv_estimator": "grpo", **algorithm},
            "actor_rollout_ref": {
                "actor": {"use_kl_loss": True, "kl_loss_type": "low_var_kl", "kl_loss_coef": 0.001},
                "rollout": {"calculate_log_probs": True, "n": 4},
            },
            "klmonitor": {},
        }
        self.bypass = algorithm.get("rollout_correction", {}).get("bypass_mode", False)
        self.rejection = algorithm.get("rollout_correction", {}).get("rollout_rs")
        self.trainer = SimpleNamespace(
            config=OmegaConf.create(self.config),
            tokenizer=Tokenizer(),
            global_steps=1,
            total_training_steps=10,
        )
        self.owner = Owner(rank, ranks, True)
        self.rows = tmp_path / "rows.jsonl"
        monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(self.rows))
        monkeypatch.setattr("klmonitor.hooks.remote.Mailbox", LocalMailbox)
        monkeypatch.setattr("klmonitor.hooks.worker.Mailbox", LocalMailbox)
        self.tracking = None

    def begin(self, **options):
        self.config["klmonitor"] = options
        make(self)
        return self.process.driver

    @property
    def driver(self):
        return self.process.driver

    def batch(self, data):
        held = {
            "old_log_probs": data["rollout"] if self.bypass else data["old"],
            "rollout_log_probs": data["rollout"],
            "ref_log_prob": data["ref"],
            "response_mask": data["mask"],
            "responses": data["ids"],
            "token_level_rewards": torch.rand(data["mask"].shape),
        }
        return self.verl.DataProto.from_dict(tensors=held, non_tensors={"uid": data["uid"]})

    def advantages(self, data):
        """verl's driver up to the advantages; the mask that trains."""
        batch = self.batch(data)
        if self.rejection:
            correct = self.verl.trainer.ppo.rollout_corr_helper
            older = self.verl.__version__.startswith("0.6")
            settings = REJECTION_OF_06 if older else REJECTION
            batch, _ = correct.compute_rollout_correction_and_add_to_batch(batch, settings)
        trainer = self.verl.trainer.ppo.ray_trainer
        batch = trainer.compute_advantage(batch, adv_estimator="grpo", num_repeat=4)
        return batch.batch["response_mask"]

    def update(self, data, mask, owner=None, pieces=2, fail=False):
        """verl's loss on micro-batches, within an update of a worker."""

        def work(owner):
            for rows in np.array_split(np.arange(len(mask)), pieces):
                self.loss(data, mask, rows)
            if fail:
                raise RuntimeError("the update failed")

        return self.process.worker.update(work, owner or self.owner)

    def loss(self, data, mask, rows):
        core = self.verl.trainer.ppo.core_algos
        policy = data["policy"][rows].clone().requires_grad_()
        arguments = {
            "old_log_prob": (data["rollout"] if self.bypass else data["old"])[rows],
            "log_prob": policy,
            "advantages": torch.ones(mask[rows].shape),
            "response_mask": mask[rows],
            "loss_agg_mode": "token-mean",
            "config": actor_config(),
        }
        loss, metrics = core.get_policy_loss_fn("vanilla")(**arguments)
        kl = core.kl_penalty(logprob=policy, ref_logprob=data["ref"][rows], kl_penalty="low_var_kl")
        (loss + 0.001 * (kl * mask[rows]).sum()).backward()
        return metrics

    def log(self, step, **more):
        self.trainer.global_steps = step
        self.tracking.log(data={"training/global_step": step, "actor/lr": 1e-6, **more}, step=step)
        return self.driver.report

    def step(self, step, data):
        mask = self.advantages(data)
        self.update(data, mask)
        return self.log(step), mask

    def end(self):
        if self.tracking is not None:
            getattr(self.tracking, "finish", self.tracking.__del__)()


def make(self):
    """A function with a ``self``, as `Tracking` finds its trainer by."""
    from verl.utils.tracking import Tracking

    lab, self = self, self.trainer  # what is on the stack
    backends = ["file"] if "file" in Tracking.supported_backend else ["console"]
    lab.tracking = Tracking("klmonitor", "lab", backends, config=lab.config)


def actor_config():
    from verl.workers.config import ActorConfig

    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1)


@pytest.fixture
def lab(verl, tmp_path, monkeypatch):
    from klmonitor_verl.plugin import PROCESS

    PROCESS.driver = PROCESS._worker = None
    with labs(partial(Lab, verl, tmp_path, monkeypatch), Lab.end) as make:
        yield make
    PROCESS.driver = PROCESS._worker = None


def assert_exact(report, pair, q, p, mask):
    k1, k3, n = truth(q, p, mask)
    found = report.pairs[pair]
    assert found.tokens == n
    assert found.k1.mean == pytest.approx(k1, rel=EXACT)
    assert found.k3.mean == pytest.approx(k3, rel=EXACT)


def test_every_pair_is_exact_under_its_own_mask(lab):
    lab = lab(rollout_correction=REJECTION)
    lab.begin()
    data = tokens()
    report, kept = lab.step(1, data)
    assert 0 < kept.sum() < data["mask"].sum()
    assert_exact(report, "rollout_old", data["rollout"], data["old"], data["mask"])
    assert_exact(report, "old_ref", data["old"], data["ref"], kept)
    assert_exact(report, "old_policy", data["old"], data["policy"], kept)
    assert_exact(report, "policy_ref", data["policy"], data["ref"], kept)
    assert report.health.active
    assert report.health.errors == 0
    assert report.pairs["rollout_old"]["prompts"] == 3  # of the padding rows' one none
    # The policy has moved within the first step already: that it is off the reference is no alert.
    assert "nonzero_start" not in {kind for alert in report.alerts for kind in alert.kinds}


def test_bypass_is_named_everywhere(lab, capsys):
    lab = lab(rollout_correction={"bypass_mode": True})
    driver = lab.begin()
    data = tokens(1)
    report, kept = lab.step(1, data)
    assert set(report.pairs) == {"old_ref", "policy_ref", "rollout_policy"}
    assert_exact(report, "rollout_policy", data["rollout"], data["policy"], kept)
    assert_exact(report, "old_ref", data["rollout"], data["ref"], data["mask"])
    for text in (driver.describe(), report.explain()):
        assert "bypass_mode" in text
    driver.monitor.flush()
    record = read_run(lab.config["trainer"]["default_local_dir"] + "/klmonitor")
    assert "bypass_mode" in record.reports[0].explain()
    assert any("bypass_mode" in notice.text for notice in record.notices)


def test_a_row_has_ours_beside_theirs_and_theirs_untouched(lab):
    lab = lab()
    lab.begin()
    lab.step(1, tokens())
    lab.step(2, tokens(1))
    lab.end()
    rows = [json.loads(line) for line in lab.rows.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["data"]["actor/lr"] == 1e-6
        assert row["data"]["klmonitor/active"] == 1
        assert math.isfinite(row["data"]["kl/old_policy/k1/mean"])


def test_validation_before_training_closes_no_step(lab):
    lab = lab()
    lab.begin()
    lab.tracking.log(data={"val/score": 0.5}, step=0)
    assert lab.driver.report is None
    report, _ = lab.step(1, tokens())
    assert report.step == 1


def test_text_of_extreme_tokens_is_kept(lab):
    lab = lab()
    driver = lab.begin()
    lab.step(1, tokens())
    driver.monitor.flush()
    record = read_run(lab.config["trainer"]["default_local_dir"] + "/klmonitor")
    mine = [token for token in record.tokens[1] if token.rank == 0]
    assert mine
    assert any(token.text for token in mine if token.token_id is not None)


def test_an_option_that_is_unknown_stops_the_start_and_names_the_nearest(lab):
    lab = lab()
    with pytest.raises(ValueError, match="did you mean 'run_dir'"):
        lab.begin(run_dirr="x")
    with pytest.raises(ValueError, match="none of verl's"):
        lab.begin(reference=None)


def test_options_arrive(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("KLMONITOR_METRICS", "full")
    lab = lab()
    driver = lab.begin(run_dir=str(tmp_path / "elsewhere"))
    lab.step(1, tokens())
    lab.end()
    row = json.loads(lab.rows.read_text().splitlines()[0])["data"]
    assert "kl/rollout_old/log_ratio/p50" in row
    assert read_run(tmp_path / "elsewhere").reports[0].step == 1
    assert driver.settings.reference


# --- what an alert does ------------------------------------------------------------------------
LOW = {"rules": {"limit": {"warn": 1e-12, "critical": 1e-11, "alone": 1e-11}}}


def test_stop_and_checkpoint_as_v0s_loop_allows(lab):
    lab = lab()
    lab.begin(on_alert={"limit": ["checkpoint", "stop"]}, **LOW)
    lab.step(3, tokens())
    assert lab.trainer.total_training_steps == 4  # the next step is the last
    assert lab.trainer.config.trainer.save_freq == 1
    lab.trainer.global_steps = 4
    lab.driver.saved(lab.trainer)
    assert lab.trainer.config.trainer.save_freq == -1


def test_stop_of_v1_is_at_once(lab):
    v1 = pytest.importorskip("verl.trainer.ppo.v1.trainer_base", reason="this verl has no V1")
    lab = lab()

    class Theirs(SimpleNamespace, v1.PPOTrainer):
        def __init__(self, **values):
            SimpleNamespace.__init__(self, **values)

        def _abstract(self, *args):
            return None

    for name in list(v1.PPOTrainer.__abstractmethods__):
        setattr(Theirs, name, Theirs._abstract)
    Theirs.__abstractmethods__ = frozenset()
    lab.trainer = Theirs(**vars(lab.trainer))
    lab.begin(on_alert={"limit": "stop"}, **LOW)
    lab.step(3, tokens())
    assert lab.trainer.total_training_steps == 3


# --- checkpoints -------------------------------------------------------------------------------
def test_a_resumed_run_continues(lab, tmp_path):
    first = lab()
    first.begin()
    first.step(1, tokens())
    folder = tmp_path / "run" / "global_step_2"
    folder.mkdir(parents=True)
    first.trainer.global_steps = 2
    first.process._saved(lambda trainer: None, first.trainer)
    first.step(2, tokens(1))
    state = json.loads((folder / "klmonitor.json").read_text())
    assert state["step"] == 2  # the step that the checkpoint is of is in it
    first.end()

    second = lab()
    second.trainer.global_steps = 2
    second.process._loaded(lambda trainer: None, second.trainer)  # V1 loads before Tracking is made
    driver = second.begin()
    assert driver.monitor.state_dict()["running"] == state["running"]
    third_of_one, _ = second.step(3, tokens(2))
    assert third_of_one.pairs["old_policy"]["k1/running_var"] > 0


# --- faults ------------------------------------------------------------------------------------
HOOKED = {
    "worker": ("_enter", "_caught", "_flush", "_reference", "_begin", "_end", "_looked_at"),
    "capture": ("_keep_mask", "_keep_debugged", "_keep_entropies", "_keep_versions", "_observe"),
    "driver": ("close_step", "joined", "saved", "loaded"),
}
EACH = [(module, name) for module, names in HOOKED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), EACH)
def test_a_hook_that_raises_costs_its_own_numbers_and_is_told_once(
    lab, module, name, monkeypatch, caplog
):
    from klmonitor_verl import capture, driver, worker

    owner = {
        "worker": worker.Worker,
        "capture": capture.DriverCapture,
        "driver": driver.Driver,
    }[module]

    def fail(*args, **kwargs):
        raise RuntimeError("planted")

    monkeypatch.setattr(owner, name, fail)
    lab = lab(rollout_correction=REJECTION)
    lab.begin()
    for step in (1, 2, 3):
        data = tokens(step)
        mask = lab.advantages(data)
        lab.process._loaded(lambda trainer: None, lab.trainer)
        lab.process._saved(lambda trainer: None, lab.trainer)
        debugged = lab.process.driver.capture.debugged
        assert debugged(lambda data: 5, lab.batch(data)) == 5
        found = lab.batch(data), 0.5
        assert lab.driver.capture.old_log_prob(lambda found: found, found) is found
        lab.driver.capture.versioned(lambda *a: None, lab.trainer, SimpleNamespace(tags=[]), {})
        lab.process.worker.ppo_loss(lambda *a: 7, None, {}, {})
        lab.update(data, mask)
        lab.log(step)
    lab.end()
    rows = [json.loads(line) for line in lab.rows.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["data"]["actor/lr"] == 1e-6 for row in rows)
    told = [record.getMessage() for record in caplog.records if "planted" in record.getMessage()]
    assert 1 <= len(told) == len(set(told)) <= 2, told  # `_flush` stands behind two boundaries


def test_an_update_that_fails_loses_its_own_step_and_is_counted(lab):
    lab = lab()
    lab.begin()
    data = tokens()
    mask = lab.advantages(data)
    with pytest.raises(RuntimeError, match="the update failed"):
        lab.update(data, mask, fail=True)
    lab.update(data, mask)
    report = lab.log(1)
    assert report.pairs["old_policy"].tokens == mask.sum()  # once
    assert report.health.dropped == 1


def test_a_worker_that_is_missing_is_counted_and_named_once(lab, capsys):
    lab = lab(ranks=3)
    lab.begin()
    for step in (1, 2, 3):
        data = tokens(step)
        mask = lab.advantages(data)
        present = (0, 1, 2) if step == 1 else (0, 2)
        for rank in present:
            lab.process._worker = None
            lab.update(data, mask, Owner(rank, 3, True))
        report = lab.log(step)
        assert report.pairs["old_policy"].tokens == len(present) * mask.sum()
    assert report.health.dropped == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "actor-1" in line]
    assert len(said) == 1
    assert "step 2 lacks actor-1" in said[0]


def test_copies_of_the_same_tokens_say_nothing(lab):
    lab = lab()
    lab.begin()
    data = tokens()
    mask = lab.advantages(data)
    lab.update(data, mask, Owner(0, 1, True))
    lab.process._worker = None
    lab.update(data, mask, Owner(0, 1, False))
    assert lab.log(1).pairs["old_policy"].tokens == mask.sum()


def test_the_mailboxs_death_ends_the_workers_numbers_and_nothing_else(lab, capsys, caplog):
    lab = lab()
    lab.begin()
    lab.step(1, tokens())
    LocalMailbox.dead = True
    for step in (2, 3, 4):
        report, _ = lab.step(step, tokens(step))
    assert set(report.pairs) == {"rollout_old", "old_ref"}
    assert not report.health.active
    assert "mailbox" in report.health.why
    lines = capsys.readouterr().err.splitlines() + [r.getMessage() for r in caplog.records]
    assert len([line for line in lines if "mailbox is gone" in line]) == 2  # driver, worker


def test_without_a_mailbox_a_worker_says_so_and_trains(lab, caplog):
    lab = lab()
    LocalMailbox.box = None
    data = tokens()
    lab.update(data, data["mask"])
    lab.update(data, data["mask"])
    assert len([r for r in caplog.records if "mailbox" in r.getMessage()]) == 1


@pytest.mark.parametrize("place", range(21))
def test_an_attribute_that_this_verl_lacks_is_named(place, verl, monkeypatch):
    from importlib import import_module

    from klmonitor_verl.plugin import HOOKS, Process

    if place >= len(HOOKS):
        pytest.skip("fewer hooks than that")
    hook = HOOKS[place]
    try:
        module = import_module(hook.module)
    except ImportError:
        pytest.skip(f"this verl has no {hook.module}")
    owner = module
    *path, last = hook.name.split(".")
    for part in path:
        if not hasattr(owner, part):
            pytest.skip(f"this verl has no {hook.name}")
        owner = getattr(owner, part)
    if not hasattr(owner, last):
        pytest.skip(f"this verl has no {hook.name}")
    before = {
        one: sys.modules[one.module].__dict__.copy() for one in HOOKS if one.module in sys.modules
    }
    monkeypatch.delattr(owner, last)
    if hasattr(owner, last):
        pytest.skip(f"{hook.name} is inherited from its base")
    process = Process()
    process.install()
    name = f"{hook.module}.{hook.name}"
    try:
        assert name in process.bindings.absent
        assert not hook.without or hook.without in process.absent()[name]
    finally:
        process.bindings.undo()
    assert before


def test_the_describe_names_what_is_absent(lab):
    lab = lab()
    lab.process.bindings.absent["verl.trainer.ppo.core_algos.kl_penalty"] = "AttributeError: gone"
    try:
        text = lab.begin().describe()
        assert "kl_penalty: left out (no policy_ref (AttributeError: gone))" in text
    finally:
        lab.process.bindings.absent.clear()


# --- theirs beside ours ------------------------------------------------------------------------
def test_their_mismatch_is_ours_where_it_is_right(lab, verl):
    lab = lab()
    lab.begin()
    data = tokens()
    report, _ = lab.step(1, data)
    compute = verl.trainer.ppo.rollout_corr_helper.compute_offpolicy_metrics
    theirs = compute(data["old"], data["rollout"], data["mask"])
    assert report.pairs["rollout_old"].k1.mean == pytest.approx(theirs["kl"], rel=1e-4, abs=1e-7)


def test_float32_and_padding_rows_deceive_theirs_and_not_ours(verl):
    from klmonitor import Monitor

    compute = verl.trainer.ppo.rollout_corr_helper.compute_offpolicy_metrics
    data = tokens(3, rows=16, length=64, padding=0)
    old = data["rollout"] + 1e-4 * torch.randn(data["rollout"].shape)
    _, k3, _ = truth(data["rollout"], old, data["mask"])
    theirs = compute(old, data["rollout"], data["mask"])["k3_kl"]
    monitor = Monitor(process_group=False)
    monitor.observe(rollout=data["rollout"], old=old, mask=data["mask"])
    ours = monitor.step(0).pairs["rollout_old"].k3.mean
    assert ours == pytest.approx(k3, rel=EXACT)
    assert abs(theirs / k3 - 1) > 0.1

    padded = tokens(3, rows=16, length=64, padding=8)
    with_rows = compute(padded["old"], padded["rollout"], padded["mask"])["training_ppl"]
    alone = compute(padded["old"][:16], padded["rollout"][:16], padded["mask"][:16])["training_ppl"]
    assert abs(with_rows / alone - 1) > 0.1  # rows that hold nothing count in their mean


def test_clamps_deceive_theirs_and_not_ours(verl):
    from klmonitor import Monitor

    data = tokens(3, rows=16, length=64, padding=0)
    mask, rollout = data["mask"], data["rollout"]
    generator = torch.Generator().manual_seed(5)

    def ours(old):
        monitor = Monitor(process_group=False)
        monitor.observe(rollout=rollout, old=old, mask=mask)
        return monitor.step(0).pairs["rollout_old"]

    one = data["old"].clone()
    one[0, 0] = rollout[0, 0] + 20  # of 503 tokens
    value = verl.trainer.ppo.core_algos.kl_penalty(rollout, one, "low_var_kl")
    _, k3, _ = truth(rollout, one, mask)
    assert float((value * mask).sum() / mask.sum()) < 0.03
    assert ours(one).k3.mean == pytest.approx(k3, rel=EXACT)
    assert k3 > 9e5

    wide = rollout + 1.5 * torch.randn(rollout.shape, generator=generator)
    d = (wide.double() - rollout.double())[mask.bool()].numpy()
    batch = verl.DataProto.from_dict(
        tensors={"old_log_probs": wide, "rollout_log_probs": rollout, "response_mask": mask}
    )
    correct = verl.trainer.ppo.rollout_corr_helper.compute_rollout_correction_and_add_to_batch
    _, theirs = correct(batch, {"rollout_is": "token", "rollout_is_threshold": 2.0})
    ess = np.exp(d).mean() ** 2 / np.exp(2 * d).mean()
    assert ours(wide)["ess"] == pytest.approx(ess, rel=EXACT)
    assert theirs["rollout_corr/rollout_is_eff_sample_size"] > 3 * ess  # of clamped weights
    if not verl.__version__.startswith(("0.6", "0.7")):  # these are of the raw ones
        assert theirs["rollout_corr/rollout_is_max"] == 2.0 < np.exp(d).max() / 40
