"""What a newcomer sees: nothing hidden, everything named, nothing that is taken for another."""

import pytest

from klmonitor.cli import main
from klmonitor.dashboard.document import document
from klmonitor.dashboard.source import RecordSource
from klmonitor.record import RecordWriter
from klmonitor.report import ExtremeToken
from tests.browser.conftest import Watched
from tests.helpers.pages import serving, wait_until
from tests.helpers.reports import make_alert, make_report

PHONE = {"width": 390, "height": 844}
LAST_WORD = "the last one, and critical"
PROMPT = 2881822391185953


def token(position, text=None):
    return ExtremeToken(
        "policy_ref", "left", -3.0 - position, -0.5, -3.5 - position, 0, 0, 2, position, 67, PROMPT,
        text,
    )  # fmt: skip


def write(path, steps=30, pairs=("policy_ref",), alerts=()):
    writer = RecordWriter(path)
    for step in range(1, steps + 1):
        writer.step(make_report(step, *pairs))
        writer.tokens(step, [token(i) for i in range(6)])
    for alert in alerts:
        writer.alert(alert)
    writer.close()
    return path


@pytest.fixture
def alerted(tmp_path):
    """Fourteen alerts of several lines each; the last is critical."""
    told = [make_alert(step=s, message="of some length " * 12) for s in range(3, 29, 2)]
    last = make_alert(step=29, severity="critical", message=LAST_WORD)
    return write(tmp_path / "alerted", alerts=[*told, last])


@pytest.fixture
def two_runs(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / "both" / name)
    return tmp_path / "both"


@pytest.fixture
def phone(chromium):
    context = chromium.new_context(viewport=PHONE, has_touch=True)
    watched = Watched(context.new_page())
    yield watched.page
    watched.assert_quiet()
    context.close()


def open_on(page, url):
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    return page


