import errno
import io
import json
import logging
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klmonitor.boundary import PATIENCE, REST
from klmonitor.numbers.metrics import CORE, NAMES
from klmonitor.record import RecordWriter, jsonl, read_run
from klmonitor.report import PairReport, Report
from klmonitor.sinks import (
    ConsoleSink,
    FanOut,
    Sink,
    TensorBoardSink,
    WandbSink,
    as_sink,
    check_metrics,
    select,
)
from klmonitor.sinks import wandb as wandb_sink
from klmonitor.sinks.panels import PANELS, panels_of
from tests.helpers import reports as some
from tests.helpers.reports import make_alert, make_report, small_report
from tests.helpers.tornwrites import forbid_cutting, torn_writes
from tests.helpers.wandb_reader import WandbFile, read_wandb
from tests.helpers.warnings import warnings_of

LONG = 60.0


# --- which metrics ---------------------------------------------------------------------------
def test_core_is_at_most_30_series_for_two_pairs() -> None:
    report = make_report(1, "policy_ref", "old_policy")
    chosen = select("core", report)
    assert chosen["kl/alerts"] == 0.0
    groups = {name for name in chosen if "/group/" in name}
    assert groups == {f"kl/policy_ref/group/{group}/k3/mean" for group in ("math", "code")}, (
        "one series a declared group, beside the budget"
    )
    for name in groups:
        del chosen[name]
    assert set(chosen) == {"kl/alerts"} | {
        f"kl/{pair}/{name}" for pair in ("policy_ref", "old_policy") for name in CORE
    }
    penalised_too = [name for name in chosen if name.startswith("kl/old_policy/penalty/")]
    assert len(chosen) - len(penalised_too) <= 30, "an objective penalises one pair"
    assert chosen.items() <= report.scalars().items()


@given(some.reports(), st.sampled_from(["core", "full", ["*"], ["full", "k1/*"], ["core"], []]))
def test_a_selection_is_part_of_the_report_and_has_no_nan(report: Report, metrics: Any) -> None:
    chosen = select(metrics, report)
    prefix = "eval/" if report.phase == "eval" else ""
    numbers = {f"{prefix}{k}": v for k, v in report.scalars().items() if not math.isnan(v)}
    assert chosen.items() <= numbers.items()
    if metrics in ("full", ["*"], ["full", "k1/*"]):
        assert chosen == numbers


def test_globs_match_the_full_name_or_the_name_without_the_pair() -> None:
    report = make_report(1, "policy_ref", "old_policy")
    assert set(select(["k3/m*n"], report)) == {"kl/policy_ref/k3/mean", "kl/old_policy/k3/mean"}
    assert set(select(["kl/old*/gap*"], report)) == {"kl/old_policy/gap", "kl/old_policy/gap_z"}
    assert set(select(["klmonitor/*"], report)) == {"klmonitor/active", "klmonitor/errors"}
    both = select(["core", "k2/var"], report)
    assert set(both) - set(select("core", report)) == {
        "kl/policy_ref/k2/var",
        "kl/old_policy/k2/var",
    }


def test_an_evaluation_sends_means_and_errors_under_a_prefix() -> None:
    report = replace(make_report(1), phase="eval")
    names = {name.removeprefix("eval/kl/policy_ref/") for name in select("core", report)}
    groups = {f"group/{group}/k3/mean" for group in ("math", "code")}
    assert names == {"k1/mean", "k1/se", "k2/mean", "k3/mean", "k3/se"} | groups


@pytest.mark.parametrize("metrics", ["cor", "", "k3/*", [""], [3]])
def test_a_wrong_choice_of_metrics_names_the_value_and_the_remedy(metrics: Any) -> None:
    with pytest.raises(ValueError, match="list of globs") as caught:
        check_metrics(metrics)
    assert repr(metrics) in str(caught.value)
    for make in (
        lambda: TensorBoardSink("unused", metrics=metrics),
        lambda: WandbSink(run=object(), metrics=metrics),
        lambda: as_sink(Logger(), metrics),
    ):
        with pytest.raises(ValueError, match="list of globs"):
            make()


