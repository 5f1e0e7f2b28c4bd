"""Every recipe of docs/recipes.md is run: against the trainer's own function where its package is
installed (make test-recipes), else against tensors in the layout that its source documents.

The numbers are held against plain numpy over the same tokens.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import klmonitor
from klmonitor import attachment
from klmonitor.record import read_run

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
MOST = 10
EXACT = 1e-9


def recipes():
    """Heading -> its first block: language and lines."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        block = re.search(r"```(python|bash)\n(.*?)```", part, flags=re.DOTALL)
        found[part.splitlines()[0]] = (block[1], block[2])
    return found


RECIPES = recipes()


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Recipes write to runs/kl of the directory they are in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KLMONITOR_CONFIG", raising=False)


def execute(name, **given):
    """Run a recipe with what it takes for granted; what it defines."""
    language, lines = RECIPES[name]
    assert language == "python"
    exec(compile(lines, f"docs/recipes.md, {name}", "exec"), given)
    return given


REAL = {
    name
    for name in ("accelerate", "lightning", "torchrl", "tinker_cookbook", "areal")
    if importlib.util.find_spec(name) is not None
}
"""What is installed here."""


def test_what_was_installed_for_this_is_used():
    """`make test-recipes` says what that is."""
    assert set(os.environ.get("KLMONITOR_RECIPES", "").split()) <= REAL


def stub(monkeypatch, name, **members):
    """A module of a package that is not installed, with what a recipe uses of it."""
    *packages, _ = name.split(".")
    for index in range(len(packages)):
        package = ".".join(packages[: index + 1])
        if package not in sys.modules:
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
    return module


def k1_k3(q, p, mask):
    """Plain numpy, over the tokens that count."""
    pieces = [
        (b.detach().double() - a.detach().double())[torch.as_tensor(m).bool()].numpy()
        for a, b, m in zip(q, p, mask, strict=True)
    ]
    d = np.concatenate(pieces)
    return -d.mean(), (np.expm1(d) - d).mean(), d.size


def check(report, pair, q, p, mask):
    """A pair of a report against the tokens that it should be of."""
    k1, k3, n = k1_k3(q, p, mask)
    found = report.pairs[pair]
    assert found.tokens == n
    assert found.k1.mean == pytest.approx(k1, rel=EXACT, abs=1e-15)
    assert found.k3.mean == pytest.approx(k3, rel=EXACT, abs=1e-15)


def reports():
    """Of the record that a recipe leaves."""
    return read_run(Path("runs/kl")).reports


def batch(seed, rows=4, length=8, names=("policy", "old", "rollout", "ref")):
    """Log-probs of several policies and a mask, [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    base = -2 * torch.rand(rows, length, generator=generator) - 0.1
    found = {n: base - 0.05 * torch.rand(rows, length, generator=generator) for n in names}
    return found | {"mask": torch.rand(rows, length, generator=generator) < 0.7}


# --- the page --------------------------------------------------------------------------------
def test_no_recipe_has_more_than_ten_lines():
    for name, (_, lines) in RECIPES.items():
        assert len([line for line in lines.splitlines() if line.strip()]) <= MOST, name


def test_every_trainer_has_its_recipe_and_its_row():
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE, flags=re.MULTILINE)
    assert [name.lower() for name, _ in rows] == [name.lower() for name in RECIPES]
    assert [anchor for _, anchor in rows] == [name.lower().replace(" ", "-") for name in RECIPES]
    assert {"accelerate", "Lightning", "torchrl", "tinker-cookbook", "ROLL"} <= set(RECIPES)
    assert {"prime-rl", "NeMo-RL", "AReaL", "open-instruct"} <= set(RECIPES)


def test_the_file_on_the_page_makes_a_monitor(tmp_path):
    (tmp_path / "klmonitor.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    monitor = klmonitor.Monitor.from_config("klmonitor.toml", sinks=[])
    assert monitor.run_dir == Path("runs/math")
    assert monitor.penalties["policy_ref"].beta == 0.04
    monitor.close()


# --- loops -----------------------------------------------------------------------------------
class TinyPolicy(torch.nn.Module):
    """Log-probs of tokens 0..7 under one softmax; the loss pulls them up."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.linspace(0.0, 1.0, 8))

    def forward(self, ids):
        """[B, T] ids -> [B, T] log-probs."""
        return self.logits.log_softmax(-1)[ids]


