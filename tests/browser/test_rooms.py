"""The rooms beside the charts, in a real browser: what the record says, or why it cannot."""

from __future__ import annotations

import json

import pytest
import torch

from klmonitor import Monitor
from klmonitor.cli import main
from klmonitor.record import read_run
from tests.helpers.pages import serving, wait_until

ROOMS = ("story", "cause", "where", "starts", "health", "around")
WORDS = ("one", " two", "\n", "<img src=x onerror=alert(1)>", "\u202egnp", "é")
ALERTING = {"limit": {"policy_ref": 0.05}}
STEPS, RISES, FALLS = 40, 20, 26


def record(path, seed=0, **options):
    """A run whose KL rises at a step and falls again, with a gap in every sequence."""
    monitor = Monitor(path, rules=ALERTING, strict=True, **options)
    draw = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        q = -torch.empty(8, 60).exponential_(1.0, generator=draw)
        size = 0.05 + 0.6 * (RISES <= step < FALLS) + 0.8 * (RISES + 3 <= step < FALLS)
        mask = torch.ones(8, 60, dtype=torch.bool)
        mask[:, 20:25] = mask[:, 50:] = False

        def near(scale, q=q):
            return (q + scale * torch.randn(8, 60, generator=draw)).clamp(max=-1e-4)

        ids = torch.randint(0, 50_000, (8, 60), generator=draw)
        monitor.observe(policy=q, ref=near(size), rollout=near(0.01), mask=mask, token_ids=ids)
        monitor.step(step)
        if step == 30:
            monitor.note("new data from here")
    assert monitor.close()


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A directory in which a run was started twice."""
    path = tmp_path_factory.mktemp("rooms") / "run"
    for seed in range(2):
        record(path, seed, words=lambda ids: [WORDS[i % len(WORDS)] for i in ids])
    return path


def room(page, name):
    return page.locator(f"#panel-{name}")


def at(page, step, pair="policy_ref"):
    page.evaluate("([step, pair]) => { KLM.app.set({ pair }); KLM.app.goTo(step); }", [step, pair])
    wait_until(page, "step => KLM.app.tokenTitle.textContent.includes(`step ${step}`)", step)


@pytest.mark.parametrize("width", [1366, 390])
def test_every_room_is_drawn_at_an_alert(watched, twice, tmp_path, width):
    file = tmp_path / "report.html"
    assert main(["report", str(twice), "-o", str(file), "--token-text"]) == 0
    watched.page.set_viewport_size({"width": width, "height": 900})
    page = watched.open(file.as_uri())
    step = min(read_run(twice).neighbours)
    at(page, step)
    for name in ROOMS:
        box = room(page, name).bounding_box()
        assert box["width"] > 0.9 * min(width, 480)
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] > 60
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    watched.assert_quiet()


def test_the_story_has_every_alert_of_the_pair_and_its_end(watched, twice):
    with serving(twice) as url:
        page = watched.open(url)
        at(page, RISES)
        alerts = [a for a in read_run(twice).alerts if a.pair in ("policy_ref", None)]
        text = room(page, "story").inner_text()
        assert room(page, "story").locator(".story.here details[open]").count() == 1
        page.evaluate(
            "document.querySelectorAll('.story details').forEach((d) => { d.open = true; })"
        )
        text = room(page, "story").inner_text()
        for alert in alerts:
            assert f"step {alert.step}" in text
            if alert.phase != "end":
                assert alert.message in text
            else:
                assert f"{alert.kind} ended" in text
        told = [a for a in alerts if a.phase != "end"]
        assert {a.since or a.step for a in told} == {
            story["opened"]
            for story in page.evaluate("KLM.stories(KLM.app.runs[0].alerts, 'policy_ref')")
        }
        assert room(page, "story").locator(".line button").count() == len(told)
        worse = next(a for a in told if a.phase == "worse")
        room(page, "story").get_by_role("button", name=f"at step {worse.step}").first.click()
        wait_until(page, "step => KLM.app.state.step === step", worse.step)
        watched.assert_quiet()


def test_the_strip_is_the_record_s_and_reads_by_keys(watched, twice):
    run = read_run(twice)
    step = min(run.neighbours)
    mine = [one for one in run.neighbours[step] if one.token.pair == "policy_ref"]
    mine.sort(key=lambda one: -abs(one.token.log_ratio))
    with serving(twice, tokens_text=True) as url:
        page = watched.open(url)
        at(page, step)
        options = room(page, "around").locator("option").all_inner_texts()
        assert len(options) == len(mine)
        for number in (0, len(mine) - 1):
            one = mine[number]
            room(page, "around").locator("select").select_option(index=number)
            assert f"position {one.token.position}" in options[number]
            cells = room(page, "around").locator(".cell")
            assert cells.count() == len(one.ids)
            assert room(page, "around").locator(".gap").count() == one.log_q.count(None)
            own = -one.first
            assert cells.nth(own).get_attribute("class") == "cell own"
            d = page.evaluate("x => KLM.number(x)", one.log_p[own] - one.log_q[own])
            assert (
                f"id {one.ids[own]}, d {d}, log q"
                in room(page, "around").locator(".said").inner_text()
            )
            room(page, "around").locator(".strip").focus()
            page.keyboard.press("ArrowLeft")
            before = one.ids[own - 1] if own else one.ids[own]
            said = room(page, "around").locator(".said").inner_text()
            assert (f"id {before}," in said) or "not counted" in said
        assert step_of(page) == step
        words = room(page, "around").locator(".words").inner_text()
        assert "\u202e" not in words
        watched.assert_quiet()


def step_of(page):
    return page.evaluate("KLM.app.state.step")


def test_without_token_text_neither_text_nor_ids_of_neighbours_are_in_the_page(
    watched, twice, tmp_path
):
    file = tmp_path / "report.html"
    assert main(["report", str(twice), "-o", str(file)]) == 0
    run = read_run(twice)
    step = min(run.neighbours)
    shown = file.read_text()
    named = {token.token_id for tokens in run.tokens.values() for token in tokens}
    others = {
        i for one in run.neighbours[step] for i in one.ids if i is not None and i > 4096
    } - named
    assert len(others) > 20
    assert not [i for i in others if f'"{i}"' in shown or f",{i}," in shown]
    assert "onerror=alert(1)" not in shown
    page = watched.open(file.as_uri())
    at(page, step)
    assert "needs --token-text" in room(page, "around").inner_text()
    assert room(page, "around").locator(".words").count() == 0
    assert room(page, "around").locator(".cell").count() > 10
    watched.assert_quiet()


def test_the_run_before_is_compared_over_common_steps(watched, twice):
    assert "1 earlier start in this directory" in words_of(watched, twice)
    with serving(twice / "earlier" / "1", twice) as url:
        page = watched.open(url)
        page.evaluate("KLM.app.choose(0, false)")
        button = room(page, "starts").get_by_role("button", name="compare with the run before")
        button.click()
        rows = room(page, "starts").locator("tbody tr")
        rows.first.wait_for()
        cells = rows.nth(1).locator("th, td").all_inner_texts()
        both = [read_run(path) for path in (twice / "earlier" / "1", twice)]
        means = [
            sum(report.pairs["policy_ref"]["k3/mean"] for report in run.reports) / STEPS
            for run in both
        ]
        assert cells[0] == "mean k3, nats"
        for cell, mean in zip(cells[1:3], means, strict=True):
            assert float(cell) == pytest.approx(mean, rel=1e-3)
        assert cells[3] == str(STEPS)
        watched.assert_quiet()


def words_of(watched, path):
    with serving(path) as url:
        page = watched.open(url)
        at(page, 5)
        return "\n".join(room(page, name).inner_text() for name in ROOMS)


def test_a_run_that_is_chosen_again_has_its_rooms_again(watched, twice):
    with serving(twice) as url:
        page = watched.open(url)
        at(page, 21)
        said = [room(page, name).inner_text() for name in ROOMS]
        name = page.evaluate("KLM.app.names[0]")
        page.evaluate("KLM.app.set({ runs: [] })")
        wait_until(page, "document.querySelector('#panel-starts').classList.contains('nodata')")
        page.evaluate("name => KLM.app.set({ runs: [name] })", name)
        at(page, 21)
        assert [room(page, name).inner_text() for name in ROOMS] == said
    watched.assert_quiet()


def test_what_is_not_held_is_said_in_words(watched, twice):
    text = words_of(watched, twice)
    assert "neighbours are kept at steps that open or worsen an alert" in text
    assert "this is told of the sampler's pair alone" in text
    assert "No error was caught, nothing was dropped, everything was captured" in text


def test_health_tells_what_failed(watched, tmp_path):
    monitor = Monitor(tmp_path / "run")
    good = {"policy": -torch.rand(2, 8), "ref": -torch.rand(2, 8)}
    for step in range(6):
        monitor.observe(**good)
        if step == 3:
            monitor.observe(policy=-torch.rand(2, 3), ref=-torch.rand(3, 3))
        monitor.step(step)
    assert monitor.close()
    with serving(tmp_path / "run") as url:
        page = watched.open(url)
        assert "1 errors caught, 0 rows or messages dropped" in room(page, "health").inner_text()
        cells = room(page, "health").locator("tbody tr").last.locator("td").all_inner_texts()
        assert cells == ["3", "1", "0", "yes"]
        watched.assert_quiet()


def test_where_d_sits_is_the_record_s(watched, twice):
    with serving(twice) as url:
        page = watched.open(url)
        at(page, 5, "rollout_policy")
        pair = next(r for r in read_run(twice).reports if r.step == 5).pairs["rollout_policy"]
        rows = room(page, "where").locator("table").first.locator("tr")
        for i, edge in enumerate(("0.1", "0.5", "0.9", "0.99", "1")):
            value = pair[f"by_probability/below_{edge}/abs"]
            assert page.evaluate("x => KLM.number(x)", value) in rows.nth(i).inner_text()
        rows = [json.loads(line) for line in (twice / "tokens.jsonl").read_text().splitlines()]
        row = next(row for row in rows if "places" in row)
        at(page, row["step"])
        tables = room(page, "where").locator("table")
        assert tables.count() == 2  # by probability is the sampler's pair's
        for table, name, size in ((0, "position", 10), (1, "turn", 2)):
            means = row["places"]["policy_ref"][name]
            assert len(means) == tables.nth(table).locator("tr").count() == size
            for i, mean in enumerate(means):
                shown = page.evaluate("x => KLM.number(x)", mean)
                assert shown in tables.nth(table).locator("tr").nth(i).inner_text()
        watched.assert_quiet()
