"""The quick tier: no Ray. OpenRLHF builds the experiences and calls its functions; ours watch them.

An `Experience` goes from an engine's answer through OpenRLHF's own maker, advantages and replay
buffer into its own `PolicyLoss`; its trainer closes the step; and k1, k3 of every pair equal a
recomputation in float64 to 1e-9.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from klmonitor.record import read_run
from tests.helpers.mailbox import LocalMailbox
from tests.integrations.raylab.marks import labs

from .lab import Lab, results

pytestmark = pytest.mark.openrlhf
EXACT = 1e-9


@pytest.fixture
def lab(openrlhf, tmp_path, monkeypatch):
    def end(one):
        one.process._end()
        one.process._worker = None

    with labs(partial(Lab, openrlhf, tmp_path, monkeypatch), end) as make:
        yield make


def joined(parts):
    """d and k's of (q, p, mask) triples: k1, k3, tokens."""
    d = torch.cat([(p.double() - q.double())[m.bool()] for q, p, m in parts]).numpy()
    return -d.mean(), (np.expm1(d) - d).mean(), d.size


def assert_exact(report, pair, parts):
    k1, k3, n = joined(parts)
    found = report.pairs[pair]
    assert found.tokens == n
    assert found.k1.mean == pytest.approx(k1, rel=EXACT)
    assert found.k3.mean == pytest.approx(k3, rel=EXACT)


def driver_parts(lab, q, p):
    names = {"rollout": "rollout_log_probs", "old": "action_log_probs"}
    found = []
    for one in lab.experiences:
        of_ref = lab.policies.of("ref", one.sequences, one.action_mask)
        held = {name: getattr(one, key) for name, key in names.items()} | {"ref": of_ref}
        found.append((held[q], held[p], one.action_mask))
    return found


@pytest.mark.parametrize("in_loss", [False, True])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_every_pair_is_exact(lab, in_loss, estimator):
    lab = lab(algo__kl__use_loss=in_loss, algo__kl__estimator=estimator)
    driver = lab.begin()
    report, seen = lab.step(1)
    assert set(report.pairs) == set(driver.held)
    assert ("policy_ref" in report.pairs) == in_loss
    assert_exact(report, "rollout_old", driver_parts(lab, "rollout", "old"))
    assert_exact(report, "old_ref", driver_parts(lab, "old", "ref"))
    old = [(e.action_log_probs, policy, e.action_mask) for policy, e in seen]
    assert_exact(report, "old_policy", old)
    if in_loss:
        parts = [(policy, e.base_action_log_probs, e.action_mask) for policy, e in seen]
        assert_exact(report, "policy_ref", parts)
    assert report.health.active
    assert report.health.errors == 0
    assert {pair["prompts"] for pair in report.pairs.values()} == {3}
    assert "nonzero_start" not in {kind for alert in report.alerts for kind in alert.kinds}


@pytest.mark.parametrize("in_loss", [False, True])
def test_the_receipt_is_of_the_pair_that_is_penalised(lab, in_loss):
    lab = lab(algo__kl__use_loss=in_loss, algo__kl__estimator="k3" if in_loss else "k1")
    driver = lab.begin()
    report, seen = lab.step(1)
    pair = "policy_ref" if in_loss else "old_ref"
    assert [name for name in report.pairs if report.pairs[name].penalty] == [pair]
    assert report.pairs[pair]["penalty/beta"] == pytest.approx(0.05)
    text = driver.describe()
    assert ("k3 in the loss" if in_loss else "k1 in the return to go") in text
    if in_loss:
        term = driver.monitor.penalties[pair]
        d = torch.cat(
            [
                (e.base_action_log_probs.double() - policy.double())[e.action_mask.bool()]
                for policy, e in seen
            ]
        )
        pull = float(0.05 * term.coefficient(d).mean())
        # clamped, so it is summed over the histogram of d: to 2 % (docs/penalty.md)
        assert report.pairs[pair]["penalty/pull"] == pytest.approx(pull, rel=2e-2)


def test_without_the_engines_log_probs_one_line_says_how_to_get_them(lab, capsys):
    lab = lab(
        algo__advantage__is_correction_level="off", algo__advantage__is_correction_enable=False
    )
    driver = lab.begin()
    told = [line for line in capsys.readouterr().err.splitlines() if "no rollout_old" in line]
    assert len(told) == 1
    assert driver.settings.to_get_rollout in told[0]
    samples = lab.samples()
    for one in samples:
        one.rollout_log_probs = None
    lab.make(samples)
    lab.update()
    assert set(lab.log(1).pairs) == {"old_policy", "old_ref"}


