"""The page in a real browser: from a file, and live."""

import json
import random
import re
import shutil

import numpy as np
import pytest

from klmonitor import Monitor, Penalty
from klmonitor.cli import main
from klmonitor.dashboard import assets
from klmonitor.dashboard.document import document
from klmonitor.dashboard.source import RecordSource
from klmonitor.record import RecordWriter
from tests.helpers.pages import (
    HOSTILE_RUN,
    SPIKE_K3,
    SPIKES,
    read,
    serving,
    wait_until,
)
from tests.helpers.reports import make_alert, make_report, make_token, small_report

CHARTS = ("estimators", "fan", "dominance", "variance", "heat", "outliers", "spike")
MANY_COLOURS = 8


@pytest.fixture
def report_file(demo, tmp_path):
    path = tmp_path / "report.html"
    assert main(["report", str(demo), "-o", str(path), "--token-text"]) == 0
    return path


def assert_all_drawn(page):
    for panel in CHARTS:
        assert page.evaluate("s => probe.distinctColours(s)", f"#panel-{panel}") > MANY_COLOURS, (
            panel
        )
    assert page.locator("#panel-tokens tbody tr").count() > 0


def test_every_panel_of_a_real_run_is_drawn_from_a_file(watched, report_file):
    page = watched.open(report_file.as_uri())
    page.wait_for_selector("#panel-tokens tbody tr")
    assert_all_drawn(page)
    watched.assert_quiet()


def test_clicking_the_alert_moves_the_cursor_and_names_the_token(watched, demo):
    alert = next(a for a in read(demo / "klmonitor" / "alerts.jsonl") if a["kind"] == "spike")
    with serving(demo) as url:
        page = watched.open(url + "#step=5")
        wait_until(page, "KLM.app.tokenTitle.textContent.endsWith(' step 5')")
        item = page.locator(".alert", has_text="spike").first
        assert item.is_visible()
        item.click()
        wait_until(
            page,
            "step => document.querySelector('#panel-tokens h2').textContent.endsWith(` ${step}`)",
            alert["step"],
        )
        named = alert["tokens"][0]
        cells = page.locator("#panel-tokens tbody tr").all_inner_texts()
        mine = [row.split("\t") for row in cells]
        assert any(row[1:3] == [str(named["token_id"]), str(named["position"])] for row in mine), (
            mine
        )
        assert f"step {alert['step']}, KL(" in page.locator(".verdict").inner_text()
        x = "u => Math.round(u.valToPos(KLM.app.state.step, 'x'))"
        for i, panel in enumerate(CHARTS):
            moved = page.locator(f"#panel-{panel} .mark").evaluate(
                "mark => new DOMMatrix(getComputedStyle(mark).transform).m41"
            )
            assert moved == page.evaluate(f"({x})(KLM.app.charts[{i}].plot)")
        watched.assert_quiet()


def test_the_rule_of_an_alert_is_drawn_and_says_what_it_is(watched, demo):
    with serving(demo) as url:
        page = watched.open(url)
        alert = "KLM.app.alerts().find((one) => one.phase !== 'note')"
        assert page.evaluate(f"probe.ruleAt(0, {alert}.step)") > 0.3
        box = page.locator("#panel-estimators .u-over").bounding_box()
        left = page.evaluate(f"KLM.app.charts[0].plot.valToPos({alert}.step, 'x')")
        page.mouse.move(box["x"] + left, box["y"] + 20)
        first = read(demo / "klmonitor" / "alerts.jsonl")[0]
        assert first["message"] in page.locator(".tip").inner_text()


def test_live_data_arrives_without_a_click(watched, tmp_path):
    writer = RecordWriter(tmp_path / "live")
    for step in range(20):
        writer.step(make_report(step))
    writer.flush()
    with serving(tmp_path / "live") as url:
        page = watched.open(url)
        before = page.evaluate("KLM.app.runs[0].steps.length")
        for step in range(20, 30):
            writer.step(make_report(step))
        writer.alert(make_alert(step=25))
        writer.close()
        wait_until(page, "KLM.app.runs[0].steps.length === 30")
        page.wait_for_selector(".alert")
        assert before == 20
        assert page.evaluate("KLM.app.charts[0].plot.scales.x.max") == 29
        watched.assert_quiet()


@pytest.fixture
def hostile(tmp_path):
    path = tmp_path / "x" / HOSTILE_RUN
    writer = RecordWriter(path, meta={"</script><script>alert(2)</script>": "<b>"})
    tokens = [
        make_token(0, "<script>alert(3)</script>"),
        make_token(1, "\u202eright to left\u2066"),
        make_token(2, "\x00\x07\x1b[31m\n\u2028"),
        make_token(3, "A" * 10_000),
    ]
    for step in range(3):
        writer.step(make_report(step))
        writer.tokens(step, tokens)
    writer.alert(make_alert(step=1, message="<img src=x onerror=alert(4)>\u202e"))
    writer.close()
    writer = RecordWriter(tmp_path / "x" / "other")
    writer.step(small_report(1))
    writer.close()
    return tmp_path / "x"


