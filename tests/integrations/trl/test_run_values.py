"""What TRL tells of its run: the rules and notices that rest on it, on real GRPO runs."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from klmonitor.record import read_run
from klmonitor_trl.demo import tiny


def alerts_of(watched):
    return [alert for report in watched.reports.values() for alert in report.alerts]


def told(alerts):
    return [(alert.step, alert.kind, alert.severity) for alert in alerts]


def run_values(watched, name):
    return [report.run_values.get(f"run/{name}") for report in watched.reports.values()]


class Rate(TrainerCallback):
    """Somebody lowers the learning rate by hand."""

    def on_step_begin(self, args, state, control, optimizer, lr_scheduler, **kwargs):
        if state.global_step == 3:
            scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
            scheduler.base_lrs = [rate / 10 for rate in scheduler.base_lrs]
            for group in optimizer.param_groups:
                group["lr"] /= 10


@pytest.fixture(scope="module")
def ordinary(make_trainer, watched_class):
    """Six ordinary steps at a constant rate that somebody lowers, with a reference that is synced
    after the fourth; batches are generated at every other step."""
    watched = watched_class(
        make_trainer(
            8,
            beta=0.04,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            callbacks=[Rate()],
            sync_ref_model=True,
            ref_model_sync_steps=5,
            ref_model_mixup_alpha=1.0,
            num_iterations=2,
            save_strategy="steps",
            save_steps=4,
        )
    )
    watched.trainer.train()
    watched.handle.detach()
    return watched


def notices(watched):
    directory = Path(watched.trainer.args.output_dir) / "klmonitor"
    return [(one.step, one.kind, one.text) for one in read_run(directory).notices]


def test_what_the_trainer_knows_is_in_every_report(ordinary):
    assert run_values(ordinary, "step_of_run") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert run_values(ordinary, "beta") == [0.04] * 8
    assert run_values(ordinary, "learning_rate") == [1e-3] * 3 + [1e-4] * 5
    assert set(run_values(ordinary, "bits")) == {32}
    assert set(run_values(ordinary, "dropout")) == {0}
    assert set(run_values(ordinary, "reference_dropout")) == {0}
    assert alerts_of(ordinary) == []


def test_a_changed_rate_and_a_synced_reference_are_dated(ordinary):
    """The sync is after step 5; the batch of step 6 was scored before, with that of step 5."""
    assert run_values(ordinary, "reference_sync") == [0, 0, 0, 0, 0, 0, 1, 0]
    k3 = [report.pairs["policy_ref"].k3.mean for report in ordinary.reports.values()]
    assert k3[5] > 1e-3 > k3[6], "the numbers are against the new reference from step 7 on"
    assert notices(ordinary) == [
        (4, "learning_rate", "learning rate 0.001 -> 0.0001"),
        (7, "reference_sync", "the reference was synchronised with the policy"),
    ]


def test_a_resumed_run_says_so_and_is_not_at_its_start(ordinary, make_trainer, watched_class):
    before = Path(ordinary.trainer.args.output_dir) / "checkpoint-4"
    resumed = watched_class(make_trainer(6, beta=0.04, learning_rate=1e-4, num_iterations=2))
    resumed.trainer.train(resume_from_checkpoint=str(before))
    resumed.handle.detach()
    assert run_values(resumed, "step_of_run") == [4, 5]
    assert [kind for _, kind, _ in notices(resumed)][:1] == ["resume"]
    assert alerts_of(resumed) == []


def test_a_negative_beta_is_named_at_the_first_step(watch):
    run = watch(steps=2, beta=-2.0, learning_rate=1e-3)
    (alert,) = alerts_of(run)
    assert told([alert]) == [(1, "negative_penalty", "warn")]
    assert "beta is -2: the KL term rewards distance from the reference" in alert.message
    logged = [row["learning_rate"] for row in run.rows.values()]
    assert run_values(run, "learning_rate") == logged, "of the update, not of the next one"


def test_dropout_in_the_policy_alone_is_named(tmp_path, watched_class):
    """A GPT-2 with its usual dropout of .1: KL is large before there was any update."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 97, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**sizes, **ids, initializer_range=0.25))
    model.save_pretrained(tmp_path / "model")
    tiny.build_tokenizer().save_pretrained(tmp_path / "model")
    trainer = tiny.make_trainer(
        tmp_path / "model",
        tmp_path / "out",
        steps=2,
        beta=0.04,
        learning_rate=1e-7,
        per_device_train_batch_size=32,
    )
    run = watched_class(trainer)
    trainer.train()
    first, *later = alerts_of(run)
    assert (first.step, first.severity) == (1, "critical")
    assert first.kinds == ("limit", "nonzero_start")
    assert "before the first update" in first.message
    assert "dropout of up to 0.1 is active in the policy and not in the reference" in first.message
    assert "switch dropout off" in first.action
    assert first.values["dropout"] == 0.1
    gap = next(alert for alert in later if alert.kind == "gap")
    assert gap.means.startswith("dropout of up to 0.1")


def test_adapters_that_start_trained_are_told_before_the_first_update(
    model_path, tmp_path, watched_class
):
    """A saved adapter that `from_pretrained` loads into the policy; the reference is its base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_path)
    adapted = get_peft_model(
        base, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    tiny.build_tokenizer().save_pretrained(tmp_path / "adapter")
    trainer = tiny.make_trainer(
        tmp_path / "adapter", tmp_path / "out", steps=1, beta=0.03, learning_rate=3e-7
    )
    trainer.model.requires_grad_(True)
    run = watched_class(trainer)
    trainer.train()
    alerts = [alert for alert in alerts_of(run) if "nonzero_start" in alert.kinds]
    assert told(alerts) == [(1, "nonzero_start", "warn")]
    k3 = run.reports["train", 1].pairs["policy_ref"].k3.mean
    assert f"k3 is {k3:.3g} nats per token before the first update" in alerts[0].message
    assert "adapters that start trained" in alerts[0].means


def test_a_reference_that_is_the_policy_itself_is_told_after_ten_updates(
    make_trainer, watched_class
):
    trainer = make_trainer(11, beta=0.04)
    trainer.ref_model = trainer.model
    run = watched_class(trainer)
    trainer.train()
    assert run.handle.monitor.errors == 0
    assert told(alerts_of(run)) == [(11, "identical", "warn")]


def test_a_handful_of_tokens_makes_no_critical_alert(make_trainer, watched_class):
    """Nearly all completions are truncated, and TRL masks these: a few tokens are left."""
    config = {"mask_truncated_completions": True, "max_completion_length": 6, "beta": 0.04}
    run = watched_class(make_trainer(6, **config))
    run.trainer.train()
    tokens = [report.pairs["policy_ref"].tokens for report in run.reports.values() if report.pairs]
    assert all(count < 64 for count in tokens)
    assert all(alert.severity != "critical" for alert in alerts_of(run))
