"""The live page, TensorBoard's tab and the report's file say the same of a step, to the digit."""

import random
import re

import numpy as np
import pytest

from klmonitor import Monitor, Penalty
from klmonitor.cli import main
from klmonitor.record import read_run
from tests.browser.test_tensorboard import open_tab, tensorboard
from tests.helpers.pages import serving, wait_until

STEPS = 60
RECORD_ALONE = ("panel-pull", "panel-around")
"""What TensorBoard's events have not: the fields of the KL term, the tokens around a token."""
TEXT_OF_LEGENDS = """Object.fromEntries([...document.querySelectorAll(".panel")].map(
    (panel) => [panel.id, [...panel.querySelectorAll(".legend span")].map((s) => s.innerText)]))"""
ROWS = "[...document.querySelectorAll('#panel-tokens tbody tr')].map((row) => row.innerText)"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of two pairs that leaves its level at step 45, into a record and TensorBoard."""
    path = tmp_path_factory.mktemp("same") / "run"
    term = Penalty("k3", clamp=0.5, beta=0.04)
    monitor = Monitor(path, sinks=["tensorboard"], penalty=term)
    rng = np.random.default_rng(7)
    for step in range(1, STEPS + 1):
        q = -rng.exponential(1.5, (12, 150)) - 0.01
        d = rng.standard_t(4, q.shape) * (0.05 if step < 45 else 0.4)
        mask = np.arange(150) < rng.integers(20, 151, 12)[:, None]
        monitor.observe(
            policy=q,
            ref=np.minimum(q + d, -1e-4),
            old=np.minimum(q + d / 9, -1e-4),
            mask=mask,
            token_ids=rng.integers(0, 32_000, q.shape),
            prompt_ids=[f"prompt {i // 2} of {step}" for i in range(12)],
        )
        monitor.step(step)
    monitor.close()
    return path


def said_at(frame, steps, pair):
    """What a page says at some steps: legends, verdict, tokens, one after another."""
    frame.evaluate("pair => KLM.app.set({ pair })", pair)
    found = {}
    for step in steps:
        frame.evaluate("step => KLM.app.goTo(step)", step)
        wait_until(frame, "s => KLM.app.tokenTitle.textContent.endsWith(` step ${s}`)", step)
        wait_until(frame, "s => KLM.app.verdict.textContent.startsWith(`step ${s},`)", step)
        found[step] = {
            "legends": frame.evaluate(TEXT_OF_LEGENDS),
            "verdict": frame.locator(".verdict").inner_text(),
            "tokens": frame.evaluate(ROWS),
            "glance": frame.locator(".glance span").first.inner_text(),
        }
    return found


@pytest.mark.parametrize("pair", ["policy_ref", "old_policy"])
def test_page_tab_and_report_say_the_same_of_twenty_random_steps(watched, recorded, tmp_path, pair):
    steps = sorted(random.Random(pair).sample(range(1, STEPS + 1), 20))
    file = tmp_path / "report.html"
    assert main(["report", str(recorded), "-o", str(file)]) == 0
    from_file = said_at(watched.open(file.as_uri()), steps, pair)
    with serving(recorded) as url:
        live = said_at(watched.open(url), steps, pair)
    with tensorboard(recorded / "tensorboard") as url:
        tab = said_at(open_tab(watched, url), steps, pair)
    assert live == from_file
    reports = {report.step: report for report in read_run(recorded).reports}
    for step in steps:
        mine, theirs = live[step], tab[step]
        for panel in RECORD_ALONE:
            mine["legends"].pop(panel), theirs["legends"].pop(panel)
        for part in mine:
            assert theirs[part] == mine[part], (step, part)
        report = reports[step].pairs[pair]
        assert mine["verdict"] == report.explain(step)
        legend = "\n".join(mine["legends"]["panel-estimators"])
        shown = dict(re.findall(r"^(k[123]) (\S+)$", legend, re.MULTILINE))
        for k in ("k1", "k2", "k3"):
            assert float(shown[k]) == float(f"{report[f'{k}/mean']:.4g}"), (step, k)
        band = next(t for t in mine["legends"]["panel-fan"] if t.startswith("25-75 %"))
        low, high = (-report[f"log_ratio/{q}"] for q in ("p75", "p25"))
        assert band == f"25-75 % {short(low)} to {short(high)}"
        assert mine["tokens"], step
        assert ("the KL term is 0.04 x k3" in mine["verdict"]) == (pair == "policy_ref")


SLOW_FRAMES = """() => {
    const soon = requestAnimationFrame;
    window.requestAnimationFrame = (draw) => setTimeout(() => soon(draw), 500);
    window.told = [];
    new MutationObserver(() => told.push([KLM.app.verdict.textContent.split(",")[0],
        document.querySelector("#panel-estimators .legend").innerText]))
        .observe(KLM.app.verdict, { childList: true, characterData: true, subtree: true });
}"""


def test_a_slow_frame_leaves_no_verdict_ahead_of_its_panels(watched, recorded, tmp_path):
    file = tmp_path / "report.html"
    assert main(["report", str(recorded), "-o", str(file)]) == 0
    page = watched.open(file.as_uri())
    page.evaluate(SLOW_FRAMES)
    own = {}
    for step in (2, 60):
        page.evaluate("step => { KLM.app.draw(); KLM.app.goTo(step); }", step)
        wait_until(page, "s => told.some(([verdict]) => verdict === `step ${s}`)", step)
        wait_until(page, "KLM.app.due === undefined")
        own[f"step {step}"] = page.locator("#panel-estimators .legend").inner_text()
    told = page.evaluate("told")
    assert told == [[step, own[step]] for step, _ in told]


def short(value):
    """As the page gives a number that is neither small nor large."""
    return f"{float(f'{value:.4g}'):.10g}"
