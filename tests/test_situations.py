"""Situations that people reported, rebuilt small: what a monitor says of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klmonitor import Collector, Monitor

ROWS, COLUMNS, CONTEXTS, WORDS = 32, 64, 300, 600


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class Policies:
    """A trainer's policy, one near it, and draws of tokens from it."""

    def __init__(self, seed=0, drift=0.15):
        self.rng = np.random.default_rng(seed)
        exponent = 0.8 + 1.2 * self.rng.random((CONTEXTS, 1))
        self.base = -exponent * np.log(np.arange(1, WORDS + 1))
        self.base += 0.3 * self.rng.normal(size=self.base.shape)
        self.other = self.base + drift * self.rng.normal(size=self.base.shape)

    def tokens(self, logits=None, rows=ROWS):
        """Contexts and tokens [rows, COLUMNS] drawn from the base, or from given logits."""
        context = self.rng.integers(0, CONTEXTS, (rows, COLUMNS))
        noise = self.rng.gumbel(size=(rows, COLUMNS, WORDS))
        source = self.base if logits is None else logits
        return context, (source[context] + noise).argmax(-1)

    def beside_an_engine(self, extra=0.0, times=1.0, **others):
        """A step's log-probs, drawn by an engine that rounds.

        Args:
            extra: nats that the trainer's lack.
            times: what the reference's are multiplied with.
            others: by policy, nats above the trainer's.
        """
        context, token = self.tokens()
        mine = score(self.base, context, token)
        engine = mine + 0.01 * self.rng.normal(size=mine.shape)
        given = {"rollout": engine, "old": mine - extra}
        given["ref"] = times * score(self.other, context, token)
        given |= {name: np.minimum(mine + above, -1e-4) for name, above in others.items()}
        return given, {"prompt_ids": PROMPTS}


def score(logits, context, token):
    return log_softmax(logits)[context, token]


def steps(monitor, number, make):
    reports = []
    for step in range(1, number + 1):
        log_probs, layout = make(step)
        arrays = {name: torch.tensor(x) for name, x in log_probs.items()}
        monitor.observe(**arrays, **layout)
        reports.append(monitor.step(step))
    return reports


PROMPTS = np.arange(ROWS) // 4


def said(reports, kind):
    return [alert for report in reports for alert in report.alerts if alert.kind == kind]


def engine_of(change, *, pair=("policy", "rollout"), number=6, seed=0, **layout):
    """Reports of steps whose second policy's log-probs were changed."""
    world = Policies(seed)

    def make(_):
        context, token = world.tokens()
        mine = score(world.base, context, token)
        theirs = mine + 0.001 * world.rng.normal(size=mine.shape)
        mine, theirs = change(mine, theirs)
        return dict(zip(pair, (mine, theirs), strict=True)), {"prompt_ids": PROMPTS, **layout}

    return steps(Monitor(process_group=False), number, make)


def last_columns(n, value):
    def change(mine, theirs):
        theirs = theirs.copy()
        theirs[:, -n:] = value
        return mine, theirs

    return change


@pytest.mark.parametrize(
    ("change", "count", "what"),
    [
        (last_columns(5, 0.0), "exactly 0 for 160 tokens", "a placeholder, no score"),
        (lambda a, b: (a, 0 * b), "exactly 0 for 2,0", "a placeholder, no score"),
        (last_columns(1, 1.0), "above 0 for 32 tokens (1 at micro-batch 0", "not log-probs"),
        (lambda a, b: (a, np.exp(b)), "above 0 for 1,", "probabilities"),
        (lambda a, b: (a, -b), "above 0 for 2,0", "negative log-likelihoods"),
        (last_columns(2, -1e10), "beyond +-10,000 for 64 tokens", "a sentinel"),
    ],
)
def test_input_that_cannot_be_is_told_first_and_once(change, count, what):
    reports = engine_of(change)
    (alert,) = said(reports, "impossible")
    assert (alert.step, alert.severity) == (1, "critical")
    assert count in alert.message
    assert what in alert.message
    for report in reports:
        pair = report.pairs["rollout_policy"]
        assert pair.cause.impossible
        assert np.isnan(pair["best"])
        assert pair.verdict.text.startswith("neither: rollout's log-probs are")
        assert pair.cause.text in report.explain().splitlines()[1]
    assert not said(reports, "gap")
    assert "collapsed" not in " ".join(report.explain() for report in reports)


