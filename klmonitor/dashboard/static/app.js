// The page: what is selected (kept in the address), the panels, and what came since.
"use strict";

(function () {
  const { el } = KLM;

  class App {
    constructor(source) {
      this.source = source;
      this.state = KLM.readAddress();
      this.names = [];
      this.runs = [];
      this.pinned = this.state.step !== null;
      this.charts = KLM.panels.map((panel) => new KLM.Chart(panel, this));
      this.rooms = KLM.rooms.map((Room) => new Room(this));
      KLM.build(this);
    }

    // --- what the panels ask -----------------------------------------------------------------
    shown() {
      return this.runs.filter((_, i) => this.selected(i)).map((run) => ({ run, pair: run.pairs[this.state.pair] || null }));
    }

    // The run of the heat map, the verdict and the tokens: an alert's own, else the first shown.
    focused() {
      const shown = this.shown();
      return shown.find((one) => one.run.name === this.state.focus) || shown.find((one) => one.pair) || shown[0];
    }

    // The spike rule's threshold of the focused run: {z: null where it was off, known}.
    spike() { const focused = this.focused(); return focused ? focused.run.spike : { z: null, known: true }; }

    // Until somebody chooses, as many as can be told apart.
    selected(i) { return this.state.runs === null ? i < KLM.DASHES.length : this.state.runs.includes(this.names[i]); }

    full() {
      const ends = this.shown().filter((one) => one.run.steps.length).map(({ run }) => [run.steps[0], run.steps[run.steps.length - 1]]);
      if (!ends.length) return [0, 1];
      const low = Math.min(...ends.map((e) => e[0])), high = Math.max(...ends.map((e) => e[1]));
      const range = high > low ? [low, high] : [low - 0.5, high + 0.5];
      return this.state.log ? [Math.max(range[0], 1), Math.max(range[1], 2)] : range;
    }

    range() {
      const range = this.state.range || this.full();
      return this.state.log ? [Math.max(range[0], 1), Math.max(range[1], 2)] : range;
    }

    // The alerts of what is shown, by step; the same list as long as nothing else is shown.
    alerts() {
      const shown = this.shown(), { pair } = this.state, listed = this.listed;
      if (listed && listed.pair === pair && listed.runs.length === shown.length && shown.every((one, i) => one.run === listed.runs[i])) return listed.alerts;
      const several = shown.length > 1;
      const alerts = shown.flatMap(({ run }) => run.alerts
        .filter((alert) => alert.phase !== "end" && (alert.pair === null || alert.pair === pair))
        .map((alert) => ({ ...alert, run: run.name, runName: several ? run.name : "" })))
        .sort((a, b) => a.step - b.step);
      this.listed = { pair, runs: shown.map((one) => one.run), alerts };
      return alerts;
    }

    // --- what changes it ---------------------------------------------------------------------
    seek(step, pin) {
      if (!pin && this.pinned) return;
      const one = this.shown().find((each) => each.run.steps.length);
      if (!one) return;
      const found = one.run.steps[KLM.nearestRow(one.run.steps, step)];
      if (pin) this.pinned = this.state.step !== found || !this.pinned;
      if (found === this.state.step && !pin) return;
      this.state.step = found;
      this.later("cursor");
    }

    // A step that is looked for: pinned, and in view.
    goTo(step, run = this.state.focus) {
      const [low, high] = this.range();
      const runs = run !== this.state.focus;
      const inView = step >= low && step <= high && !runs;
      this.pinned = true;
      Object.assign(this.state, { step, focus: run });
      if (step < low || step > high) this.state.range = [step - (high - low) / 2, step + (high - low) / 2];
      this.later(inView ? "cursor" : runs ? "draw" : "update");
    }

    zoom(range) {
      const [low, high] = this.full();
      if (range && range[1] - range[0] < 1) return;
      const to = range && [Math.max(range[0], low), Math.min(range[1], high)];
      this.state.range = to && to[1] - to[0] < high - low ? to : null;
      this.later("update");
    }

    zoomBy(factor) {
      const [low, high] = this.range();
      const middle = this.state.step !== null && this.state.step >= low && this.state.step <= high ? this.state.step : (low + high) / 2;
      const half = Math.max(((high - low) / 2) * factor, 1);
      this.zoom([middle - half, middle + half]);
    }

    move(by) {
      const one = this.shown().find((each) => each.run.steps.length);
      if (!one) return;
      const { steps } = one.run;
      const row = this.state.step === null ? steps.length - 1 : KLM.nearestRow(steps, this.state.step) + by;
      this.goTo(steps[Math.min(Math.max(row, 0), steps.length - 1)]);
    }

    nextAlert(by) {
      const alerts = this.alerts();
      const from = this.state.step ?? -Infinity;
      const next = by > 0 ? alerts.find((a) => a.step > from) : alerts.findLast((a) => a.step < from);
      if (next) this.goTo(next.step, next.run);
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      if (/^Arrow/.test(event.key) && event.target.closest(".scroll")) return; // they scroll the box
      const far = event.shiftKey ? 10 : 1;
      const does = {
        ArrowLeft: () => this.move(-far), ArrowRight: () => this.move(far),
        n: () => this.nextAlert(1), p: () => this.nextAlert(-1),
        "+": () => this.zoomBy(0.5), "=": () => this.zoomBy(0.5), "-": () => this.zoomBy(2), 0: () => this.zoom(null),
        l: () => this.set({ log: !this.state.log }), d: () => this.flipTheme(),
      }[event.key];
      if (does) { event.preventDefault(); does(); }
    }

    set(change) {
      Object.assign(this.state, change);
      this.draw();
    }

    flipTheme() {
      const dark = this.state.theme ? this.state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      this.set({ theme: dark ? "light" : "dark" });
    }

    // --- drawing -----------------------------------------------------------------------------
    async choose(i, on) {
      const now = this.names.filter((_, j) => this.selected(j));
      this.state.runs = on ? [...now, this.names[i]] : now.filter((name) => name !== this.names[i]);
      await this.load();
      this.draw();
    }

    // What is to be drawn again, at the next frame and once: "cursor", "update" or "draw".
    later(what) {
      const rank = ["cursor", "update", "draw"];
      const waits = this.due !== undefined;
      if (!waits || rank.indexOf(what) > rank.indexOf(this.due)) this.due = what;
      if (!waits) requestAnimationFrame(() => { const due = this.due; this.due = undefined; this[due](); });
    }

    draw() {
      KLM.freshInks();
      this.verdict.style.minHeight = "";
      if (this.state.theme) document.documentElement.dataset.theme = this.state.theme;
      else delete document.documentElement.dataset.theme;
      KLM.selectors(this);
      for (const chart of this.charts) chart.draw();
      this.listAlerts();
      this.cursor();
    }

    // Other data or another range of the same selection.
    update() {
      for (const chart of this.charts) chart.stale = true;
      for (const chart of this.charts.filter((one) => one.inView())) chart.update();
      this.listAlerts();
      this.cursor();
      this.catchUp();
    }

    // The panels that are scrolled out of sight follow, one a frame.
    catchUp() {
      if (this.catching) return;
      this.catching = requestAnimationFrame(() => {
        this.catching = 0;
        const chart = this.charts.find((one) => one.stale);
        if (!chart) return;
        chart.update();
        this.catchUp();
      });
    }

    listAlerts() {
      const alerts = this.alerts();
      if (alerts === this.inList) return;
      this.inList = alerts;
      this.alertTitle.textContent = `Alerts: ${KLM.alertCount(alerts)}`;
      const items = alerts.map((alert) => KLM.alertItem(alert, () => this.goTo(alert.step, alert.run)));
      this.alertBox.replaceChildren(...(items.length ? items : [el("li", { className: "why", textContent: "none at the selected runs and pair" })]));
    }

    // The x axis that all panels of a width share.
    sample(columns) {
      const runs = this.shown().map((one) => one.run);
      const key = [columns, ...this.range(), this.state.log];
      const same = this.sampled && this.sampled.runs.length === runs.length && runs.every((run, i) => run === this.sampled.runs[i])
        && key.every((part, i) => part === this.sampled.key[i]);
      if (!same) this.sampled = { runs, key, sample: KLM.sample(runs, this.range(), columns, this.state.log) };
      return this.sampled.sample;
    }

    cursor() {
      for (const chart of this.charts) { chart.moveCursor(); chart.values(); }
      for (const room of this.rooms) if (room.draw) room.draw();
      KLM.writeAddress(this.state, this.pinned);
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.explain(), 40);
    }

    async explain() {
      if (this.due !== undefined) return; // never ahead of the panels: the frame that is due asks again
      const { step, pair } = this.state;
      const focused = this.focused();
      const i = focused ? this.runs.indexOf(focused.run) : -1;
      if (step === null || i < 0) {
        this.verdict.textContent = "move over a panel, or press an arrow key";
        this.tokenBox.replaceChildren(el("p", { className: "why", textContent: "no step is under the cursor" }));
        return;
      }
      let details = null;
      try { details = await this.source.step(i, step); } catch (error) { this.status.textContent = `no answer: ${error.message}`; }
      if (step !== this.state.step || pair !== this.state.pair) return;
      const of = this.shown().length > 1 ? ` of ${KLM.visible(focused.run.name)}` : "";
      this.verdict.style.minHeight = `${Math.max(parseFloat(this.verdict.style.minHeight) || 0, this.verdict.offsetHeight)}px`; // what stands below does not jump
      this.tokenTitle.textContent = `Extreme tokens at step ${step}${of}`;
      this.verdict.textContent = details ? details.explain[pair] || `step ${step}: no tokens of this pair were counted`
        : `step ${step}: this file holds the verdicts on chosen steps only; klmonitor serve gives every step's`;
      this.tokenBox.replaceChildren(KLM.tokenTable(details, pair, focused.run.why_no_text));
      for (const room of this.rooms) if (room.told) room.told(details, step, focused.run);
    }

    hint(alerts, event) {
      this.tip.hidden = !alerts;
      if (!alerts) return;
      this.tip.textContent = alerts.map(KLM.alertText).join("\n\n");
      this.tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 340)}px`;
      this.tip.style.top = `${Math.min(event.clientY + 14, innerHeight - 160)}px`;
    }

    // --- data --------------------------------------------------------------------------------
    async load() {
      const overview = await this.source.overview();
      let changed = overview.runs.length !== this.names.length;
      this.absent.hidden = overview.runs.length > 0;
      this.names = overview.runs;
      await Promise.all(this.names.map(async (name, i) => {
        const had = this.runs[i];
        this.runs[i] = had || KLM.emptyRun(name);
        if (!this.selected(i)) return;
        const now = await this.source.run(i, this.runs[i]);
        this.runs[i] = now;
        changed = changed || !had || had.steps.length !== now.steps.length || had.alerts.length !== now.alerts.length || had.generation !== now.generation;
      }));
      this.remark();
      return changed;
    }

    // What there is to know of the records themselves: lines that were skipped, rows that were lost.
    remark() {
      const several = this.names.length > 1;
      const found = this.shown().flatMap(({ run }) => (run.remarks || []).map((text) => (several ? `${run.name}: ${text}` : text)));
      this.remarks.hidden = !found.length;
      this.remarks.textContent = found.map(KLM.visibleLong).join("; ");
    }

    async poll() {
      try {
        if (!document.hidden && (await this.load())) {
          KLM.selectors(this);
          this.later("update");
        }
        this.status.textContent = `live, ${this.shown().map((one) => one.run.steps.length).join(" + ") || 0} steps`;
      } catch (error) {
        this.status.textContent = `the host does not answer: ${error.message}`;
      }
      setTimeout(() => this.poll(), this.source.every);
    }

    // Where to look first: the first alert, else the last step.
    lookFirst() {
      const alert = this.alerts().find((one) => one.phase !== "note" && !one.muted), focused = this.focused();
      if (alert) Object.assign(this.state, { step: alert.step, focus: alert.run });
      else if (focused && focused.run.steps.length) this.state.step = focused.run.steps[focused.run.steps.length - 1];
    }

    async begin() {
      try { await this.load(); } catch (error) { this.status.textContent = `the host does not answer: ${error.message}`; }
      KLM.selectors(this);
      if (this.state.step === null) this.lookFirst();
      this.draw();
      document.documentElement.dataset.ready = "1";
      if (this.source.every) this.poll();
    }
  }

  KLM.start = function (source) {
    KLM.app = new App(source);
    return KLM.app.begin();
  };

  // A file carries its data; a page of ours says where they are served; TensorBoard starts by itself.
  const data = document.getElementById("klm-data");
  const { api } = document.body.dataset;
  if (data) KLM.start(KLM.embedded(JSON.parse(data.textContent)));
  else if (api) KLM.start(KLM.live(api));
})();