def test_without_a_coefficient_there_is_no_reference(lab):
    lab = lab(algo__kl__init_coef=0.0)
    driver = lab.begin()
    report, _ = lab.step(1)
    assert set(report.pairs) == {"old_policy", "rollout_old"}
    assert "--algo.kl.init_coef" in driver.describe()


def test_an_adaptive_weight_is_followed(lab):
    lab = lab(algo__kl__target=6.0, algo__kl__use_loss=True)
    lab.begin()
    lab.trainer.kl_ctl.value = 0.07
    lab.make(lab.samples())
    worker = lab.process.worker
    lab.update()
    report = lab.log(1)
    assert worker.settings["adaptive"]
    assert report.pairs["policy_ref"]["penalty/beta"] == pytest.approx(0.05)  # the worker's kl_ctl
    assert report.run_values["run/beta"] == pytest.approx(0.07)


def test_a_row_has_ours_beside_theirs_and_the_record_is_closed_with_the_loggers(lab):
    lab = lab()
    driver = lab.begin()
    lab.step(1)
    lab.step(2)
    lab.end()
    rows = lab.rows()
    assert rows["train/actor_lr"] == {1: pytest.approx(1e-6), 2: pytest.approx(1e-6)}
    assert rows["train/klmonitor/active"] == {1: 1, 2: 1}
    assert set(rows["train/kl/old_policy/k1/mean"]) == {1, 2}
    assert lab.driver is None
    assert [one.step for one in read_run(lab.run_dir).reports] == [1, 2]
    assert driver.monitor.run_dir == lab.run_dir


def test_a_row_of_several_steps_is_their_exact_summary(lab):
    lab = lab(logger__logging_steps=2)
    lab.begin()
    _, one = lab.step(1)
    _, two = lab.step(2)
    lab.end()
    rows = lab.rows()["train/kl/old_policy/k3/mean"]
    _, k3, _ = joined([(e.action_log_probs, policy, e.action_mask) for policy, e in one + two])
    assert rows == {2: pytest.approx(k3, rel=1e-6)}  # TensorBoard keeps float32


def test_text_of_extreme_tokens_is_kept(lab):
    lab = lab()
    driver = lab.begin()
    lab.step(1)
    driver.monitor.flush()
    mine = [token for token in read_run(lab.run_dir).tokens[1] if token.rank == 0]
    assert any(token.text for token in mine if token.token_id is not None)


def test_options_arrive_and_a_wrong_one_stops_the_start(lab, monkeypatch, tmp_path):
    given = {"metrics": "full", "run_dir": str(tmp_path / "elsewhere")}
    monkeypatch.setenv("KLMONITOR_GIVEN", json.dumps(given))
    one = lab()
    one.begin()
    one.step(1)
    one.end()
    assert "train/kl/rollout_old/log_ratio/p50" in one.rows()
    assert read_run(tmp_path / "elsewhere").reports[0].step == 1
    monkeypatch.setenv("KLMONITOR_GIVEN", '{"metrics": "most"}')
    with pytest.raises(ValueError, match="most"):
        lab().begin()


# --- what an alert does ------------------------------------------------------------------------
LOW = {"limit": {"warn": 1e-12, "critical": 1e-11, "alone": 1e-11}}


def test_a_checkpoint_of_the_alerts_own_step_and_no_batch_after_it(lab, monkeypatch):
    given = {"rules": LOW, "on_alert": {"limit": ["checkpoint", "stop"]}}
    monkeypatch.setenv("KLMONITOR_GIVEN", json.dumps(given))
    lab = lab()
    lab.begin()
    generate = lab.process._samples
    assert generate(lambda self, **k: "batch", None, top_p=1.0) == "batch"
    lab.step(3)
    ((method, saved),) = lab.actor.calls[-1:]
    assert (method, saved["tag"]) == ("save_checkpoint", "global_step3")
    assert json.loads(saved["client_states"]["klmonitor"])["step"] == 3
    assert saved["client_states"]["episode"] == 0
    assert generate(lambda self, **k: "batch", None, top_p=1.0) == ([], None, 0, True)
    lab.process.driver, driver = None, lab.driver  # a process that only samples asks the mailbox
    assert generate(lambda self, **k: "batch", None, top_p=1.0) == ([], None, 0, True)
    lab.process.driver = driver
    lab.log(4)
    assert lab.actor.calls[-1][1]["tag"] == "global_step3"  # save_steps is what it was