def cut(logits, temperature, mass):
    """Logits of the likeliest tokens alone, whose probabilities make up the mass."""
    scaled = logits / temperature
    order = np.argsort(-scaled, axis=-1)
    below = np.cumsum(np.take_along_axis(np.exp(log_softmax(scaled)), order, -1), -1)
    kept = np.empty(scaled.shape, bool)
    np.put_along_axis(kept, order, np.pad(below, ((0, 0), (1, 0)))[:, :-1] < mass, -1)
    return np.where(kept, scaled, -1e9)


@pytest.mark.parametrize(("temperature", "mass"), [(1.0, 0.8), (0.7, 0.8), (0.6, 0.95), (1.0, 0.5)])
@pytest.mark.parametrize("sharpness", [2.5, 5.0])
def test_what_a_cut_vocabulary_leaves_of_one_token_is_no_placeholder(temperature, mass, sharpness):
    """Exactly 0 for up to most of the tokens, at temperatures where the others have two sides."""
    world = Policies(3)
    logits = sharpness * world.base
    drawn_from = cut(logits, temperature, mass)

    def make(_):
        context, token = world.tokens(drawn_from)
        mine, theirs = (score(x, context, token) for x in (logits, drawn_from))
        assert ((theirs == 0) & (mine < -0.05)).sum() > 100
        return {"old": mine, "rollout": theirs}, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 8, make)
    assert not said(reports, "impossible")
    assert {report.pairs["rollout_old"].cause.name for report in reports} <= {"cut", "temperature"}


def test_zeros_of_tokens_that_the_trainer_finds_unlikely_are_a_placeholder():
    """Though nearly all of what is cut, of one token, goes with the trainer's."""
    world = Policies(3)
    drawn_from = cut(2.5 * world.base, 1.0, 0.9)

    def make(_):
        context, token = world.tokens(drawn_from)
        mine, theirs = (score(x, context, token) for x in (2.5 * world.base, drawn_from))
        missing = world.rng.random(theirs.shape) < 0.2
        return {"old": mine, "rollout": np.where(missing, 0.0, theirs)}, {"prompt_ids": PROMPTS}

    (alert,) = said(steps(Monitor(process_group=False), 4, make), "impossible")
    assert "a placeholder, no score" in alert.message


