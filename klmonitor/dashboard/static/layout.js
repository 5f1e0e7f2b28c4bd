// The page's furniture: the bar with its controls, what is beside the panels, and what is chosen in them.
"use strict";

(function () {
  const { el } = KLM;
  const KEYS = "← → step · Shift ten steps · n p next, previous alert · + - zoom · 0 all · l log x · d dark";

  KLM.build = function (app) {
    const control = (label, node) => el("label", {}, `${label} `, node);
    const button = (text, label, does) => el("button", { type: "button", textContent: text, title: label, ariaLabel: label, onclick: does });
    app.title = el("h1", { textContent: "KL" });
    app.runBox = el("details", { className: "runs" }, el("summary", { textContent: "runs" }));
    app.pairBox = el("select", { onchange: () => app.set({ pair: app.pairBox.value }) });
    app.groupBox = el("select", { onchange: () => app.set({ group: app.groupBox.value }) });
    app.levelBox = el("select", { ariaLabel: "per token or per sequence", onchange: () => app.set({ level: app.levelBox.value }) },
      el("option", { value: "token", textContent: "per token" }), el("option", { value: "sequence", textContent: "per sequence" }));
    app.logBox = el("input", { type: "checkbox", onchange: () => app.set({ log: app.logBox.checked }) });
    app.status = el("span", { className: "status", role: "status" });
    app.bar = el("header", { className: "bar" }, app.title, app.runBox,
      control("pair", app.pairBox), control("group", app.groupBox), control("", app.levelBox), control("log x", app.logBox),
      el("span", { className: "tools" },
        button("◀", "previous alert", () => app.nextAlert(-1)), button("▶", "next alert", () => app.nextAlert(1)),
        button("+", "zoom in", () => app.zoomBy(0.5)), button("−", "zoom out", () => app.zoomBy(2)),
        button("all", "show all steps", () => app.zoom(null)), button("◐", "dark or light", () => app.flipTheme())),
      app.status);
    app.absent = el("p", { className: "why", hidden: true, textContent:
      'No run with klmonitor data is here. In TensorBoard: klmonitor.attach(trainer, sinks=["tensorboard"]) or TensorBoardSink writes them. A run\'s own record is shown by: klmonitor serve RUN' });
    app.remarks = el("p", { className: "why", hidden: true });
    app.glanceBox = el("div", {});
    app.notes = el("div", { className: "notes" }, app.glanceBox, app.absent, app.remarks);
    app.alertBox = el("ul", { className: "alerts" });
    app.verdict = el("pre", { className: "verdict" });
    app.tokenBox = el("div", {});
    app.tokenTitle = el("h2", { textContent: "Extreme tokens" });
    app.tip = el("div", { className: "tip", role: "tooltip", hidden: true });
    app.alertTitle = el("h2", { textContent: "Alerts" });
    const side = el("aside", {},
      el("section", { className: "told" }, el("h2", { textContent: "Verdict at the cursor" }), app.verdict),
      el("section", {}, app.alertTitle, app.alertBox));
    const table = el("section", { className: "panel wide", id: "panel-tokens" }, el("header", {}, app.tokenTitle),
      el("p", { className: "help", textContent: "The tokens that weigh most in k1 or k3 at the cursor's step, the heaviest first. d < 0 is heavy in k1, d > 0 in k3." }), app.tokenBox);
    table.setAttribute("aria-label", "Extreme tokens at the cursor");
    document.body.append(el("div", { id: "klm" }, app.bar, app.notes,
      el("main", {}, el("div", { className: "grid" }, ...app.charts.map((chart) => chart.node), ...app.rooms.map((room) => room.node), table), side),
      el("footer", { textContent: KEYS }), app.tip));
    document.addEventListener("keydown", (event) => app.key(event));
    addEventListener("hashchange", () => { app.state = KLM.readAddress(); app.pinned = app.state.step !== null; app.draw(); });
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; app.draw(); } });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.draw());
    if (app.source.summary) {
      app.notes.append(el("details", { open: true }, el("summary", { textContent: "Summary" }),
        el("pre", { className: "summary", textContent: app.source.summary.split("\n").map(KLM.visibleLong).join("\n") })));
    }
    if (typeof uPlot === "undefined") {
      app.notes.append(el("p", { className: "why", textContent:
        "The charts are not drawn: this installation lacks uPlot, which npm fetches when klmonitor is built. Install a wheel (pip install klmonitor), or install npm and build again (pip install .); alerts, verdicts and tokens are shown all the same." }));
    }
  };

  // The runs by name, in the bar and as the window's title.
  function named(app, runs) {
    const names = runs.map(({ run }) => KLM.visible(run.name)).join(", ");
    app.title.replaceChildren("KL ", el("span", { textContent: names }));
    document.title = names ? `${names} · klmonitor` : "klmonitor";
  }

  KLM.selectors = function (app) {
    const runs = app.shown();
    named(app, runs);
    app.glanceBox.replaceChildren(...KLM.glance(app));
    const pairs = [...new Set(app.runs.flatMap((run) => Object.keys(run.pairs)))].sort();
    if (!app.state.pair && pairs.length) app.state.pair = pairs.includes("policy_ref") ? "policy_ref" : pairs[0];
    const options = (box, values, chosen, name = (v) => v) => {
      const all = values.includes(chosen) || !chosen ? values : [...values, chosen];
      box.replaceChildren(...all.map((v) => el("option", { value: v, textContent: KLM.visible(name(v)), selected: v === chosen })));
    };
    options(app.pairBox, pairs, app.state.pair);
    const groups = new Set();
    for (const { pair } of runs) for (const m of Object.keys(pair ? pair.metrics : {})) if (m.startsWith("group/")) groups.add(m.slice(6).replace(/\/k[13]\/(mean|se)$/, ""));
    options(app.groupBox, ["", ...[...groups].sort()], app.state.group, (v) => v || "all");
    app.groupBox.parentElement.hidden = !groups.size && !app.state.group;
    app.levelBox.value = app.state.level;
    app.logBox.checked = app.state.log;
    app.runBox.hidden = app.names.length < 2;
    app.runBox.replaceChildren(el("summary", { textContent: `runs: ${runs.length} of ${app.names.length}` }), ...app.names.map((name, i) =>
      el("label", {}, el("input", { type: "checkbox", checked: app.selected(i), onchange: (event) => app.choose(i, event.target.checked) }), KLM.visible(name))));
  };
})();