def test_hostile_text_is_inert(watched, hostile, tmp_path):
    file = tmp_path / "hostile.html"
    source = RecordSource([hostile], tokens_text=True)
    file.write_text(document(source), encoding="utf-8")
    with serving(hostile, tokens_text=True) as url:
        for address in (file.as_uri(), url):
            page = watched.open(address + "#step=1")
            page.wait_for_selector("#panel-tokens tbody tr")
            texts = page.locator("td.token").all_inner_texts()
            assert texts[0] == "<script>alert(3)</script>"
            assert texts[1] == "\\u{202e}right to left\\u{2066}"
            assert texts[2] == "\\u{0}\\u{7}\\u{1b}[31m\\n\\u{2028}"
            assert len(texts[3]) < 200
            whole = page.locator("#klm").inner_text()
            assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", whole)
            assert page.locator("#klm img, #klm script, #klm b b").count() == 0
            page.locator(".runs summary").click()
            assert "<img src=x" in page.locator(".runs").inner_text()
    assert watched.said == []


def test_forty_one_step_spikes_of_20000_steps_are_all_drawn(watched, long_run, tmp_path):
    with serving(long_run) as url:
        page = watched.open(url)
        assert page.evaluate("KLM.app.runs[0].steps.length") == 20_000
        drawn = page.evaluate(
            "asked => probe.drawnAt(asked)",
            [[*SPIKES, *(step + 250 for step in SPIKES[:-1])], SPIKE_K3],
        )
        assert drawn == list(SPIKES)
        watched.assert_quiet()


def test_no_zoom_loses_an_extreme(watched, long_run):
    with serving(long_run) as url:
        page = watched.open(url)
        column = (
            "KLM.column(KLM.app.runs[0].pairs.policy_ref.metrics, KLM.panels[6].lines()[0].get)"
        )
        rng = random.Random(1)
        for log in (False, True):
            for _ in range(40):
                low = rng.randrange(1, 19_000)
                high = min(low + rng.randrange(2_000, 19_000), 19_999)
                drawn = page.evaluate(
                    f"""([range, log]) => {{
                        const sample = KLM.sample([KLM.app.runs[0]], range, 320, log);
                        const all = sample.pick(0, {column}, "line");
                        const low = sample.pick(0, {column}, "low");
                        const high = sample.pick(0, {column}, "high");
                        const pairs = all.flatMap((v, i) => (i % 2 ? [] : [[v, all[i + 1]]]));
                        return {{
                            agree: pairs.every(([a, b], i) =>
                                Math.min(a, b) === low[2 * i] && Math.max(a, b) === high[2 * i]),
                            values: pairs.flat(),
                            sorted: sample.x.every((x, i, xs) => !i || x >= xs[i - 1]),
                            rows: Array.from({column}.values.slice(range[0], range[1] + 1)),
                        }};
                    }}""",
                    [[low, high], log],
                )
                assert drawn["agree"]
                assert drawn["sorted"]
                # one row beside the range is drawn as well, so that lines reach its edge
                assert max(drawn["rows"]) <= max(drawn["values"])
                assert min(drawn["rows"]) >= min(drawn["values"])
                assert set(drawn["rows"]) >= set(drawn["values"][2:-2])


def test_zoom_keys_selectors_and_permalink(watched, long_run):
    with serving(long_run) as url:
        page = watched.open(url)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("+")
        page.keyboard.press("l")
        page.keyboard.press("d")
        page.locator(".bar select").first.select_option("old_policy")
        wait_until(page, "location.hash.includes('old_policy')")
        again = page.url
        state = page.evaluate("JSON.stringify(KLM.app.state)")
        page.goto("about:blank")
        watched.open(again)
        there = json.loads(page.evaluate("JSON.stringify(KLM.app.state)"))
        here = json.loads(state)
        assert here["range"][1] - here["range"][0] < 11_000
        assert (there["pair"], there["log"], there["theme"]) == ("old_policy", True, "dark")
        assert there["step"] == here["step"]
        assert there["range"] == pytest.approx(here["range"], abs=0.01)
        page.keyboard.press("0")
        assert page.evaluate("KLM.app.state.range") is None


def test_dragging_zooms_every_panel(watched, demo):
    with serving(demo) as url:
        page = watched.open(url)
        box = page.locator("#panel-fan .u-over").bounding_box()
        page.mouse.move(box["x"] + 50, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 60, steps=4)
        page.mouse.up()
        low, high = page.evaluate("KLM.app.state.range")
        assert 1 < low < high < 60
        scales = "KLM.app.charts.map((c) => [c.plot.scales.x.min, c.plot.scales.x.max])"
        wait_until(page, f"low => {scales}.every((x) => x[0] === low)", low)  # at the next frames
        assert page.evaluate(scales) == [[low, high]] * len(CHARTS)