def test_the_rank_that_all_of_the_few_sequences_come_from_is_named():
    world, driver = Policies(1), Monitor(process_group=False)
    for step in range(1, 3):
        for worker in range(4):
            collector = Collector(f"actor-{worker}")
            context, token = world.tokens(rows=8)
            mine = score(world.base, context, token)
            theirs = score(world.other, context, token)
            if worker == 2:
                theirs = np.minimum(theirs + world.rng.normal(size=mine.shape), -1e-3)
            given = {"policy": torch.tensor(mine), "ref": torch.tensor(theirs)}
            collector.observe(**given, prompt_ids=torch.arange(8) // 4 + 2 * worker)
            driver.add_part(collector.take())
        pair = driver.step(step).pairs["policy_ref"]
    assert "of 32 sequences, all of one worker, hold" in pair.cause.text


@pytest.mark.parametrize(
    ("pair", "means", "do", "never"),
    [
        (("policy", "ref"), "the policy moved far", "raise the KL coefficient", "weights that"),
        (("rollout", "old"), "reach it late", "took over the trainer's weights", "raise the KL"),
        (("old", "policy"), "an update changed the policy", "gradient norm", "raise the KL"),
    ],
)
def test_what_a_rise_means_depends_on_the_pair(pair, means, do, never):
    world, monitor = Policies(4, drift=0.02), Monitor(process_group=False, rules={"cause": False})

    def make(step):
        context, token = world.tokens()
        noise = world.rng.normal(size=world.base.shape)
        far = world.base + (0.6 if step > 40 else 0.1) * noise
        mine, theirs = (score(x, context, token) for x in (world.base, far))
        return dict(zip(pair, (mine, theirs), strict=True)), {"prompt_ids": PROMPTS}

    reports = steps(monitor, 44, make)
    alerts = [a for r in reports for a in r.alerts if {"spike", "surge"} & set(a.kinds)]
    assert alerts[0].step == 41
    assert means in alerts[0].means
    assert do in alerts[0].action
    assert not any(never in alert.action + alert.means for alert in alerts)


@pytest.mark.parametrize("start", [1, 20])
def test_a_kl_that_was_there_from_the_first_step_on_is_no_update_s(start):
    world = Policies(6, drift=1.2)

    def make(step):
        context, token = world.tokens()
        mine = score(world.base, context, token)
        theirs = score(world.other if step >= start else world.base + 0.01, context, token)
        return {"policy": mine, "ref": theirs}, {"prompt_ids": PROMPTS}

    rules = dict.fromkeys(("spike", "surge", "shift"), False)
    alert = said(steps(Monitor(process_group=False, rules=rules), 24, make), "limit")[0]
    assert ("it was so from the first step on" in alert.means) == (start == 1)
    assert ("KL coefficient do nothing" in alert.action) == (start == 1)


def test_an_update_that_ceases_is_not_told_as_a_reference():
    world = Policies(5, drift=0.1)

    def make(step):
        context, token = world.tokens()
        mine = score(world.base, context, token)
        later = mine if step > 30 else score(world.other, context, token)
        return {"old": mine, "policy": later}, {"prompt_ids": PROMPTS}

    (alert,) = said(steps(Monitor(process_group=False), 36, make), "fall")
    assert "a learning rate of 0" in alert.means
    assert "reference" not in alert.means + alert.action


def test_padding_that_counts_is_told():
    def padded(mine, theirs):
        return tuple(np.where(np.arange(COLUMNS) < 40, x, 0.0) for x in (mine, theirs))

    reports = engine_of(padded, pair=("policy", "ref"))
    (alert,) = said(reports, "impossible")
    assert "768 tokens at the ends of 32 of 32 sequences" in alert.message
    assert "forgot the mask?" in alert.message


def test_what_the_mask_hides_is_harmless():
    def behind(mine, theirs):
        mine, theirs = mine.copy(), theirs.copy()
        mine[:, 40:], theirs[:, 40:] = -1e10, 1.0
        theirs[::2, 50:] = np.nan
        return mine, theirs

    mask = np.broadcast_to(np.arange(COLUMNS) < 40, (ROWS, COLUMNS))
    reports = engine_of(behind, mask=mask)
    assert not [alert for report in reports for alert in report.alerts]
    assert not any(report.pairs["rollout_policy"].cause.name for report in reports)


def test_a_peaked_model_may_give_exact_zeros():
    def peaked(mine, theirs):
        sure = np.random.default_rng(1).random(mine.shape) < 0.7
        return np.where(sure, 0.0, mine), np.where(sure, -1e-7, theirs)

    assert not said(engine_of(peaked), "impossible")


def test_logits_of_the_neighbouring_position_are_named():
    world = Policies(3)

    def make(_):
        context, token = world.tokens(world.other)
        before = np.roll(context.ravel(), 1).reshape(context.shape)
        return {
            "policy": score(world.other, before, token),
            "ref": score(world.base, context, token),
        }, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 6, make)
    (alert,) = said(reports, "cause")
    assert "the tensors are shifted by one position" in alert.message
    assert "the position before" in alert.message
    assert "engine" not in alert.means + alert.action


def test_a_policy_that_repeats_itself_far_from_its_reference_is_not_shifted():
    """It is sure of each token of a cycle; to the reference every third is unlikelier still.

    Such text is not alike backwards, so products with the token before are not those with the next.
    """
    world = Policies(5)

    def make(_):
        cycle = np.resize([-2.0, -6.0, -11.0], (ROWS, COLUMNS))
        sure = -world.rng.exponential(0.01, cycle.shape)
        return {"policy": sure, "ref": cycle + world.rng.normal(0, 0.5, cycle.shape)}, {
            "prompt_ids": PROMPTS
        }

    reports = steps(Monitor(process_group=False), 6, make)
    signs = reports[-1].pairs["policy_ref"]
    assert signs["gap"] < -0.9
    assert not said(reports, "cause")
    assert not said(reports, "impossible")


