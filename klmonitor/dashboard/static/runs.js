// The starts of the run, the run before beside it, and how klmonitor itself fared.
"use strict";

(function () {
  const { el } = KLM;
  const METRICS = [["k1/mean", "mean k1, nats"], ["k3/mean", "mean k3, nats"], ["outliers/rate", "outliers per 10,000"], ["tokens", "tokens a step"]];
  const when = (seconds) => (seconds ? `${new Date(1000 * seconds).toISOString().slice(0, 16).replace("T", " ")} UTC` : "at an unknown time");

  // Over the steps that both have: their number, and of each metric both means and how often the second is larger.
  KLM.beside = function (one, other, pair) {
    const a = one.pairs[pair], b = other.pairs[pair];
    if (!a || !b) return null;
    const common = [];
    for (let i = 0, j = 0; i < one.steps.length && j < other.steps.length;) {
      if (one.steps[i] === other.steps[j]) common.push([i++, j++]);
      else if (one.steps[i] < other.steps[j]) i++; else j++;
    }
    const rows = METRICS.flatMap(([metric, name]) => {
      const x = a.metrics[metric], y = b.metrics[metric];
      if (!x || !y) return [];
      const both = common.filter(([i, j]) => !Number.isNaN(x[i]) && !Number.isNaN(y[j]));
      if (!both.length) return [];
      const mean = (of) => both.reduce((sum, ij) => sum + of(ij), 0) / both.length;
      return [{ name, steps: both.length, before: mean(([i]) => x[i]), now: mean(([, j]) => y[j]), larger: mean(([i, j]) => (y[j] > x[i] ? 1 : 0)) }];
    });
    return { first: common.length ? one.steps[common[0][0]] : null, last: common.length ? one.steps[common[common.length - 1][0]] : null, rows };
  };

  KLM.rooms.push(class extends KLM.Room {
    constructor(app) {
      super(app, {
        id: "starts", title: "Starts, and the run before",
        help: "When the run was started and went on from a checkpoint; and what another start in the same directory had at the same steps.",
      });
    }

    // The run that stands before this one in the list: an earlier start of the directory comes before it.
    before(run) {
      const i = this.app.names.indexOf(run.name);
      return i > 0 ? this.app.names[i - 1] : null;
    }

    async compare(run, other) {
      this.app.state.runs = [other, run.name];
      this.app.state.focus = run.name;
      await this.app.load();
      this.app.draw();
    }

    draw() {
      const shown = this.app.shown().map((each) => each.run), run = shown[shown.length - 1]; // the latest
      if (this.bare(run ? "" : "no run is shown")) return;
      const { pair } = this.app.state, other = this.before(run);
      const beside = other && shown.find((each) => each.name === other);
      if (this.same([run, beside, pair, other, run.steps.length])) return;
      const starts = run.starts.map((start) => el("li", { textContent: `${when(start.time)}${start.after === undefined || start.after === null ? "" : `, went on from the state after step ${start.after}`}` }));
      const parts = [starts.length ? el("ul", { className: "plain" }, ...starts) : el("p", { className: "why", textContent: "the record does not say when it was started" })];
      if (!other) {
        const hidden = run.earlier || 0;
        parts.push(el("p", { className: "why", textContent: hidden
          ? `${hidden} earlier start${hidden === 1 ? "" : "s"} in this directory: klmonitor serve and report show ${hidden === 1 ? "it" : "them"} with --earlier`
          : "no run before it is shown: give several run directories, or --earlier where one was started again" }));
      } else if (!beside) {
        parts.push(el("button", { type: "button", textContent: `compare with the run before, ${KLM.visible(other)}`, onclick: () => this.compare(run, other) }));
      } else {
        const found = KLM.beside(beside, run, pair);
        if (!found || !found.rows.length) parts.push(el("p", { className: "why", textContent: `no data because ${KLM.visible(other)} and ${KLM.visible(run.name)} have no step of this pair in common` }));
        else {
          parts.push(el("p", { textContent: `Means over the steps ${found.first} to ${found.last} that both have:` }), KLM.sideways(el("table", {},
            el("thead", {}, el("tr", {}, ...["", KLM.visible(other), KLM.visible(run.name), "steps", "larger now"].map((name) => el("th", { textContent: name, scope: "col" })))),
            el("tbody", {}, ...found.rows.map((row) => el("tr", {}, el("th", { scope: "row", textContent: row.name }), ...[KLM.number(row.before), KLM.number(row.now), row.steps, `${Math.round(100 * row.larger)} %`].map((text) => el("td", { textContent: String(text) })))))), "The run before"));
        }
      }
      this.body.replaceChildren(...parts);
    }
  });

  KLM.rooms.push(class extends KLM.Room {
    constructor(app) {
      super(app, {
        id: "health", title: "Health of klmonitor",
        help: "What failed and was caught, what was dropped, and steps at which not everything was captured. Numbers there may be of fewer tokens.",
      });
    }

    draw() {
      const one = this.app.focused(), run = one && one.run;
      const health = run && run.health;
      if (this.same([run, health && health.length])) return;
      if (this.bare(health && health.length ? "" : "this host's rows do not say how klmonitor fared; the run's own record does")) return;
      const last = health[health.length - 1], troubled = health.filter((each) => each.errors || each.dropped || !each.active);
      const steps = run.steps.length ? `steps ${run.steps[0]} to ${run.steps[run.steps.length - 1]}` : "no step";
      const sum = el("p", { className: troubled.length ? "cause impossible" : "cause", textContent: troubled.length
        ? `${last.errors} errors caught, ${last.dropped} rows or messages dropped, ${last.active ? "everything is captured now" : "not everything is captured"} (${steps})`
        : `No error was caught, nothing was dropped, everything was captured (${steps}).` });
      const rows = health.slice(-50).map((each) => el("tr", {}, ...[each.step, each.errors, each.dropped, each.active ? "yes" : "no"].map((text) => el("td", { textContent: String(text) }))));
      this.body.replaceChildren(sum, ...(troubled.length ? [el("table", {}, el("thead", {}, el("tr", {}, ...["from step", "errors", "dropped", "all captured"].map((name) => el("th", { textContent: name, scope: "col" })))), el("tbody", {}, ...rows))] : []));
    }
  });
})();