# --- sinks in general ------------------------------------------------------------------------
class Logger:
    """The interface of many loggers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))


class Collect:
    """A sink that fails when told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.steps: list[int] = []
        self.error = error
        self.calls = self.closed = 0

    def __call__(self, report: Report) -> None:
        self.calls += 1
        if self.error:
            raise self.error
        self.steps.append(report.step)

    def close(self) -> None:
        self.closed += 1
        if self.error:
            raise self.error


def test_functions_sinks_and_loggers_are_accepted() -> None:
    steps: list[int] = []
    function = as_sink(lambda report: steps.append(report.step))
    function(small_report(3))
    function.close()
    assert steps == [3]
    assert isinstance(function, Sink)
    sink = Collect()
    assert as_sink(sink) is sink
    logger = Logger()
    as_sink(logger, ["k1/*"])(small_report(4, k1__mean=0.5, k2__mean=1.0))
    assert logger.rows == [(4, {"kl/policy_ref/k1/mean": 0.5})]


@pytest.mark.parametrize("target", [3, None, "wandb", object()])
def test_what_is_no_sink_is_refused_by_name(target: object) -> None:
    with pytest.raises(TypeError, match="is no sink: pass a function") as caught:
        as_sink(target)
    assert repr(target) in str(caught.value)


def test_a_failing_sink_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Collect(RuntimeError("tracker is down")), Collect()
    sinks = FanOut([bad, good])
    for step in range(5):
        sinks(small_report(step))
    sinks.close()
    assert good.steps == [0, 1, 2, 3, 4]
    assert (good.closed, bad.closed) == (1, 1)
    assert sinks.errors == 6
    [message] = warnings_of(caplog)
    assert "Collect" in message
    assert "RuntimeError: tracker is down" in message


def test_a_sink_that_keeps_failing_is_left_alone_and_one_that_recovers_is_not() -> None:
    sink, flaky = Collect(RuntimeError("down")), Collect()
    sinks = FanOut([sink, flaky])
    for step in range(PATIENCE + REST):
        flaky.error = RuntimeError("now and then") if step % 2 else None
        sinks(small_report(step))
    assert sink.calls == PATIENCE
    assert flaky.calls == PATIENCE + REST
    sink.error = None
    for step in range(3):
        sinks(small_report(step))
    assert sink.calls == PATIENCE + 3


# --- console ---------------------------------------------------------------------------------
def test_an_alert_is_one_line_on_a_stream() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    sink(make_report(1))
    alerts = (
        make_alert(7, message="k3 is\n12 x\x1b[31m its level"),
        make_alert(8, severity="critical", pair=None, kind="nonfinite", phase="worse"),
    )
    sink(make_report(8, alerts=alerts))
    sink.close()
    assert stream.getvalue() == (
        "klmonitor [warn] step 7 spike: k3 is 12 x\\x1b[31m its level\n"
        "klmonitor [critical] step 8 nonfinite (worse): k3 is 12 x its level\n"
    )
    assert not stream.closed


def test_without_a_stream_alerts_are_logged_at_their_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "klmonitor")
    levels = {"info": logging.INFO, "warn": logging.WARNING, "critical": logging.ERROR}
    alerts = tuple(make_alert(severity=severity) for severity in levels)
    ConsoleSink()(make_report(7, alerts=alerts))
    assert [record.levelno for record in caplog.records] == list(levels.values())