def token_batches(count, seed=0):
    """Batches of ids, reference log-probs and masks."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(0, 8, (4, 6), generator=generator)
        yield {
            "ids": ids,
            "ref_log_probs": torch.full((4, 6), -float(np.log(8))),
            "mask": torch.rand(4, 6, generator=generator) < 0.8,
        }


def run_loop(run, count=6):
    """A recipe's loop over a tiny policy: what the policy said in every micro-batch."""
    policy, seen = TinyPolicy(), []

    def loss_of(*given):
        batch, model = given[-1], given[0] if len(given) > 1 else policy
        log_probs = model(batch["ids"])
        seen.append((log_probs.detach().clone(), batch["ref_log_probs"], batch["mask"]))
        return -log_probs.mean(), log_probs

    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    run(policy, optimizer, list(token_batches(count)), loss_of)
    assert len(seen) == count
    return seen


@pytest.mark.parametrize("lines", ["the page's", "the message's"])
def test_a_loop_of_your_own(lines):
    def run(policy, optimizer, batches, loss_of):
        given = {"optimizer": optimizer, "batches": batches, "loss_of": loss_of}
        if lines == "the page's":
            execute("A loop of your own", **given)
        else:
            exec(compile(message_of(policy), "the message", "exec"), given)

    seen = run_loop(run)
    found = reports()
    assert [report.step for report in found] == list(range(1, 7))
    for report, (policy, ref, mask) in zip(found, seen, strict=True):
        check(report, "policy_ref", [policy], [ref], [mask])


def message_of(trainer):
    """The lines that attach() answers an unknown trainer with."""
    with pytest.raises(TypeError, match=r"does not know .*TinyPolicy: .*docs/recipes.md") as caught:
        klmonitor.attach(trainer)
    _, _, lines = str(caught.value).partition("\n\n")
    return "\n".join(line.removeprefix("    ") for line in lines.splitlines())


def test_the_message_and_the_page_have_the_same_lines():
    assert RECIPES["A loop of your own"][1] == attachment.RECIPE


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)

    def run(policy, optimizer, batches, loss_of):
        given = {"model": policy, "optimizer": optimizer, "loss_of": loss_of}
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        execute("accelerate", **given, loader=loader, accelerator=accelerator)

    seen = run_loop(run)
    found = reports()
    assert [report.step for report in found] == [1, 2, 3]
    for index, report in enumerate(found):
        check(report, "policy_ref", *zip(*seen[2 * index : 2 * index + 2], strict=True))


