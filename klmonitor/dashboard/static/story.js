// The story of each event on the pair: where it began, how it went on, how it ended, and what to do.
"use strict";

(function () {
  const { el } = KLM;
  const SEVERITIES = ["info", "warn", "critical"], MOST = 40;

  // Events of a pair (and of the run), newest first: {opened, parts: [alert], ends: [alert], severity}.
  KLM.stories = function (alerts, pair) {
    const found = new Map();
    const open = new Map();
    for (const alert of alerts) {
      if (alert.phase === "note" || (alert.pair !== null && alert.pair !== pair)) continue;
      const since = alert.phase === "open" ? alert.step : alert.since || alert.step;
      const mine = (kind) => open.get(`${alert.pair}/${kind}`);
      if (alert.phase === "end") {
        const story = mine(alert.kind);
        if (!story) continue;
        open.delete(`${alert.pair}/${alert.kind}`);
        story.ends.push(alert);
        continue;
      }
      const key = `${alert.pair}/${since}`;
      let story = found.get(key) || (alert.phase === "worse" ? mine(alert.kind) : null);
      if (!story) {
        story = { opened: since, pair: alert.pair, parts: [], ends: [], kinds: new Set(), severity: 0 };
        found.set(key, story);
      }
      story.parts.push(alert);
      story.severity = Math.max(story.severity, SEVERITIES.indexOf(alert.severity));
      for (const kind of alert.kinds || [alert.kind]) {
        story.kinds.add(kind);
        open.set(`${alert.pair}/${kind}`, story);
      }
    }
    const stories = [...found.values()];
    for (const story of stories) {
      const left = new Set([...open].filter(([, one]) => one === story).map(([key]) => key.slice(key.indexOf("/") + 1)));
      story.open = left.size > 0;
      story.last = Math.max(...[...story.parts, ...story.ends].map((one) => one.step));
      story.muted = story.parts.every((one) => one.muted);
    }
    return stories.reverse();
  };

  KLM.rooms.push(class extends KLM.Room {
    constructor(app) {
      super(app, {
        id: "story", title: "Story of each alert", wide: true,
        help: "One event is told once and then continued: where it began, got worse and ended, and what to do first. A tick goes to its step.",
      });
    }

    draw() {
      const one = this.app.focused(), { pair, step } = this.app.state;
      const run = one && one.run, alerts = run ? run.alerts : [];
      if (!this.same([alerts, pair, run && run.steps.length, alerts.length])) {
        this.stories = KLM.stories(alerts, pair);
        const range = run && run.steps.length ? [run.steps[0], run.steps[run.steps.length - 1]] : [0, 1];
        this.opened = null;
        this.items = this.stories.slice(0, MOST).map((story) => this.item(story, range, run));
        this.node.classList.toggle("nodata", !this.items.length);
        this.body.replaceChildren(...(this.items.length ? [el("ol", { className: "stories" }, ...this.items)]
          : [el("p", { className: "why", textContent: `no alert was told of ${pair ? KLM.visible(pair) : "any pair"}` })]));
        this.legend.textContent = this.stories.length > MOST ? `the newest ${MOST} of ${this.stories.length} events; the list of alerts has all` : "";
      }
      this.stories.slice(0, MOST).forEach((story, i) => {
        const here = step !== null && step >= story.opened && step <= (story.open ? Infinity : story.last);
        this.items[i].classList.toggle("here", here);
        if (here && this.opened !== i) { this.opened = i; this.items[i].firstChild.open = true; }
      });
    }

    item(story, [low, high], run) {
      const go = (alert) => () => this.app.goTo(alert.step, run.name);
      const at = (step) => `${(100 * (step - low)) / Math.max(high - low, 1)}%`;
      const severity = SEVERITIES[story.severity], sign = story.muted ? "◆" : { info: "◆", warn: "▽", critical: "▼" }[severity];
      const kinds = [...story.kinds].map(KLM.visible).join(", ");
      const end = story.open ? "open" : `ended at step ${story.last}`;
      const line = el("div", { className: "line" });
      const span = el("i", { className: "span" });
      span.style.left = at(story.opened);
      span.style.right = story.open ? "0" : `calc(100% - ${at(story.last)})`;
      line.append(span, ...story.parts.map((alert) => {
        const tick = el("button", { type: "button", title: `step ${alert.step}`, ariaLabel: `${alert.kind} at step ${alert.step}`, onclick: go(alert) });
        tick.style.left = at(alert.step);
        return tick;
      }));
      const told = story.parts[story.parts.length - 1];
      const lines = told.lines.filter(([label]) => label !== "since" && label !== "muted");
      const rows = [...story.parts, ...story.ends].sort((a, b) => a.step - b.step).map((alert) => el("li", {},
        el("button", { type: "button", className: "link", textContent: `step ${alert.step}`, onclick: go(alert) }),
        ` ${alert.phase === "open" ? "opened" : alert.phase === "worse" ? "went on" : `${KLM.visible(alert.kind)} ended`}${alert.phase === "end" ? "" : ` (${alert.severity}${alert.muted ? ", muted" : ""}): ${KLM.visibleLong(alert.message)}`}`));
      return el("li", { className: `story ${story.muted ? "info" : severity}` },
        el("details", {}, el("summary", {}, `${sign} ${kinds}${story.pair ? "" : ", of the run"} · from step ${story.opened}, ${story.parts.length > 1 ? `told ${story.parts.length} times, ` : ""}${end}`), line,
          el("ul", {}, ...rows),
          el("dl", {}, ...lines.flatMap(([label, text]) => [el("dt", { textContent: label }), el("dd", { textContent: KLM.visibleLong(text) })]))));
    }
  });
})();