def test_sequences_of_one_prompt_are_named():
    world = Policies(4)
    far = world.base + 0.9 * world.rng.normal(size=world.base.shape)

    def make(_):
        context, token = world.tokens()
        rollout = score(world.base, context, token)
        old = rollout + 0.01 * world.rng.normal(size=rollout.shape)
        old[PROMPTS == 2] = score(far, context, token)[PROMPTS == 2]
        return {"rollout": rollout, "old": old}, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 2, make)
    pair = reports[-1].pairs["rollout_old"]
    assert pair.cause.name == "sequences"
    assert "4 of 32 sequences, all of one prompt, hold" in pair.cause.text
    assert {f"{n} of micro-batch 0" in pair.cause.text for n in (8, 9, 10, 11)} == {True}


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02, 0.04])
@pytest.mark.parametrize("size", [0.8, 1.5])
def test_odd_tokens_here_and_there_make_no_odd_sequences(share, size):
    """As of a router that now and then chooses other experts: each token for itself."""
    world = Policies(9)
    rows = 2 * ROWS

    def make(_):
        context, token = world.tokens(rows=rows)
        old = score(world.base, context, token)
        rollout = old + 0.01 * world.rng.normal(size=old.shape)
        odd = world.rng.random(old.shape) < share
        routed = world.base[context[odd]]
        routed = log_softmax(routed + size * world.rng.normal(size=routed.shape))
        token[odd] = (routed + world.rng.gumbel(size=routed.shape)).argmax(-1)
        rollout[odd] = np.take_along_axis(routed, token[odd][:, None], axis=1)[:, 0]
        old[odd] = score(world.base, context, token)[odd]
        return {"rollout": rollout, "old": old}, {"prompt_ids": np.arange(rows) // 4}

    reports = steps(Monitor(process_group=False), 12, make)
    assert "sequences" not in {report.pairs["rollout_old"].cause.name for report in reports}
    assert max(report.pairs["rollout_old"]["k3/mean"] for report in reports) > 1e-3


@pytest.mark.parametrize(("columns", "odd"), [(64, 1), (64, 6), (12, 6)])
def test_sequences_that_are_odd_as_a_whole_are_named(columns, odd):
    world = Policies(10)
    far = world.base + world.rng.normal(size=world.base.shape)
    rows = 2 * ROWS

    def make(_):
        context, token = (x[:, :columns] for x in world.tokens(rows=rows))
        rollout = score(world.base, context, token)
        old = rollout + 0.01 * world.rng.normal(size=rollout.shape)
        some = slice(None, 4 * odd, 4)  # each of another prompt
        old[some] = score(far, context, token)[some]
        return {"rollout": rollout, "old": old}, {"prompt_ids": np.arange(rows) // 4}

    pairs = [r.pairs["rollout_old"] for r in steps(Monitor(process_group=False), 6, make)]
    named = [pair.cause.text for pair in pairs if pair.cause.name == "sequences"]
    assert len(named) >= 3
    assert all(1 <= int(text.split(" of 64 sequence")[0]) <= odd for text in named)


@pytest.mark.parametrize("size", [1.0, 1.5, 2.0])
def test_positions_that_an_engine_computes_otherwise_are_no_other_tokens(size):
    """As of a sliding window or a cache: it draws what it scores, and k1 and k3 hold."""
    world = Policies(12)
    rows, last = 2 * ROWS, slice(3 * COLUMNS // 4, None)
    wrong = log_softmax(world.base + size * world.rng.normal(size=world.base.shape))

    def make(_):
        context, token = world.tokens(rows=rows)
        theirs = wrong[context[:, last]]
        token[:, last] = (theirs + world.rng.gumbel(size=theirs.shape)).argmax(-1)
        old = score(world.base, context, token)
        rollout = old + 0.01 * world.rng.normal(size=old.shape)
        rollout[:, last] = wrong[context, token][:, last]
        return {"rollout": rollout, "old": old}, {"prompt_ids": np.arange(rows) // 4}

    reports = steps(Monitor(process_group=False), 6, make)
    pairs = [report.pairs["rollout_old"] for report in reports]
    assert {pair.cause.name for pair in pairs} == {"coarse or stale"}
    assert not any("same tokens" in pair.verdict.text for pair in pairs)


@pytest.mark.parametrize("odd", [1, 2, 3, 5, 8])
def test_odd_tokens_of_a_thousand_are_believed_by_neither(odd):
    rng = np.random.default_rng(odd)
    rollout = -2 * rng.random((10, 100)) - 0.1
    policy = rollout + 1e-3 * rng.normal(size=rollout.shape)
    policy.flat[rng.permutation(1000)[:odd]] -= 50
    monitor = Monitor(process_group=False)
    monitor.observe(rollout=rollout, policy=policy, prompt_ids=np.arange(10))
    report = monitor.step(1)
    pair = report.pairs["rollout_policy"]
    assert (pair["dominance/k3/level"], pair["dominance/k3/tokens"]) == (2, odd)
    assert np.isnan(pair["best"])
    assert "believe neither: a few tokens carry both" in report.explain()


@pytest.mark.parametrize("prompts", [1, 2, 4, 8])
def test_a_wrong_temperature_is_told_within_three_steps_however_few_prompts(prompts):
    """Sampled and scored by the trainer at T = .6, scored by the engine at 1."""
    world = Policies(5)
    rows = 8 * prompts

    def make(_):
        context, token = world.tokens(world.base / 0.6, rows)
        return {
            "rollout": score(world.base, context, token),
            "policy": score(world.base / 0.6, context, token),
        }, {"prompt_ids": np.arange(rows) // 8}

    reports = steps(Monitor(process_group=False), 3, make)
    (negative,) = said(reports, "k1_negative")
    assert "standard errors below 0, which no KL is" in negative.message
    assert said(reports, "gap")
    assert "at different temperatures" in reports[-1].pairs["rollout_policy"].cause.text
    assert np.isnan(reports[-1].pairs["rollout_policy"]["best"])


def test_rounding_of_two_kernels_is_no_gap():
    """Log-probs of one policy that differ by a float32's last bits, all to one side."""

    def rounded(mine, _):
        return mine.astype(np.float32), np.nextafter(mine.astype(np.float32), np.float32(0))

    reports = engine_of(rounded)
    assert reports[-1].pairs["rollout_policy"].k3.mean < 1e-12
    assert not [alert for report in reports for alert in report.alerts]


def some_rows(share, change):
    """The engine's log-probs changed in that share of the rows."""

    def made(mine, theirs):
        theirs = theirs.copy()
        chosen = np.arange(ROWS) % round(1 / share) == 0
        theirs[chosen] = change(theirs[chosen])
        return mine, theirs

    return made


def last_is(value):
    def change(rows):
        rows[:, -1] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("value", "what"), [(1.0, "above 0 for 16 tokens"), (0.0, "exactly 0 for 1"), (-0.0, "exactly")]
)
def test_an_eos_that_is_appended_with_a_value_of_its_own_is_told(value, what):
    reports = engine_of(some_rows(0.5, last_is(value)))
    (alert,) = said(reports, "impossible")
    assert what in alert.message
    assert f"position {COLUMNS - 1}" in alert.message
    assert {one.kind for report in reports for one in report.alerts} == {"impossible"}


def test_a_filler_is_told_and_an_infinity_is_counted():
    """Neither is called what the other is."""
    filled = engine_of(some_rows(0.25, last_is(-100.0)))
    (alert,) = said(filled, "impossible")
    assert "exactly -100 for at least 8 tokens" in alert.message
    infinite = engine_of(some_rows(0.25, last_is(-np.inf)))
    assert not said(infinite, "impossible")
    (alert,) = said(infinite, "nonfinite")
    assert f"8 of {ROWS * COLUMNS} log-ratios are NaN or infinite" in alert.message


@pytest.mark.parametrize("value", [-100.0, 0.0, 1.0])
def test_weights_of_impossible_log_probs_are_not_cited(value):
    """What the engine's fillers say of other pairs: nothing; their own numbers and rules stay."""
    world = Policies(11)

    def make(step):
        context, token = world.tokens()
        old = score(world.base, context, token)
        engine = old + 0.01 * world.rng.normal(size=old.shape)
        engine[:, -1] = value
        far = 1.0 if step < 40 else 8.0
        ref = score(world.base + far * (world.other - world.base), context, token)
        return {"rollout": engine, "old": old, "ref": ref}, {}

    reports = steps(Monitor(process_group=False), 40, make)
    for report in reports:
        pair = report.pairs["old_ref"]
        told = "what drew these tokens is unknown: rollout's log-probs are impossible"
        assert report.pairs["rollout_old"].cause.impossible
        assert (pair.verdict.estimator, pair.verdict.text) == (None, f"neither: {told}")
        (explained,) = [part for part in report.explain().split("\nstep ") if "old || ref" in part]
        assert "weighted" not in explained
        assert "effective share" not in explained
    assert len(said(reports, "impossible")) == 1
    assert not said(reports, "cause")
    (spike,) = [alert for alert in said(reports, "spike") if alert.pair == "old_ref"]
    assert (spike.cause, spike.step) == (told, 40)
    assert spike.action != "mend the cause first"


def test_impossible_log_probs_that_drew_nothing_leave_weights():
    """Of a trainer's that cannot be, its own pairs tell; the engine and the policy are sound."""
    world = Policies(12)

    def make(_):
        context, token = world.tokens()
        old, ref = score(world.base, context, token), score(world.other, context, token)
        engine = old + 0.01 * world.rng.normal(size=old.shape)
        bad = old.copy()
        bad[:, -1] = 1.0
        return {"rollout": engine, "old": bad, "policy": old, "ref": ref}, {}

    for report in steps(Monitor(process_group=False), 3, make):
        assert report.pairs["rollout_old"].cause.impossible
        assert report.pairs["policy_ref"]["best"] == 3
        assert report.pairs["policy_ref"].cause.name == ""


@pytest.mark.parametrize(("extra", "told"), [(0.2, True), (0.0, False)])
def test_an_engine_hides_no_k1_that_is_below_0(extra, told):
    """Of a trainer that spreads its mass over padded rows of the vocabulary, whoever sampled."""
    world = Policies(6)
    reports = steps(Monitor(process_group=False), 6, lambda _: world.beside_an_engine(extra))
    alerts = [alert for alert in said(reports, "k1_negative") if alert.pair == "old_ref"]
    assert [alert.step for alert in alerts] == [1] * told
    for report in reports:
        pair = report.pairs["old_ref"]
        assert (pair["on_policy"], pair["iw/ess"] > 0.98) == (0, True)
        assert np.isnan(pair["best"]) == told
    assert all("(importance-weighted) is" in alert.message for alert in alerts)


@pytest.mark.parametrize(("times", "told", "best"), [(1 / np.log(2), True, 1), (1.0, False, 3)])
def test_an_engine_hides_no_gap(times, told, best):
    """Of a reference in log2 units: the tokens are as good as q's own, whoever sampled."""
    world = Policies(8)
    reports = steps(Monitor(process_group=False), 6, lambda _: world.beside_an_engine(0.0, times))
    alerts = [alert for alert in said(reports, "gap") if alert.pair == "old_ref"]
    assert [alert.step for alert in alerts] == [1] * told
    for report in reports:
        pair = report.pairs["old_ref"]
        assert (pair["on_policy"], pair["iw/ess"] > 0.98) == (0, True)
        assert pair["best"] == best
        assert ("importance-weighted mean(k3) - mean(k1)" in report.explain()) == told
    for alert in alerts:
        assert "per token (importance-weighted)" in alert.message
        assert "another base" in alert.means
        assert "if p's log-probs are those of these tokens" in alert.believe


def test_a_policy_that_learned_from_the_tokens_makes_no_gap():
    """It finds them likelier than other draws, by .02 nats, and is beside its reference rightly."""
    world = Policies(10)
    reports = steps(Monitor(process_group=False), 30, lambda _: world.beside_an_engine(policy=0.02))
    assert not said(reports, "gap") + said(reports, "k1_negative")
    pairs = [report.pairs["policy_ref"] for report in reports]
    assert np.mean([pair["iw/k3/mean"] - pair["iw/k1/mean"] for pair in pairs]) < -0.015
    assert max(abs(pair["gap_z"]) for pair in pairs) < 5
    assert all(np.isnan(report.pairs["old_policy"]["gap"]) for report in reports)


def test_what_learned_from_its_tokens_is_not_only_said_to_be_other_tokens():
    """Advantages of one sign and a second epoch: p likes what it saw, and q drew it."""
    rng = np.random.default_rng(3)
    place = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)  # a context a token

    def made(_):
        old = rng.normal(0, 1.5, (ROWS * COLUMNS, 50))
        token = (old[place] + rng.gumbel(size=(ROWS, COLUMNS, 50))).argmax(-1)
        policy = old.copy()
        policy[place, token] += 0.3  # what a step of positive advantages does
        return {"old": score(old, place, token), "policy": score(policy, place, token)}, {}

    reports = steps(Monitor(), 3, made)
    for kind in ("k1_negative", "gap"):
        alert = said(reports, kind)[0]
        assert "or p has learned from them" in alert.message
        assert "advantages mostly of one sign" in alert.means


def served_by_the_reference(world, number):
    """Steps whose engine has the reference's weights, old ones apart from them."""

    def make(_):
        context, token = world.tokens()
        engine = score(world.base, context, token)
        given = {"rollout": engine, "old": score(world.other, context, token), "ref": engine + 0.0}
        return given, {"prompt_ids": PROMPTS}

    return steps(Monitor(process_group=False), number, make)


def test_an_engine_that_serves_the_reference_makes_no_gap():
    """The plain gap of old and ref is far from 0 then, over some steps; the weighted is not."""
    reports = served_by_the_reference(Policies(9, drift=0.1), 40)
    pairs = [report.pairs["old_ref"] for report in reports]
    plain = np.array([pair["k3/mean"] - pair["k1/mean"] for pair in pairs])
    weighted = np.array([pair["gap"] for pair in pairs])
    assert plain.mean() > 8 * plain.std() / np.sqrt(40) > 0
    assert abs(weighted.mean()) < 3 * weighted.std() / np.sqrt(40)
    assert max(abs(pair["gap_z"]) for pair in pairs) < 5
    assert not [alert for alert in said(reports, "gap") if alert.pair == "old_ref"]


def test_tokens_of_older_weights_make_no_k1_below_0():
    """Their plain mean is -KL(engine || old), no KL of old and ref; the weighted one is."""
    reports = served_by_the_reference(Policies(7, drift=0.1), 60)
    pairs = [report.pairs["old_ref"] for report in reports]
    assert np.mean([pair["k1/mean"] for pair in pairs]) < -0.002
    assert all(pair["iw/ess"] > 0.98 for pair in pairs)
    assert not [alert for alert in said(reports, "k1_negative") if alert.pair == "old_ref"]


@pytest.mark.parametrize("rows", [ROWS // 8, ROWS - 1, ROWS])
def test_log_probs_that_are_nan_are_critical_however_many_they_are(rows):
    """A sequence of NaN alone is in no count: the more of them, the fewer a finding rests on."""

    def broken(mine, theirs):
        mine = mine.copy()
        mine[:rows] = np.nan
        return mine, theirs

    (alert,) = said(engine_of(broken, pair=("policy", "ref")), "nonfinite")
    assert (alert.step, alert.severity) == (1, "critical")
    assert f"{rows * COLUMNS} of {ROWS * COLUMNS} log-ratios are NaN" in alert.message


def test_some_nan_in_a_batch_of_one_sequence_warn():
    mask = np.arange(ROWS)[:, None] == np.zeros(COLUMNS)

    def one(mine, theirs):
        mine = mine.copy()
        mine[0, 5] = np.nan
        return mine, theirs

    (alert,) = said(engine_of(one, pair=("policy", "ref"), mask=mask), "nonfinite")
    assert alert.severity == "warn"


def test_a_tool_s_tokens_behind_the_mask_say_nothing():
    mask = np.ones((ROWS, COLUMNS), dtype=bool)
    mask[:, 20:32] = False
    reports = engine_of(lambda a, b: (a, np.where(mask, b, 0.0)), mask=mask)
    assert not [alert for report in reports for alert in report.alerts]
    assert not any(report.pairs["rollout_policy"].cause.name for report in reports)


def test_empty_completions_that_are_off_are_named_as_such():
    """A single token, whose log-prob the engine makes up: not "the first of every sequence"."""
    empty = np.arange(ROWS) % 2 == 0
    mask = ~empty[:, None] | (np.arange(COLUMNS) == 0)

    def made(mine, theirs):
        return mine, np.where(empty[:, None] & (np.arange(COLUMNS) == 0), -0.1, theirs)

    reports = engine_of(made, mask=mask)
    pair = reports[-1].pairs["rollout_policy"]
    assert pair.cause.name == "empty sequences"
    assert "sequences of a single token are off" in pair.cause.text
    (alert,) = said(reports, "cause")
    assert alert.message.endswith(reports[alert.step - 1].pairs["rollout_policy"].cause.text)


def test_an_end_that_is_off_in_some_sequences_is_not_said_of_every_one():
    reports = engine_of(some_rows(0.5, lambda rows: rows - 4.0 * (np.arange(COLUMNS) == 63)))
    assert "the last token of 50% of the sequences is off" in said(reports, "cause")[0].message


def test_log_probs_that_are_too_short_are_refused_by_name():
    world = Policies(6)
    context, token = world.tokens()
    mine = score(world.base, context, token)
    monitor = Monitor(process_group=False)
    with pytest.raises(ValueError, match=r"rollout has shape \[32, 61\]"):
        monitor.observe(policy=mine, rollout=mine[:, :-3])
    for step in range(1, 8):
        monitor.observe(policy=mine, rollout=mine[:, :-3])
        report = monitor.step(step)
    assert not report.health.active
    assert "rollout has shape [32, 61]" in report.health.why


def _liked(world):
    """Training made a few of each context's likely tokens likelier."""
    trained = world.base.copy()
    for logits in trained:
        logits[world.rng.choice(12, 3, replace=False)] += 2.0
    return trained


def _drifted(world):
    """Training moved all logits at random."""
    return world.base + 0.7 * world.rng.normal(size=world.base.shape)


@pytest.mark.parametrize("entropies", [True, False])
@pytest.mark.parametrize("train", [_liked, _drifted])
def test_weights_apart_are_no_temperature_however_their_tokens_surprise(train, entropies):
    """What the weights of before draw is surprising to those of now, and has a slope."""
    world = Policies(12)
    trained = train(world)
    every = log_softmax(trained)
    entropy = -(np.exp(every) * every).sum(-1)

    def make(_):
        context, token = world.tokens()
        more = {"entropy": torch.tensor(entropy[context])} if entropies else {}
        return {
            "rollout": score(world.base, context, token),
            "old": score(trained, context, token),
        }, {"prompt_ids": PROMPTS, **more}

    pair = steps(Monitor(process_group=False), 6, make)[-1].pairs["rollout_old"]
    assert pair.k3.mean > 0.1
    assert pair.cause.name == "coarse or stale"


def test_stale_weights_are_told_from_a_floor_by_version_alone():
    world = Policies(7, drift=0.5)

    def made(told):
        def make(_):
            context, token = world.tokens(world.other)
            rollout = score(world.other, context, token)
            fresh = world.rng.random(ROWS) < 0.5
            old = score(world.base, context, token)
            old[fresh] = rollout[fresh] + 0.001 * world.rng.normal(size=old[fresh].shape)
            layout = {"version": np.where(fresh, 9, 5), "current_version": 9} if told else {}
            return {"rollout": rollout, "old": old}, {"prompt_ids": PROMPTS, **layout}

        return make

    for told, name in ((False, "coarse or stale"), (True, "stale")):
        reports = steps(Monitor(process_group=False), 5, made(told))
        pair = reports[-1].pairs["rollout_old"]
        assert pair.cause.name == name
    assert "at lag 0 (the engine's floor)" in pair.cause.text
    assert "at a lag of 3 or more" in pair.cause.text


@pytest.mark.parametrize("kind", ["ids replaced", "half of them", "rows of another batch"])
def test_other_tokens_are_no_temperature_and_no_estimate_holds(kind):
    rng = np.random.default_rng(8)

    def made(mine, theirs):
        if kind == "rows of another batch":
            return mine, np.roll(theirs, 1, axis=0)
        other = rng.random(mine.shape) < (0.04 if kind == "ids replaced" else 0.5)
        return np.where(other, mine - 5 - rng.exponential(3, mine.shape), mine), theirs

    reports = engine_of(made)
    pair = reports[-1].pairs["rollout_policy"]
    assert pair.cause.name == "other tokens"
    assert pair.verdict.text == "neither: the engine and the trainer do not score the same tokens"
    for alert in said(reports, "limit"):
        assert alert.means == ""
        assert "do not score the same tokens" in alert.cause


def test_the_cause_is_told_in_the_place_of_what_an_alert_usually_means():
    world = Policies(9)

    def make(_):
        context, token = world.tokens(world.base / 0.6)
        return {
            "rollout": score(world.base, context, token),
            "policy": score(world.base / 0.6, context, token),
        }, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 3, make)
    (gap,) = said(reports, "gap")
    assert gap.means == ""
    assert "different temperatures" in gap.cause
    assert (
        gap.believe == "neither: the sampler draws tokens that q hardly would: another temperature"
    )
    assert "open alerts: " in reports[-1].explain()
    assert "gap" in reports[-1].pairs["rollout_policy"].open_kinds


def test_one_odd_token_at_every_step_is_no_critical_norm():
    world = Policies(10)

    def make(_):
        context, token = world.tokens(world.other)
        policy, ref = score(world.other, context, token), score(world.base, context, token)
        policy[0, 3] = ref[0, 3] - 9.0
        return {"policy": policy, "ref": ref}, {"prompt_ids": PROMPTS}

    reports = steps(Monitor(process_group=False), 22, make)
    assert reports[-1].pairs["policy_ref"].k3.mean > 2
    assert not said(reports, "limit")
    assert not said(reports, "nonzero_start"), "of the tokens at large it is near 0"
    assert said(reports, "dominance_k3")


def test_copies_of_a_completion_are_no_evidence_of_their_own():
    """Eight of one prompt alike, as greedy sampling makes them: four draws, not thirty-two."""
    world = Policies(11)
    copies = np.repeat(np.arange(0, ROWS, 8), 8)

    def make(_):
        context, token = world.tokens()
        mine = score(world.base, context, token)
        theirs = mine + 0.02 * world.rng.normal(size=mine.shape)
        arrays = {"policy": mine[copies], "rollout": theirs[copies]}
        return arrays, {"prompt_ids": np.arange(ROWS) // 8}

    reports = steps(Monitor(process_group=False), 40, make)
    assert not [alert for report in reports for alert in report.alerts]


def test_few_odd_tokens_are_no_stale_weights():
    rng = np.random.default_rng(12)
    monitor = Monitor(process_group=False)
    for step in range(1, 8):
        rollout = -2 * rng.random((10, 100)) - 0.1
        policy = rollout + 1e-3 * rng.normal(size=rollout.shape)
        policy.flat[rng.permutation(1000)[:5]] -= 50
        monitor.observe(rollout=rollout, policy=policy, prompt_ids=np.arange(10))
        report = monitor.step(step)
        assert report.pairs["rollout_policy"].cause.name == ""
        assert not [alert for alert in report.alerts if "limit" in alert.kinds]