# --- TensorBoard -----------------------------------------------------------------------------
def read_scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def events_of(path: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return list(LegacyEventFileLoader(str(path)).Load())


def test_tensorboard_reads_back_every_core_scalar(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path / "klmonitor")
    reports = [make_report(step, "policy_ref", "old_policy") for step in range(30)]
    for report in reports:
        sink(report)
    sink.close(LONG)
    sink.close()
    found = read_scalars(tmp_path / "klmonitor")
    assert set(found) == set(select("core", reports[0]))
    for tag, points in found.items():
        assert points == [
            (report.step, pytest.approx(report.scalars()[tag], rel=1e-6)) for report in reports
        ]
    [file] = (tmp_path / "klmonitor").iterdir()
    head, *events = events_of(file)
    assert head.file_version == "brain.Event:2"
    tags = [{value.tag for value in event.summary.value} for event in events]
    assert tags == [{*found, "klmonitor/step", LAYOUT}] + [{*found, "klmonitor/step"}] * 29
    assert [event.wall_time for event in events] == [report.time for report in reports]
    assert (sink.errors, sink.dropped) == (0, 0)


LAYOUT = "custom_scalars__config__"


def custom_scalars(logdir: Path) -> tuple[dict[str, Any], Callable[[str, str], dict[str, Any]]]:
    """What the tab Custom Scalars is given: the layout, and a run's values by a chart's tag."""
    from tensorboard import context
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    plugins: dict[str, Any] = {}
    tb = base_plugin.TBContext(data_provider=provider, plugin_name_to_instance=plugins)
    plugins["scalars"] = ScalarsPlugin(tb)
    tab, request = CustomScalarsPlugin(tb), context.RequestContext()
    layout = tab.layout_impl(request, "")
    read = json.loads(layout) if layout else {}
    return read, lambda run, tag: tab.scalars_impl(request, run, tag, "")["tag_to_events"]


@pytest.mark.filterwarnings("ignore:html5lib:DeprecationWarning")
def test_the_custom_scalars_tab_groups_the_core_as_the_page_does(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path / "klmonitor")
    for step in range(12):
        sink(make_report(step, *(("policy_ref", "old_policy") if step > 5 else ("policy_ref",))))
    sink.close(LONG)
    layout, values = custom_scalars(tmp_path)
    assert [category["title"] for category in layout["category"]] == [
        "kl/policy_ref",
        "kl/old_policy",
        "kl",
    ]
    charts = {chart["title"]: chart for chart in layout["category"][0]["chart"]}
    lines = [panel for panel in panels_of("policy_ref", "core") if panel.kind == "lines"]
    assert list(charts) == [panel.title for panel in lines]
    drawn = set()
    for category in layout["category"]:
        for chart in category["chart"]:
            for tag in chart["multiline"]["tag"]:
                ((name, points),) = values("klmonitor", tag).items()
                assert len(points) == (6 if "old_policy" in name else 12)
                drawn.add(name)
    chosen = select("core", make_report(9, "policy_ref", "old_policy"))
    assert drawn == {name for name in chosen if "/group/" not in name}
    [file] = (tmp_path / "klmonitor").iterdir()
    tags = [value.tag for event in events_of(file) for value in event.summary.value]
    assert tags.count(LAYOUT) == 2


@pytest.mark.filterwarnings("ignore:html5lib:DeprecationWarning")
def test_a_layout_draws_exactly_what_is_chosen_and_exists(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, metrics=["k3/*", "spike/*"])
    sink(make_report(1))
    sink(make_report(2))
    sink.close(LONG)
    layout, values = custom_scalars(tmp_path)
    [category] = layout["category"]
    assert [chart["title"] for chart in category["chart"]] == [
        *("Estimators", "Standard errors", "Variance, and running variance", "Spike score")
    ]
    tags = category["chart"][0]["multiline"]["tag"]
    assert [list(values(".", tag)) for tag in tags] == [["kl/policy_ref/k3/mean"]]


@pytest.mark.filterwarnings("ignore:html5lib:DeprecationWarning")
def test_somebody_elses_layout_stays(tmp_path: Path) -> None:
    """There is one layout a directory: a writer that is shared gets none of ours."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    writer.add_custom_scalars({"mine": {"loss": ["Multiline", ["loss"]]}})
    sinks = [TensorBoardSink(writer=writer), TensorBoardSink(tmp_path / "klmonitor")]
    for sink in sinks:
        sink(make_report(1))
        sink.close(LONG)
    writer.close()
    layout, _ = custom_scalars(tmp_path)
    assert [category["title"] for category in layout["category"]] == ["mine", "kl/policy_ref", "kl"]


def test_every_metric_of_a_panel_exists_and_the_core_is_drawn() -> None:
    lines = [panel for panel in PANELS if panel.kind == "lines"]
    assert {name for panel in lines for name in panel.metrics} <= set(NAMES)
    of_pair = [panel for panel in panels_of("old_ref", "core") if panel.kind == "lines"]
    drawn = {name for panel in of_pair for name in panel.metrics}
    assert drawn == {f"kl/old_ref/{name}" for name in CORE}


def test_a_report_without_numbers_is_no_event_and_no_file(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink(Report(step=1, pairs={}))
    sink(small_report(2, k1__mean=math.nan))
    sink.close(LONG)
    assert list(tmp_path.iterdir()) == []


def test_a_summary_writer_is_shared_and_left_open(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer=writer, metrics=["k1/mean"])
    for step in range(5):
        writer.add_scalar("loss", 10 - step, step)
        sink(small_report(step))
    sink.close(LONG)
    writer.add_scalar("loss", 0, 5)
    writer.close()
    assert len(list(tmp_path.iterdir())) == 1
    found = read_scalars(tmp_path)
    assert found["kl/policy_ref/k1/mean"] == [(step, float(step)) for step in range(5)]
    assert [step for step, _ in found["loss"]] == list(range(6))


def test_a_writer_of_another_package_gets_single_scalars() -> None:
    class Writer:
        def __init__(self) -> None:
            self.points: list[tuple[Any, ...]] = []

        def add_scalar(self, *point: object) -> None:
            self.points.append(point)

    writer = Writer()
    sink = TensorBoardSink(writer=writer, metrics="full")
    sink(replace(small_report(3, k1__mean=0.5, k2__mean=1.5), time=9.0))
    sink.close(LONG)
    assert writer.points == [
        ("kl/policy_ref/k1/mean", 0.5, 3, 9.0),
        ("kl/policy_ref/k2/mean", 1.5, 3, 9.0),
    ]


def test_tensorboard_needs_one_place_to_write_to(tmp_path: Path) -> None:
    for arguments in ({}, {"log_dir": tmp_path, "writer": object()}):
        with pytest.raises(ValueError, match="log_dir= of its own or a writer="):
            TensorBoardSink(**arguments)
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OSError, match="choose another log_dir"):
        TensorBoardSink(tmp_path / "taken")


@pytest.mark.parametrize(("module", "make"), [("tensorboard", TensorBoardSink), ("wandb", None)])
def test_a_missing_tracker_names_the_extra(
    module: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n == module or n.startswith(module + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "klmonitor\[{module}\]"'):
        make(tmp_path) if make else WandbSink()


@pytest.mark.parametrize("can_cut", [True, False])
def test_events_after_a_full_disk_can_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    can_cut: bool,
) -> None:
    """Events 1 and 2 get 10 bytes in, then ENOSPC."""
    sink = TensorBoardSink(tmp_path, metrics="full")
    monkeypatch.setattr(jsonl.os, "write", torn_writes(errno.ENOSPC))
    if not can_cut:
        forbid_cutting(monkeypatch)
    for step in range(6):
        sink(small_report(step))
    sink.close(LONG)
    monkeypatch.undo()
    assert sink.errors == 2
    [message] = warnings_of(caplog)
    assert "No space left" in message
    files = sorted(tmp_path.iterdir())
    assert len(files) == (1 if can_cut else 3)
    steps = [e.step for f in files for e in readable_events(f) if e.HasField("summary")]
    assert steps == [0, 3, 4, 5]


def readable_events(path: Path) -> list[Any]:
    """The events before the first torn one."""
    from tensorboard.compat.proto.event_pb2 import Event

    data, at, found = path.read_bytes(), 0, []
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        body = data[at + 12 : at + 12 + length]
        at += 16 + length
        if at <= len(data):
            found.append(Event.FromString(body))
    return found


# --- stalled and full, together --------------------------------------------------------------
def test_a_stalled_sink_and_a_stalled_record_leave_the_others_fed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stall = threading.Event()

    class Stalled:
        def add_scalar(self, *_: object) -> None:
            stall.wait()

    os.mkfifo(tmp_path / "steps.jsonl")
    record = RecordWriter(tmp_path, capacity=4)
    stalled, fine, seen = TensorBoardSink(writer=Stalled()), TensorBoardSink(tmp_path / "tb"), []
    sinks = FanOut([record.step, stalled, fine, lambda report: seen.append(report.step)])
    for step in range(300):
        sinks(small_report(step))
        if step % 100 == 0:
            fine._worker.flush(LONG)
    assert seen == list(range(300))
    stalled.close(0.05)
    assert not record.close(0.05)
    assert sinks.errors == 0
    messages = warnings_of(caplog)
    assert len(messages) == 2
    assert sum(str(tmp_path) in message for message in messages) == 1
    assert sum("shared writer" in message for message in messages) == 1
    stall.set()
    fine.close(LONG)
    assert [step for step, _ in read_scalars(tmp_path / "tb")["kl/policy_ref/k1/mean"]] == seen
    os.close(os.open(tmp_path / "steps.jsonl", os.O_RDONLY | os.O_NONBLOCK))


def test_exit_with_a_stalled_record_is_quiet_and_prompt(tmp_path: Path) -> None:
    body = """
        import os, sys
        from klmonitor import background
        from klmonitor.record import RecordWriter
        from tests.helpers.reports import small_report
        background.EXIT_SECONDS = 0.2
        os.mkfifo(sys.argv[1] + "/steps.jsonl")
        writer = RecordWriter(sys.argv[1])
        for step in range(3):
            writer.step(small_report(step))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert len(done.stderr.splitlines()) == 1
    assert "did not finish in time" in done.stderr


# --- wandb -----------------------------------------------------------------------------------
@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """``wandb.init`` of an offline run below `tmp_path`, finished at the end."""
    wandb = pytest.importorskip("wandb")
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
    yield lambda mode="offline": wandb.init(
        project="test", dir=str(tmp_path), mode=mode, settings=settings
    )
    if wandb.run is not None:
        wandb.run.finish()


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nobody has set up wandb."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # what it read before does not count
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


N = 6
Trainer = Callable[[Any, int], None]


def log_in_parts(run: Any, n: int) -> None:
    run.log({"reward": n}, commit=False)
    run.log({"loss": n})


def log_other_rows_too(run: Any, n: int) -> None:
    for _ in range(3):
        run.log({"profile": 1.0})
    run.log({"loss": n})


def now_and_then(trainer: Trainer) -> Trainer:
    return lambda run, n: trainer(run, n) if n % 3 == 0 else None


def pass_step(run: Any, n: int) -> None:
    run.log({"loss": n}, step=n)


def pass_no_step(run: Any, n: int) -> None:
    run.log({"loss": n})


TRAINERS: dict[str, Trainer] = {
    "passes its step": pass_step,
    "passes no step": pass_no_step,
    "builds its row in parts": log_in_parts,
    "logs rows of its own besides": log_other_rows_too,
    "passes its step now and then": now_and_then(pass_step),
    "logs now and then": now_and_then(pass_no_step),
    "logs nothing": lambda run, n: None,
}


def train(
    run: Any, trainer: Trainer, report: Callable[[int], None], first: int, we_come: str
) -> None:
    for n in range(first, first + N):
        if we_come == "before":
            report(n)
        trainer(run, n)
        if we_come == "after":
            report(n)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("we_come", ["before", "after"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_neither_the_trainer_nor_we_lose_a_row(
    offline: Callable[..., Any], trainer: str, we_come: str, first: int
) -> None:
    run = offline()
    sink = WandbSink()
    assert sink.run is run
    train(run, TRAINERS[trainer], lambda n: sink(small_report(n)), first, we_come)
    sink.close(LONG)
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    steps = list(range(first, first + N))
    logged = [n for n in steps if "now and then" not in trainer or n % 3 == 0]
    assert found.column("loss") == ([] if trainer == "logs nothing" else logged)
    if "passes its step" in trainer:
        assert [row["_step"] for row in found.rows if "loss" in row] == logged
    ours = [row for row in found.rows if "kl/policy_ref/k1/mean" in row]
    # twice is allowed: where the trainer moved the step between two of our calls
    assert list(dict.fromkeys(row["klmonitor/step"] for row in ours)) == steps
    assert list(dict.fromkeys(row["kl/policy_ref/k1/mean"] for row in ours)) == steps
    assert sink.errors == 0


@pytest.mark.parametrize("trainer", ["passes its step", "passes no step"])
def test_evaluations_share_the_row_of_their_step(offline: Callable[..., Any], trainer: str) -> None:
    run = offline()
    sink = WandbSink()

    def report(n: int) -> None:
        sink(small_report(n))
        sink(small_report(n, phase="eval"))

    train(run, TRAINERS[trainer], report, 1, "before")
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    assert found.column("loss") == [1, 2, 3, 4, 5, 6]
    for ours in ("kl/policy_ref/k1/mean", "eval/kl/policy_ref/k1/mean"):
        # twice is allowed: where the trainer moved the step between two of our calls
        assert list(dict.fromkeys(found.column(ours))) == [1, 2, 3, 4, 5, 6]


def test_reports_that_lag_by_a_step_are_kept(offline: Callable[..., Any]) -> None:
    run = offline()
    sink = WandbSink()
    train(run, TRAINERS["passes its step"], lambda n: sink(small_report(n - 1)), 1, "after")
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    assert found.column("loss") == [1, 2, 3, 4, 5, 6]
    assert found.column("klmonitor/step") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("pattern", "loss", "ours"),
    [
        (lambda run, n: [run.log({"kl": n}) for _ in range(2)], 0, 2 * N),
        (lambda run, n: run.log({"kl": n}), 0, N),
        (lambda run, n: run.log({"kl": n}, step=n), N, N),
        (lambda run, n: run.log({"kl": n}, commit=False), N, N - 1),
    ],
)
def test_what_a_plain_log_would_have_done_to_a_trainer_that_passes_steps(
    offline: Callable[..., Any], pattern: Trainer, loss: int, ours: int
) -> None:
    """The hazard that the sink avoids is real: bare logs before the trainer's destroy its data."""
    run = offline()
    train(run, TRAINERS["passes its step"], lambda n: pattern(run, n), 0, "before")
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    assert (len(found.column("loss")), len(found.column("kl"))) == (loss, ours)


def test_passing_an_older_step_would_have_lost_our_rows(offline: Callable[..., Any]) -> None:
    run = offline()
    run.log({"loss": 0})
    run.log({"loss": 1})
    for n in range(2):
        run.log({"kl": n}, step=n)
    run.finish()
    assert read_wandb(Path(run.dir).parent).column("kl") == []


def test_metrics_are_defined_by_exact_name_before_they_are_logged(
    offline: Callable[..., Any],
) -> None:
    run = offline()
    run.define_metric("*", step_metric="train/global_step")
    sink = WandbSink(metrics="full", step_key="x")
    sink(small_report(1, k1__mean=1.0))
    sink(small_report(2, k1__mean=2.0, gap_z=3.0, nothing=math.nan))
    sink.close(LONG)
    assert wandb_run() is run
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    ours = {name: step for name, step in found.metrics.items() if name != "*"}
    assert ours == {"x": "", "kl/policy_ref/k1/mean": "x", "kl/policy_ref/gap_z": "x"}
    assert found.column("kl/policy_ref/gap_z") == [3.0]
    assert not any("nothing" in key for row in found.rows for key in row)


def wandb_run() -> Any:
    import wandb

    return wandb.run


def test_alerts_are_sent_once_within_their_time(
    offline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(wandb_sink.time, "monotonic", lambda: now)
    run = offline()
    sink = WandbSink(run, alert_seconds=120)
    secret = some.make_token(text="SECRET")
    for step, severity, seconds in (
        (1, "warn", 0),
        (2, "warn", 100),
        (3, "critical", 110),
        (4, "warn", 130),
        (5, "info", 131),
    ):
        now = float(seconds)
        alert = make_alert(step, severity=severity, tokens=(secret,), kind="k" * 80)
        sink(Report(step=step, pairs={}, alerts=(alert,)))
        assert sink._worker.flush(LONG)
    monkeypatch.undo()
    sink.close(LONG)
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    assert [alert.level for alert in found.alerts] == ["WARN", "ERROR", "WARN", "INFO"]
    assert all(alert.wait_duration == 120_000 for alert in found.alerts)
    assert all(len(alert.title) < 64 for alert in found.alerts)
    assert "step 1" in found.alerts[0].text
    assert not any("SECRET" in str(alert) for alert in found.alerts)


def test_without_a_key_a_run_of_our_own_is_offline_and_ours_to_finish(
    no_key: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert wandb_run() is None
    sink = WandbSink()
    assert sink.run is wandb_run()
    [message] = warnings_of(caplog)
    directory = message.rpartition("wandb sync ")[2]
    sink(small_report(1))
    sink.close(LONG)
    sink.close(LONG)
    assert wandb_run() is None
    found = read_wandb(Path(directory))
    assert found.finished
    assert found.column("klmonitor/step") == [1]


def test_a_run_of_somebody_else_is_never_finished(offline: Callable[..., Any]) -> None:
    run = offline()
    for sink in (WandbSink(), WandbSink(run)):
        sink(small_report(1))
        sink.close(LONG)
    run.log({"loss": 1.0})
    run.finish()
    found: WandbFile = read_wandb(Path(run.dir).parent)
    assert found.column("loss") == [1.0]


@pytest.mark.parametrize("how", ["environment", "identity", "netrc", "mode"])
def test_with_a_key_or_a_mode_the_user_decides(
    no_key: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    import wandb

    host = wandb.setup().settings.base_url.removeprefix("https://")
    if how == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    elif how == "identity":
        monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "some/file")
    elif how == "netrc":
        (tmp_path / "netrc").write_text(f"machine {host} login user password {'k' * 40}\n")
    else:
        monkeypatch.setenv("WANDB_MODE", "online")
    asked: list[dict[str, Any]] = []

    class Run:
        dir = "x/files"

    monkeypatch.setattr(wandb, "init", lambda **arguments: (asked.append(arguments), Run())[1])
    WandbSink()
    assert asked == [{"project": "klmonitor", "mode": None}]
    assert warnings_of(caplog) == []


def test_a_disabled_run_is_no_error(offline: Callable[..., Any]) -> None:
    run = offline(mode="disabled")
    sink = WandbSink(run)
    for step in range(3):
        sink(make_report(step, alerts=(make_alert(step),)))
    sink.close(LONG)
    assert (sink.errors, sink.dropped) == (0, 0)


class FakeRun:
    """A run that can hang, or be shared between processes."""

    def __init__(self, mode: str = "online") -> None:
        self.settings = type("Settings", (), {"mode": mode})
        self.rows: list[tuple[dict[str, float], dict[str, Any]]] = []
        self.hang = threading.Event()
        self.hang.set()

    @property
    def step(self) -> int:
        if self.settings.mode == "shared":
            raise RuntimeError("a shared run has no step")
        return max((how.get("step", 0) for _, how in self.rows), default=0)

    def define_metric(self, *_: object, **__: object) -> None:
        self.hang.wait()

    def log(self, row: dict[str, float], **how: Any) -> None:
        self.hang.wait()
        self.rows.append((row, how))


def test_rows_of_a_shared_run_have_no_step() -> None:
    run = FakeRun("shared")
    sink = WandbSink(run)
    for step in range(3):
        sink(small_report(step))
    sink.close(LONG)
    assert [how for _, how in run.rows] == [{}, {}, {}]


def test_a_wandb_that_hangs_holds_nobody_up_and_is_used_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    sink = WandbSink(run)
    flush = sink._worker.flush
    assert flush(LONG), "what it imports first is no report"
    run.hang.clear()
    monkeypatch.setattr(sink._worker, "flush", lambda _: pytest.fail("a call waits for nothing"))
    for step in range(400):
        sink(small_report(step))
    monkeypatch.undo()
    assert 400 - wandb_sink.CAPACITY - sink.dropped in (0, 1)
    run.hang.set()
    assert flush(LONG)
    sink(small_report(400))
    assert flush(LONG)
    assert run.rows[-1][0]["klmonitor/step"] == 400
    sink.close(LONG)


def test_a_run_that_was_finished_drops_reports_and_says_so_once(
    offline: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = offline()
    sink = WandbSink(run)
    run.finish()
    for step in range(3):
        sink(small_report(step))
    sink.close(LONG)
    assert (sink.errors, sink.dropped) == (0, 3)
    assert len(warnings_of(caplog)) == 1


def test_rows_that_wait_are_logged_before_the_run_is_finished(
    offline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = offline()
    sink = WandbSink()
    log = run.log

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.02)
        log(*args, **kwargs)

    monkeypatch.setattr(run, "log", slow)
    for step in range(1, 31):
        sink(small_report(step))
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    assert found.column("klmonitor/step") == list(range(1, 31))
    assert (sink.errors, sink.dropped) == (0, 0)


def test_a_slow_wandb_loses_no_row_of_a_trainer_that_passes_steps(
    offline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours come late again and again; its rows keep their steps, and all of ours arrive."""
    run = offline()
    sink = WandbSink()
    log, lock = run.log, threading.Lock()

    def ours(row: dict[str, Any], **kwargs: Any) -> None:
        if "klmonitor/step" in row:
            time.sleep(0.01 * (row["klmonitor/step"] % 4))
        with lock:
            log(row, **kwargs)

    monkeypatch.setattr(run, "log", ours)
    for n in range(1, 41):
        sink(small_report(n))
        time.sleep(0.012)
        run.log({"loss": n}, step=n)
    run.finish()
    found = read_wandb(Path(run.dir).parent)
    assert found.column("loss") == list(range(1, 41))
    assert [row["_step"] for row in found.rows if "loss" in row] == list(range(1, 41))
    assert sorted(set(found.column("klmonitor/step"))) == list(range(1, 41))
    assert sorted(set(found.column("kl/policy_ref/k1/mean"))) == list(range(1, 41))


def test_the_next_run_gets_what_is_reported_while_it_is_active(offline: Callable[..., Any]) -> None:
    first = offline()
    sink = WandbSink()
    for step in (1, 2):
        sink(make_report(step))
    first.finish()
    sink(make_report(3))
    second = offline()
    for step in (4, 5):
        alerts = (make_alert(step, kind=f"k{step}"),)
        sink(make_report(step, alerts=alerts))
    second.finish()
    rows = [read_wandb(Path(run.dir).parent) for run in (first, second)]
    assert [found.column("klmonitor/step") for found in rows] == [[1, 2], [4, 5]]
    assert [len(found.alerts) for found in rows] == [0, 2]
    assert (sink.errors, sink.dropped) == (0, 1)
    sink.close(LONG)


def test_the_record_holds_what_no_tracker_gets(tmp_path: Path) -> None:
    """Trackers get a choice without nan; the record gets everything."""
    pair = PairReport("policy_ref", {"k1/mean": 1.0, "k2/var": 2.0})
    report = Report(step=1, pairs={"policy_ref": pair})
    record, logger = RecordWriter(tmp_path), Logger()
    sinks = FanOut([record.step, logger])
    sinks(report)
    record.close(LONG)
    assert logger.rows == [(1, {"kl/policy_ref/k1/mean": 1.0})]
    [found] = read_run(tmp_path).reports
    assert found.scalars() == report.scalars()
