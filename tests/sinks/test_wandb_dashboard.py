"""The workspace that is sent to wandb's server, caught at the wire; nothing leaves the machine."""

import base64
import contextlib
import io
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from klmonitor.cli import main
from klmonitor.numbers.metrics import CORE, NAMES
from klmonitor.pairs import PAIR_INDEX
from klmonitor.sinks.panels import INKS, PANELS

wandb = pytest.importorskip("wandb")
pytest.importorskip("wandb_workspaces")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KEY = "k" * 40


class Wandb(ThreadingHTTPServer):
    """Answers as wandb's server does: who is asking, and that a view was saved."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.entity = "me"
        self.status = 200
        self.keys = set()
        self.saved = []

    @property
    def spec(self):
        [variables] = self.saved
        return json.loads(variables["spec"])

    def sections(self):
        """Title -> [(panel's title, its metrics or media, x)], as sent."""
        found = {}
        for section in self.spec["section"]["panelBankConfig"]["sections"]:
            panels = [panel["config"] for panel in section["panels"]]
            found[section["name"]] = [
                (
                    panel["chartTitle"],
                    tuple(panel.get("metrics") or panel["mediaKeys"]),
                    panel.get("xAxis"),
                )
                for panel in panels
            ]
        return found


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            self.send_error(404)
            return
        question = json.loads(body)
        variables = question.get("variables") or {}
        if "upsertView" in question["query"]:
            self.server.saved.append(variables)
            data = {"upsertView": {"view": {"id": "x", "name": variables["name"]}}}
        else:
            viewer = {"id": "x", "entity": self.server.entity, "username": "me", "flags": "{}"}
            data = {"viewer": {**viewer, "teams": {"edges": []}}}
        authorization = self.headers["Authorization"].removeprefix("Basic ")
        self.server.keys.add(base64.b64decode(authorization).decode())
        reply = json.dumps({"data": data}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *words):
        pass


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A machine on which nobody has set up wandb."""
    wandb.teardown()
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()


@pytest.fixture
def server(alone, monkeypatch):
    with Wandb() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
        server.shutdown()
        thread.join()


def test_the_workspace_has_the_pages_panels_in_the_pages_order(server, capsys):
    assert main(["wandb-dashboard", "team/math"]) == 0
    [variables] = server.saved
    assert (variables["entityName"], variables["projectName"]) == ("team", "math")
    assert variables["displayName"] == "klmonitor"
    assert server.keys == {f"api:{KEY}"}
    sections = server.sections()
    assert list(sections) == [*(f"kl/{pair}" for pair in PAIR_INDEX), "kl"]
    order = [panel.title for panel in PANELS]
    for pair in PAIR_INDEX:
        titles = [title for title, _, _ in sections[f"kl/{pair}"]]
        assert titles == [title for title in order if title in titles]
        drawn = {name for title, names, _ in sections[f"kl/{pair}"] for name in names}
        assert drawn == {f"kl/{pair}/{name}" for name in {*CORE, "log_ratio"}}
        assert {x for _, _, x in sections[f"kl/{pair}"]} == {"klmonitor/step"}
    media = {title: names for title, names, _ in sections["kl"]}
    assert media == {
        "Extreme tokens": ("kl/extreme_tokens",),
        "Alerts opened": ("kl/alerts",),
        "Report": ("klmonitor/report",),
    }
    said = capsys.readouterr().out
    assert f"{server.server_port}/team/math?nw=" in said
    assert f"{sum(len(panels) for panels in sections.values())} panels" in said


def test_nothing_is_smoothed_and_no_extreme_is_dropped(server):
    main(["wandb-dashboard", "team/math", "--pair", "old_ref", "--metrics", "full"])
    by_title = {
        panel["config"]["chartTitle"]: panel["config"]
        for section in server.spec["section"]["panelBankConfig"]["sections"]
        for panel in section["panels"]
    }
    lines = [one for title, one in by_title.items() if "Share" in title or "Spike" in title]
    assert len(lines) == 2
    for panel in lines:
        assert panel["smoothingType"] == "none"
        assert panel["ignoreOutliers"] is False
        assert panel["pointVisualizationMethod"] == "bucketing-gorilla"
    assert by_title["Variance, and running variance"]["yLogScale"] is True
    full = {
        name.removeprefix("kl/old_ref/")
        for _, names, _ in server.sections()["kl/old_ref"]
        for name in names
    }
    assert full - {"log_ratio"} <= set(NAMES)
    assert list(by_title)[: len(PANELS)] == [panel.title for panel in PANELS]


def test_what_the_trainer_logs_is_found_under_its_prefix(server):
    main(["wandb-dashboard", "team/math", "--pair", "policy_ref", "--prefix", "train/"])
    [estimators, *_] = server.sections()["kl/policy_ref"]
    means = tuple(f"train/kl/policy_ref/{k}/mean" for k in INKS)
    assert estimators == ("Estimators", means, "train/global_step")
    heat = next(panel for panel in server.sections()["kl/policy_ref"] if "log-ratio" in panel[0])
    assert heat[1:] == (("kl/policy_ref/log_ratio",), "klmonitor/step")


def test_a_named_runs_lines_have_the_pages_colours(server):
    main(["wandb-dashboard", "team/math", "--pair", "policy_ref", "--run-id", "abc123"])
    config = server.spec["section"]["panelBankConfig"]["sections"][0]["panels"][0]["config"]
    colours = {line: ink["color"] for line, ink in config["overrideColors"].items()}
    assert colours == {f"abc123:kl/policy_ref/{k}/mean": ink for k, ink in INKS.items()}
    assert config["overrideSeriesTitles"]["abc123:kl/policy_ref/k1/mean"] == "k1/mean"


def test_without_an_entity_it_is_the_default_one(server, monkeypatch):
    main(["wandb-dashboard", "math", "--pair", "policy_ref"])
    monkeypatch.setenv("WANDB_ENTITY", "ours")
    main(["wandb-dashboard", "math", "--pair", "policy_ref"])
    assert [saved["entityName"] for saved in server.saved] == ["me", "ours"]


def test_a_dry_run_says_it_all_and_asks_nobody(alone, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    arguments = ["math", "--pair", "policy_ref", "--prefix", "train/", "--dry-run"]
    assert main(["wandb-dashboard", *arguments]) == 0
    said = capsys.readouterr().out
    assert "(your default entity)/math, over train/global_step; nothing is made" in said
    for name in CORE:
        assert f"train/kl/policy_ref/{name}" in said
    for name in ("kl/policy_ref/log_ratio", "kl/extreme_tokens", "klmonitor/report"):
        assert f" {name}" in said


def refusal(*arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(["wandb-dashboard", *arguments]) == 2
    [message] = said.getvalue().splitlines()
    assert message.startswith("klmonitor wandb-dashboard: ")
    return message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a/b/c"], "'a/b/c' is no project: give PROJECT or ENTITY/PROJECT"),
        (["/b"], "give PROJECT or ENTITY/PROJECT"),
        (["a/"], "give PROJECT or ENTITY/PROJECT"),
        (["a/b", "--pair", "ref"], "unknown pair 'ref': choose from policy_ref"),
        (["a/b", "--metrics", "cor"], "metrics: 'cor' matches no metric"),
    ],
)
def test_wrong_arguments_are_one_line(alone, arguments, said):
    assert said in refusal(*arguments)


def test_without_a_key_nobody_is_asked_for_one(alone, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "wandb has no key: run `wandb login`, or set WANDB_API_KEY" in refusal("me/math")


@pytest.mark.parametrize("missing", ["wandb", "wandb_workspaces"])
def test_a_missing_package_names_the_extra(alone, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert f'{missing} is missing: pip install "klmonitor[wandb]"' in refusal("me/math")


def test_no_default_entity_is_one_line(server):
    server.entity = None
    assert "wandb knows no default entity: give ENTITY/PROJECT" in refusal("math")
    assert server.saved == []


def test_a_server_that_refuses_is_one_line(server):
    server.status = 403
    assert "wandb did not save it: " in refusal("team/math")