def lightning_module(lightning, seen):
    """A module whose training step observes, as the recipe's first line says."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.policy = TinyPolicy()

        def training_step(self, batch, _):
            log_probs = self.policy(batch["ids"])
            given = {"ref": batch["ref_log_probs"], "mask": batch["mask"]}
            self.watch.observe(policy=log_probs, **given)
            seen.append((log_probs.detach().clone(), given["ref"], given["mask"]))
            if len(seen) == self.trouble_at:
                raise ArithmeticError("in the middle")
            return -log_probs.mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

        trouble_at = -1

    return Module()


def lightning_trainer(lightning, callback, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", callbacks=[callback], accumulate_grad_batches=2, **quiet, **options
    )


def test_lightning_by_its_callbacks(monkeypatch):
    """In the order in which Lightning calls them."""
    if "lightning" not in REAL:
        stub(monkeypatch, "lightning", Callback=type("Callback", (), {}))
    watch, state = execute("Lightning")["WatchKL"], None

    def run(policy, optimizer, batches, loss_of):
        nonlocal state
        callback, module = watch(), SimpleNamespace()
        if state is not None:
            callback.load_state_dict(state)
        callback.on_train_start(SimpleNamespace(optimizers=[optimizer]), module)
        for one in batches:
            loss, log_probs = loss_of(policy, one)
            module.watch.observe(policy=log_probs, ref=one["ref_log_probs"], mask=one["mask"])
            loss.backward()
            optimizer.step()
        state = callback.state_dict()
        callback.on_train_end(None, module)

    seen = run_loop(run, 3) + run_loop(run, 2)
    found = reports()
    assert [report.step for report in found] == [1, 2, 3, 4, 5]
    for report, (policy, ref, mask) in zip(found, seen, strict=True):
        check(report, "policy_ref", [policy], [ref], [mask])


def test_lightning():
    lightning = pytest.importorskip("lightning")
    watch = execute("Lightning")["WatchKL"]
    seen, loader = [], torch.utils.data.DataLoader(list(token_batches(6)), batch_size=None)
    module = lightning_module(lightning, seen)
    trainer = lightning_trainer(lightning, watch(), max_epochs=1)
    trainer.fit(module, loader)
    trainer.save_checkpoint("last.ckpt")
    found = reports()
    assert [report.step for report in found] == [1, 2, 3]
    for index, report in enumerate(found):
        check(report, "policy_ref", *zip(*seen[2 * index : 2 * index + 2], strict=True))
    again = lightning_trainer(lightning, watch(), max_epochs=2)
    again.fit(module, loader, ckpt_path="last.ckpt", weights_only=False)
    assert [report.step for report in reports()] == [1, 2, 3, 4, 5, 6], "resumed"


def test_lightning_after_an_error():
    lightning = pytest.importorskip("lightning")
    module = lightning_module(lightning, [])
    module.trouble_at = 4
    trainer = lightning_trainer(lightning, execute("Lightning")["WatchKL"](), max_epochs=1)
    with pytest.raises(ArithmeticError):
        trainer.fit(module, torch.utils.data.DataLoader(list(token_batches(6)), batch_size=None))
    assert [report.step for report in reports()] == [1]


# --- trainers' own functions -----------------------------------------------------------------
def tinker_data(seed):
    """Datums of a batch, its training log-probs, and the three columns of them."""
    generator = torch.Generator().manual_seed(seed)
    rollout, policy, mask = [], [], []
    for length in (5, 9, 7):
        rollout.append(-2 * torch.rand(length, generator=generator) - 0.1)
        policy.append(rollout[-1] - 0.1 * torch.rand(length, generator=generator))
        mask.append((torch.arange(length) >= 2).float())
    columns = [{"logprobs": a, "mask": m} for a, m in zip(rollout, mask, strict=True)]
    if "tinker_cookbook" in REAL:
        import tinker

        data = [
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints(list(range(len(one["mask"])))),
                loss_fn_inputs={k: tinker.TensorData.from_torch(v) for k, v in one.items()},
            )
            for one in columns
        ]
    else:
        data = [
            SimpleNamespace(
                loss_fn_inputs={
                    key: SimpleNamespace(to_torch=lambda value=value: value)
                    for key, value in one.items()
                }
            )
            for one in columns
        ]
    return data, policy, rollout, mask


def test_tinker_cookbook(monkeypatch):
    if "tinker_cookbook" in REAL:
        from tinker_cookbook.rl import train
        from tinker_cookbook.rl.metrics import compute_kl_sample_train as theirs

        monkeypatch.setattr(train, "compute_kl_sample_train", theirs)
    else:

        def theirs(data, log_probs):
            return {"optim/kl_sample_train_v1": 0.0}

        train = stub(monkeypatch, "tinker_cookbook.rl.train", compute_kl_sample_train=theirs)
    watch = execute("tinker-cookbook")["watch"]
    for step in (1, 2):
        data, policy, rollout, mask = tinker_data(step)
        told = train.compute_kl_sample_train(data, policy)
        assert theirs(data, policy).items() <= told.items()
        if "tinker_cookbook" in REAL:
            found = told["kl/rollout_policy/k1/mean"]
            assert found == pytest.approx(told["optim/kl_sample_train_v1"], rel=1e-5)
        check(watch.report, "rollout_policy", rollout, policy, mask)
    watch.close()
    assert [report.step for report in reports()] == [1, 2]


def torchrl_loss(monkeypatch):
    """The recipe's loss, batches by seed, how they are given to it, and the policy's logits."""
    vocabulary, rows, length = 8, 4, 6
    logits = torch.nn.Parameter(torch.linspace(0.0, 1.0, vocabulary))

    def data(seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "ids": torch.randint(0, vocabulary, (rows, length), generator=generator),
            "rollout": -2 * torch.rand(rows, length, generator=generator) - 0.1,
            "mask": torch.arange(length)[None] >= torch.tensor([[0], [2], [1], [0]]),
        }

    if "torchrl" not in REAL:

        class GRPOLoss(torch.nn.Module):
            def __init__(self, actor_network):
                super().__init__()
                self.logits = actor_network
                self.tensor_keys = SimpleNamespace(sample_log_prob=("log_probs", "full"))

            def _log_weight(self, data, adv_shape):
                data["_cur_log_prob"] = self.logits.log_softmax(-1)[data["ids"]]
                d = data["_cur_log_prob"] - data[("log_probs", "full")]
                return d.unsqueeze(-1), None, -d.unsqueeze(-1), data["mask"]

            def forward(self, data):
                weight, *_ = self._log_weight(data, adv_shape=None)
                return SimpleNamespace(loss_objective=-weight.exp().mean())

        stub(monkeypatch, "torchrl.objectives.llm", GRPOLoss=GRPOLoss)

        class Held(dict):
            def get(self, key, default=None, **layout):
                return super().get(key, default)

        def given(one):
            keys = {("log_probs", "full"): one["rollout"]}
            return Held(one | keys)

        return execute("torchrl")["WatchedGRPOLoss"](logits), data, given, logits

    from tensordict import TensorDict
    from torchrl.modules.distributions import LLMMaskedCategorical

    class Actor(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = logits

        def get_dist(self, tensordict, **_):
            shown = self.logits.expand(rows, length, vocabulary)
            return LLMMaskedCategorical(logits=shown, mask=tensordict["mask"])

    def given(one):
        return TensorDict(
            {
                "tokens": {"full": one["ids"]},
                "log_probs": {"full": one["rollout"]},
                "mask": one["mask"],
                "advantage": torch.ones(rows, length, 1),
            },
            batch_size=[rows],
        )

    return execute("torchrl")["WatchedGRPOLoss"](Actor()), data, given, logits


def test_torchrl(monkeypatch):
    loss, data, given, logits = torchrl_loss(monkeypatch)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    loss.watch = klmonitor.Monitor(run_dir="runs/kl").watch(optimizer)
    for step in (1, 2, 3):
        one = data(step)
        policy = logits.detach().log_softmax(-1)[one["ids"]]
        loss(given(one)).loss_objective.backward()
        optimizer.step()
        check(loss.watch.report, "rollout_policy", [one["rollout"]], [policy], [one["mask"]])
    loss.watch.close()
    assert [report.step for report in reports()] == [1, 2, 3]


# --- trainers whose packages do not install here ---------------------------------------------
@pytest.mark.parametrize("with_reference", [True, False])
def test_roll(with_reference, monkeypatch):
    calls = []

    def theirs(pipeline_config, batch, stat_mask_key="response_mask", update_mask_keys=None):
        calls.append(update_mask_keys)
        batch.batch["response_mask"][:] = 0  # its filters change the mask in place
        return batch, {"actor/train_infer_final_mask_mean": 1.0}

    roll = stub(
        monkeypatch,
        "roll.pipeline.rlvr.rlvr_pipeline",
        apply_train_infer_correction_to_batch=theirs,
    )
    watch = execute("ROLL")["watch"]
    for step in (1, 2):
        one = batch(step)
        held = {"infer_logprobs": one["rollout"], "old_log_probs": one["old"]}
        held |= {"ref_log_probs": one["ref"]} if with_reference else {}
        full = torch.nn.functional.pad(one["mask"].long(), (1, 0))  # [B, T] beside [B, T - 1]
        data = SimpleNamespace(batch=held | {"response_mask": full})
        told = roll.apply_train_infer_correction_to_batch(None, data, update_mask_keys=["a"])
        assert told == (data, {"actor/train_infer_final_mask_mean": 1.0})
        check(watch.report, "rollout_old", [one["rollout"]], [one["old"]], [one["mask"]])
        if with_reference:
            check(watch.report, "old_ref", [one["old"]], [one["ref"]], [one["mask"]])
    watch.close()
    assert calls == [["a"], ["a"]]
    assert [report.step for report in reports()] == [1, 2]


def areal(monkeypatch, real):
    """AReaL's module, and an actor of it whose engine is left out."""
    if real:
        from areal.trainer.ppo import actor

        for name, thing in (("grpo_loss_fn", actor), ("ppo_update", actor.PPOActor)):
            monkeypatch.setattr(thing, name, getattr(thing, name))
        known = {"eps_clip_higher": None, "c_clip": None}
    else:

        def grpo_loss_fn(logprobs, entropy, input_data, eps_clip, **options):
            return -(logprobs - input_data["logprobs"]).exp().mean()

        class PPOActor:
            def ppo_update(self, data):
                self._ppo_update(data)

        name = "areal.trainer.ppo.actor"
        actor = stub(monkeypatch, name, grpo_loss_fn=grpo_loss_fn, PPOActor=PPOActor)
        known = {}

    class Actor(actor.PPOActor):
        def __init__(self, mini_batches):
            self.mini_batches = mini_batches

        def _ppo_update(self, data):
            for one in self.mini_batches:  # its engine's forward pass gives it the first two
                policy = one.pop("policy")
                loss = actor.grpo_loss_fn(policy, -policy.detach(), one, eps_clip=0.2, **known)
                loss.backward()

    trajectory = {"attention_mask": torch.ones(1, 4), "input_ids": torch.ones(1, 4).long()}
    return lambda mini_batches: Actor(mini_batches).ppo_update([trajectory])