# --- checkpoints -------------------------------------------------------------------------------
def test_a_resumed_run_continues(lab):
    first = lab(ckpt__save_steps=1)
    first.begin()
    first.step(1)
    first.step(2)
    states = first.actor.calls[-1][1]["client_states"]
    state = json.loads(states["klmonitor"])
    first.end()
    assert len(states["klmonitor"]) < 64_000
    second = lab(ckpt__save_steps=1)
    driver = second.begin()
    loaded = second.process._resumed(lambda trainer: states, second.trainer)
    assert loaded is states
    assert driver.monitor.state_dict()["running"] == state["running"]
    report, _ = second.step(3)
    assert report.pairs["old_policy"]["k1/running_var"] > 0
    assert second.process._resumed(lambda trainer: {"episode": 0}, second.trainer) == {"episode": 0}


# --- bits --------------------------------------------------------------------------------------
LOSSES = (
    {},
    {"dual_clip": 3.0},
    {"policy_loss_type": "gspo"},
    {"is_correction_level": "token"},
    {"is_correction_level": "seq", "is_correction_gating": "binary_kl",
     "is_correction_threshold": (0.0, 0.1)},
    {"enable_vllm_is_correction": True, "vllm_is_truncated_threshold": (0.5, 5.0)},
)  # fmt: skip


def states():
    found = torch.get_rng_state().numpy().tobytes()
    found += pickle.dumps((random.getstate(), np.random.get_state()))  # noqa: NPY002
    return hashlib.sha256(found).hexdigest()


def everything(loss, count):
    """Values and gradients of a loss on twenty batches, and what it was given."""
    generator, found = torch.Generator().manual_seed(3), []
    for _ in range(20):
        old = -torch.rand(4, 30, generator=generator) * 5
        policy = (old + 0.1 * torch.randn(4, 30, generator=generator)).requires_grad_()
        rollout = old + 0.02 * torch.randn(4, 30, generator=generator)
        mask = (torch.rand(4, 30, generator=generator) < 0.7).long()
        advantages = torch.randn(4, 30, generator=generator)
        values = loss(policy, old, advantages, action_mask=mask, rollout_log_probs=rollout)
        assert len(values) == count
        values[0].backward()
        found += [x.detach().clone() for x in values if x is not None]
        found += [policy.grad.clone(), old.clone(), rollout.clone(), mask.clone()]
    return found


@pytest.mark.parametrize("given", LOSSES, ids=lambda given: "-".join(map(str, given)) or "stock")
def test_values_gradients_and_random_numbers_are_the_same_bits(lab, openrlhf, given):
    from openrlhf.models.loss import PolicyLoss

    try:
        loss = PolicyLoss(**given)
    except TypeError:
        pytest.skip("this OpenRLHF has no such argument")
    lab = lab()
    lab.begin()
    worker, hooked = lab.process.worker, PolicyLoss.forward
    plain = lab.process.bindings.bound["openrlhf.models.loss.PolicyLoss.forward"]
    assert hooked is not plain
    runs = []
    for forward in (plain, hooked):
        PolicyLoss.forward = forward
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        owner = SimpleNamespace(args=lab.args)
        try:
            runs.append(
                (worker.update(lambda owner: everything(loss, results(openrlhf)), owner), states())
            )
        finally:
            PolicyLoss.forward = hooked
    (without, before), (with_us, after) = runs
    assert before == after
    assert len(without) == len(with_us) >= 20 * 6
    assert all(torch.equal(a, b) for a, b in zip(without, with_us, strict=True))
    assert worker.log.read().errors == 0
    assert len(LocalMailbox.box.drain()[0]) == 1  # and it was observed


def test_four_values_up_to_0_11_0_and_five_later(openrlhf):
    old = openrlhf.__version__.startswith(("0.9.", "0.10.", "0.11.0"))
    assert results(openrlhf) == (4 if old else 5)