def test_export_holds_every_row_and_a_picture(watched, demo, tmp_path):
    with serving(demo) as url:
        page = watched.open(url)
        with page.expect_download() as got:
            page.get_by_label("Estimators: save as CSV").click()
        lines = got.value.path().read_text().splitlines()
        assert len(lines) == 61
        k3 = lines[0].split(",").index('"k3"')
        rows = read(demo / "klmonitor" / "steps.jsonl")
        expected = [row["pairs"]["policy_ref"]["values"]["k3/mean"] for row in rows]
        assert [float(line.split(",")[k3]) for line in lines[1:]] == pytest.approx(
            expected, rel=1e-6
        )
        with page.expect_download() as got:
            page.get_by_label("Tokens by log-ratio d: save as PNG").click()
        assert got.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        watched.assert_quiet()


def test_what_is_missing_is_said(watched, tmp_path):
    writer = RecordWriter(tmp_path / "bare")
    writer.step(small_report(1, k1__mean=0.1, k3__mean=0.2))
    writer.close()
    with serving(tmp_path / "bare") as url:
        page = watched.open(url + "#pair=rollout_old")
        said = page.locator("#panel-estimators .why").inner_text()
        assert "no data because the run has no pair rollout_old" in said
        page.goto("about:blank")
        watched.open(url)
        assert (
            "no data because the record holds no histograms"
            in page.locator("#panel-heat").inner_text()
        )
        page.get_by_text("no data because no extreme tokens").wait_for()


def test_without_uplot_the_page_says_how_to_get_it(watched, demo, monkeypatch, tmp_path):
    bare = tmp_path / "static"
    shutil.copytree(assets.STATIC, bare, ignore=shutil.ignore_patterns("vendor"))
    monkeypatch.setattr(assets, "STATIC", bare)
    file = tmp_path / "bare.html"
    file.write_text(document(RecordSource([demo])), encoding="utf-8")
    page = watched.open(file.as_uri())
    assert "lacks uPlot, which npm fetches" in page.locator(".notes").inner_text()
    assert page.locator(".alert").count() > 0
    watched.assert_quiet()


def test_a_phone_shows_one_column_and_no_sideways_scroll(chromium, demo):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    with serving(demo) as url:
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        lefts = page.evaluate(
            "[...document.querySelectorAll('.panel')].map((p) => p.getBoundingClientRect().left)"
        )
        assert len(set(lefts)) == 1
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_and_controls_have_names(watched, demo, theme):
    with serving(demo) as url:
        page = watched.open(f"{url}#theme={theme}")
        names = ["ink", "quiet", "alert", "k1", "k2", "k3", "rate"]
        ratios = page.evaluate("names => probe.contrast(names)", names)
        assert min(ratios[name] for name in ("ink", "quiet", "alert")) >= 4.5, ratios
        assert min(ratios.values()) >= 3, ratios
        assert page.evaluate("probe.nameless()") == 0


def test_the_curve_of_the_kl_term_is_drawn_with_the_tokens_on_it(watched, tmp_path):
    """Red where the clamp lets go, the legend says how many; another pair says why it has none."""
    d = np.full((4, 50), 0.05)
    d[:, ::2] = -0.4
    d[0, :10] = -9.0
    monitor = Monitor(tmp_path / "run", penalty=Penalty("k3", clamp=2.0, beta=0.04))
    for step in range(3):
        q = np.full_like(d, -20.0)
        monitor.observe(policy=q, ref=q + d, old=q + 0.01)
        monitor.step(step)
    monitor.close()
    with serving(tmp_path / "run") as url:
        page = watched.open(url + "#step=1&pair=policy_ref")
        said = page.locator("#panel-pull .legend").inner_text()
        assert "c of 0.04 x k3 in the loss, clamped at 2" in said
        assert "tokens of step 1" in said
        assert "pulled not at all: 5 %" in said
        curve = page.evaluate("KLM.app.focused().run.pull.policy_ref")
        inside = [i for i, x in enumerate(curve["d"]) if abs(x) < 1]
        expected = -np.expm1(np.array(curve["d"])[inside])
        np.testing.assert_allclose(np.array(curve["c"])[inside], expected, rtol=1e-6, atol=1e-9)
        ink = page.evaluate("probe.distinctColours('#panel-pull')")
        assert ink > MANY_COLOURS
        assert "the KL term is 0.04 x k3 in the loss" in page.locator(".verdict").inner_text()
        page.evaluate("KLM.app.set({pair: 'old_policy'})")
        assert "tells of no KL term on this pair" in page.locator("#panel-pull").inner_text()
        watched.assert_quiet()