@pytest.mark.parametrize("prox", [True, False])
def test_areal(prox, monkeypatch):
    update = areal(monkeypatch, real=prox and "areal" in REAL)
    watch = execute("AReaL")["watch"]
    for step in (1, 2):
        parts = [batch(10 * step + index) for index in range(2)]
        data = []
        for one in parts:
            flat = {name: value.reshape(-1) for name, value in one.items()}
            packed = {"policy": flat["policy"].requires_grad_(), "logprobs": flat["rollout"]}
            packed |= {"prox_logp": flat["old"]} if prox else {}
            packed |= {"loss_mask": flat["mask"], "cu_seqlens": torch.arange(0, 33, 8)}
            data.append(packed | {"advantages": torch.ones(32)})
        update(data)
        columns = {name: [one[name] for one in parts] for name in parts[0]}
        q, p, mask = columns["rollout"], columns["policy"], columns["mask"]
        if prox:
            check(watch().report, "rollout_old", q, columns["old"], mask)
            check(watch().report, "old_policy", columns["old"], p, mask)
        else:
            check(watch().report, "rollout_policy", q, p, mask)
        assert next(iter(watch().report.pairs.values()))["sequences"] == 8
    watch().close()
    assert [report.step for report in reports()] == [1, 2]


def test_open_instruct(monkeypatch):
    def metrics(local_logprobs, vllm_logprobs, response_mask):
        return {"debug/vllm_vs_local_logprob_diff_mean": 0.0}

    def stats(loss_stats, token_counts):
        return {"loss": 1.0}

    utils = stub(
        monkeypatch,
        "open_instruct.grpo_utils",
        compute_vllm_local_debug_metrics=metrics,
        compute_metrics_from_loss_stats=stats,
    )
    watch = execute("open-instruct")["watch"]
    for step in (1, 2):
        parts = [batch(10 * step + index, rows=1, length=20) for index in range(2)]
        kept = []
        for one in parts:
            mask = one["mask"].clone()
            local = one["policy"].masked_fill(~mask, 1.0)
            vllm = one["rollout"].masked_fill(~mask, 1.0)
            first = int(mask[0].nonzero()[0])
            vllm[0, first] = 1.0  # of a token that the engine gave none for
            kept.append(mask.clone())
            kept[-1][0, first] = False
            told = utils.compute_vllm_local_debug_metrics(
                local_logprobs=local, vllm_logprobs=vllm, response_mask=mask
            )
            assert told == metrics(None, None, None)
        assert utils.compute_metrics_from_loss_stats({}, torch.ones(1)) == {"loss": 1.0}
        columns = {name: [one[name] for one in parts] for name in parts[0]}
        check(watch().report, "rollout_policy", columns["rollout"], columns["policy"], kept)
        assert not watch().report.alerts
    watch().close()
    assert [report.step for report in reports()] == [1, 2]


@pytest.mark.parametrize("name", ["NeMo-RL", "prime-rl"])
def test_a_dump_is_read(name):
    """As its own layout test writes it; here the command of the page."""
    from klmonitor.cli import main
    from tests.helpers.dumps import make_run
    from tests.integrations.dumps.test_layouts import as_nemo_rl, as_prime_rl

    language, line = RECIPES[name]
    assert language == "bash"
    command, place, out = re.fullmatch(r"klmonitor (\w+) (\S+) -o (\S+)\n", line).groups()
    tokens = list(make_run(steps=3, sequences=4, lengths=True))
    folder = Path(place) if name == "NeMo-RL" else Path(place).parent
    folder.mkdir(parents=True)
    (as_nemo_rl if name == "NeMo-RL" else as_prime_rl)(tokens, folder)
    assert main([command, place, "-o", out]) == 0
    p = "old" if name == "NeMo-RL" else "policy"
    for report in reports():
        some = [one for one in tokens if one.step == report.step]
        q_p = ([torch.from_numpy(one.log_probs[n]) for one in some] for n in ("rollout", p))
        check(report, f"rollout_{p}", *q_p, [torch.from_numpy(one.mask) for one in some])
    assert len(reports()) == 3