# --- faults ------------------------------------------------------------------------------------
HOOKED = {
    "worker": ("_enter", "_caught", "_begin", "_end"),
    "capture": ("_keep", "_observe"),
    "driver": ("close_step", "joined", "kept", "loaded", "logged"),
}
EACH = [(module, name) for module, names in HOOKED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), EACH)
def test_a_hook_that_raises_costs_its_own_numbers_and_is_told_once(
    lab, module, name, monkeypatch, caplog
):
    from klmonitor_openrlhf import capture, driver, worker

    owner = {"worker": worker.Worker, "capture": capture.DriverCapture, "driver": driver.Driver}

    def fail(*args, **kwargs):
        raise RuntimeError("planted")

    monkeypatch.setattr(owner[module], name, fail)
    lab = lab()
    lab.begin()
    for step in (1, 2, 3):
        lab.step(step)
        assert lab.process._resumed(lambda trainer: {}, lab.trainer) == {}
    lab.end()
    assert set(lab.rows()["train/actor_lr"]) == {1, 2, 3}
    told = [record.getMessage() for record in caplog.records if "planted" in record.getMessage()]
    assert len(told) == 1


def test_an_update_that_fails_loses_its_own_step_and_is_counted(lab):
    lab = lab()
    lab.begin()
    lab.make(lab.samples())
    with pytest.raises(RuntimeError, match="the update failed"):
        lab.update(fail=True)
    seen = lab.update()
    report = lab.log(1)
    assert report.pairs["old_policy"].tokens == sum(int(e.action_mask.sum()) for _, e in seen)
    assert report.health.dropped == 1


def test_ranks_are_merged_and_one_that_is_missing_is_named_once(lab, monkeypatch, capsys):
    from klmonitor_openrlhf import worker

    monkeypatch.setattr(worker.Worker, "_place", lambda _, owner: owner.place)
    lab = lab()
    lab.begin()
    for step in (1, 2, 3):
        lab.make(lab.samples(step))
        seen = []
        for rank in range(3) if step == 1 else (0, 2):
            lab.process._worker = None
            seen += lab.update(rank, 3, slice(rank, rank + 1))
        report = lab.log(step)
        parts = [(e.action_log_probs, policy, e.action_mask) for policy, e in seen]
        assert_exact(report, "old_policy", parts)
    assert report.health.dropped == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "actor-1" in line]
    assert len(said) == 1
    assert "step 2 lacks actor-1" in said[0]


def test_the_mailboxs_death_ends_the_workers_numbers_and_nothing_else(lab, capsys, caplog):
    lab = lab()
    lab.begin()
    lab.step(1)
    LocalMailbox.dead = True
    for step in (2, 3):
        report, _ = lab.step(step)
    LocalMailbox.dead = False
    assert set(report.pairs) == {"rollout_old", "old_ref"}
    assert not report.health.active
    lines = capsys.readouterr().err.splitlines() + [r.getMessage() for r in caplog.records]
    assert len([line for line in lines if "mailbox is gone" in line]) == 2  # driver, worker


@pytest.mark.parametrize("place", range(12))
def test_an_attribute_that_this_openrlhf_lacks_is_named(place, openrlhf, monkeypatch):
    from importlib import import_module

    from klmonitor_openrlhf.plugin import HOOKS, Process

    hook = HOOKS[place]
    try:
        owner = import_module(hook.module)
    except ImportError:
        pytest.skip(f"this OpenRLHF has no {hook.module}")
    *path, last = hook.name.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    if last not in vars(owner or SimpleNamespace()):
        pytest.skip(f"this OpenRLHF has no {hook.name}")
    monkeypatch.delattr(owner, last)
    if hasattr(owner, last):
        pytest.skip(f"{hook.name} is inherited from its base")
    process, name = Process(), f"{hook.module}.{hook.name}"
    process.install()
    try:
        assert name in process.bindings.absent
        assert not hook.without or hook.without in process.absent()[name]
    finally:
        process.bindings.undo()


def test_a_process_that_samples_for_another_is_no_driver(lab):
    lab = lab()

    class GenerateSamplesActor(lab.module.BasePPOTrainer):
        pass

    strategy = SimpleNamespace(args=lab.args)
    GenerateSamplesActor(strategy, lab.actor, None, None, lab.ref, None, None)
    assert lab.driver is None


def test_ray_lets_the_driver_go_and_the_record_is_closed(lab):
    lab = lab()
    lab.begin()
    lab.step(1)
    lab.trainer.__ray_shutdown__()
    assert lab.driver is None
    assert read_run(lab.run_dir).reports[0].step == 1


def test_the_doctor_names_the_command(openrlhf):
    from klmonitor_openrlhf.doctor import report

    ((name, text, good),) = report()
    assert good, text
    assert name == "PPOTrainer"
    assert "python -m klmonitor_openrlhf" in text