# The nearest boxes that cut what is in an element without a scrollbar that is always drawn.
CUTTING = """selector => [...document.querySelectorAll(selector)].flatMap((node) => {
    const cut = [];
    for (let box = node.parentElement; box && box !== document.body; box = box.parentElement) {
        const cuts = getComputedStyle(box).overflowY !== "visible";
        if (cuts && box.scrollHeight > box.clientHeight + 1) cut.push(box.className);
    }
    return cut;
})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_every_alert_is_shown_by_scrolling_the_page_alone(watched, alerted, width):
    with serving(alerted) as url:
        watched.page.set_viewport_size({"width": width, "height": 844})
        page = watched.open(url)
        assert page.locator(".alert").count() == 14
        assert page.evaluate(CUTTING, ".alert") == []
        last = page.locator(".alert").last
        assert LAST_WORD in last.inner_text()
        page.mouse.wheel(0, 100_000)
        last.scroll_into_view_if_needed()
        box = last.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 844
        over = "([x, y]) => document.elementFromPoint(x, y).closest('.alert') !== null"
        assert page.evaluate(over, [box["x"] + 9, box["y"] + box["height"] - 6]), "it is covered"
        assert "14, 1 critical" in page.locator("aside h2", has_text="Alerts").inner_text()
        watched.assert_quiet()


def test_the_summary_of_a_file_is_never_cut(watched, alerted, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(document(RecordSource([alerted])), encoding="utf-8")
    page = watched.open(file.as_uri())
    assert page.evaluate(
        "(s => s.scrollHeight <= s.clientHeight)(document.querySelector('.summary'))"
    )
    assert LAST_WORD in page.locator(".summary").inner_text()


def test_a_phone_scrolls_to_every_column_of_the_tokens_and_is_told_so(phone, alerted):
    with serving(alerted) as url:
        page = open_on(phone, url)
        page.wait_for_selector("#panel-tokens tbody tr")
        table = page.locator("#panel-tokens table")
        assert table.evaluate("t => t.parentElement.scrollWidth > t.parentElement.clientWidth")
        page.get_by_text("scroll sideways").wait_for()
        scrollbar = table.evaluate("t => getComputedStyle(t.parentElement).scrollbarColor")
        assert scrollbar != "auto"
        for name in page.locator("#panel-tokens th").all_inner_texts():
            head = page.locator("#panel-tokens th", has_text=name.split("\n")[0]).last
            head.scroll_into_view_if_needed()
            box = head.bounding_box()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= 390, name
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = page.locator("#panel-tokens .scroll")
        box.evaluate("box => { box.scrollLeft = 0; box.focus(); }")
        page.keyboard.press("ArrowRight")
        wait_until(page, "document.querySelector('#panel-tokens .scroll').scrollLeft > 0")
        first = page.locator("#panel-tokens th").first.bounding_box()
        assert first["x"] >= 0, "the token stays in sight"


def test_each_panel_says_what_it_shows(watched, alerted):
    with serving(alerted) as url:
        page = watched.open(url)
        panels = page.locator(".panel")
        helped = [panels.nth(i).locator(".help").count() for i in range(panels.count())]
        assert helped == [1] * panels.count()


def test_the_run_is_named_in_title_and_header(watched, alerted, tmp_path):
    file = tmp_path / "report.html"
    assert main(["report", str(alerted), "-o", str(file)]) == 0
    assert "<title>alerted" in file.read_text()
    with serving(alerted) as url:
        for address in (file.as_uri(), url):
            page = watched.open(address)
            assert page.title().startswith("alerted")
            assert "alerted" in page.locator("header.bar h1").inner_text()


def test_two_runs_given_are_both_shown_and_told_apart(watched, two_runs):
    with serving(two_runs) as url:
        page = watched.open(url)
        assert page.evaluate("KLM.app.shown().map((one) => one.run.name)") == ["first", "second"]
        assert page.title().startswith("first, second")
        lines = page.locator("#panel-dominance .legend span:has(.swatch)")
        ground = "line => line.querySelector('.swatch').style.background"
        looks = {line.inner_text().split(" of")[0]: line.evaluate(ground) for line in lines.all()}
        assert set(looks) == {"first:", "second:"}
        assert "repeating" not in looks["first:"]
        assert "repeating" in looks["second:"], "the second run's lines are dashed"
        for panel in ("estimators", "fan"):
            legend = page.locator(f"#panel-{panel} .legend").inner_text()
            assert "bands: choose one run" in legend
        watched.assert_quiet()


FILLED = """(async () => {
    let filled = 0;
    const own = KLM.fillBand;
    KLM.fillBand = (...all) => { filled++; return own(...all); };
    KLM.app.draw();
    await new Promise((done) => setTimeout(done, 300));
    KLM.fillBand = own;
    return filled;
})()"""


def test_bands_are_drawn_of_one_run_and_of_no_overlaid_ones(watched, two_runs):
    with serving(two_runs) as url:
        page = watched.open(url + "#run=first")
        assert page.evaluate(FILLED) >= 6
        page.goto("about:blank")
        page = watched.open(url + "#run=first&run=second")
        assert page.evaluate(FILLED) == 0
        lines = page.evaluate("KLM.app.charts[1].lines().filter((one) => one.line.band).length")
        assert lines == 2, "of the widest band the edges are left, a run each"


def test_the_cursor_says_its_step_and_is_no_line(watched, alerted):
    """An alert is a line with a head; the cursor is a strip with the step at its foot."""
    with serving(alerted) as url:
        page = watched.open(url + "#step=7")
        wait_until(page, "KLM.app.charts[0].mark.hidden === false")
        for panel in ("estimators", "heat", "spike"):
            mark = page.locator(f"#panel-{panel} .mark")
            assert mark.inner_text() == "step 7"
            style = mark.evaluate("m => getComputedStyle(m).borderLeftWidth")
            assert style == "0px"
            assert mark.evaluate("m => getComputedStyle(m, '::before').opacity") < "0.5"
        assert page.locator(".mark:visible").count() == page.locator(".u-over").count()


def test_a_prompt_has_a_short_name_and_a_place_is_in_words(watched, alerted):
    with serving(alerted) as url:
        page = watched.open(url)
        row = page.locator("#panel-tokens tbody tr").first
        row.wait_for()
        cells = row.locator("td").all_inner_texts()
        heads = [t.split("\n")[0] for t in page.locator("#panel-tokens th").all_inner_texts()]
        shown = dict(zip(heads, cells, strict=True))
        assert "·" not in "".join(cells)
        assert "sequence 2" in shown["where"]
        assert 0 < len(shown["prompt"]) <= 6
        assert row.locator("td").last.get_attribute("title") == str(PROMPT)
        names = page.evaluate(
            "[1, 2, 3].map((i) => KLM.promptName(String(2881822391185953n + BigInt(i))))"
        )
        assert len(set(names)) == 3
        assert page.evaluate("KLM.promptName('12')") == "12"


def test_a_blank_column_of_tokens_says_what_it_needs(watched, alerted):
    with serving(alerted) as url:
        page = watched.open(url)
        page.wait_for_selector("#panel-tokens tbody tr")
        assert "needs --token-text" in page.locator("#panel-tokens th").first.inner_text()
    with serving(alerted, tokens_text=True) as url:
        page.goto("about:blank")
        page = watched.open(url)
        page.wait_for_selector("#panel-tokens tbody tr")
        assert "was not recorded" in page.locator("#panel-tokens th").first.inner_text()


def test_the_first_line_answers(watched, demo):
    """Level, trend, what to believe, what is open and since when, by the record's numbers."""
    with serving(demo) as url:
        page = watched.open(url)
        said = page.locator(".glance").inner_text()
        (run,) = RecordSource([demo]).runs()
        for part in run.glances()["policy_ref"]["parts"]:
            assert part in said
        top = page.locator(".glance").bounding_box()
        assert top["y"] + top["height"] < page.locator(".panel").first.bounding_box()["y"]


def test_the_first_line_leads_to_another_pair_that_has_something_open(watched, tmp_path):
    pairs = ("old_policy", "policy_ref")
    alert = make_alert(step=30, pair="old_policy", kind="custom", severity="critical")
    with serving(write(tmp_path / "two", pairs=pairs, alerts=[alert])) as url:
        page = watched.open(url)
        page.get_by_role("button", name="old_policy: critical, open since step 30").click()
        assert page.evaluate("KLM.app.state.pair") == "old_policy"
        assert page.locator(".glance.critical").count() == 1
