// One panel: a uPlot chart or the heat map, with rules for alerts and the shared cursor.
"use strict";

(function () {
  const MOST_COLUMNS = 480; // least and largest of each are drawn: enough for the widest panel

  function faded(colour, alpha) {
    const n = parseInt(colour.slice(1), 16);
    return `rgba(${n >> 16},${(n >> 8) & 255},${n & 255},${alpha})`;
  }

  // app: {state, shown(): [{run, pair}], range(): [x0, x1], seek(step), zoom(range), alerts()}.
  KLM.Chart = class {
    constructor(panel, app) {
      this.panel = panel;
      this.app = app;
      this.plot = null;
      this.markStep = KLM.el("b");
      this.mark = KLM.el("div", { className: "mark" }, this.markStep);
      Object.assign(this, KLM.frame({ ...panel, unit: "", tools: [
        ["PNG", "save as PNG", () => KLM.savePng(this)],
        ["CSV", "save as CSV", () => KLM.saveCsv(this)],
      ] }));
    }

    // Every line of every shown run: {line, at: index of the run, dash, label, get: its column or null}.
    // Of several runs no bands lie over one another: of those that are the picture the edges are left.
    lines(all = false) {
      const shown = this.app.shown(), several = shown.length > 1;
      return shown.flatMap((one, at) => this.panel.lines(this.app.state).filter((line) => all || !several || !line.band || line.edge).map((line) => ({
        line, at, dash: KLM.DASHES[at % KLM.DASHES.length], bare: several,
        label: several ? `${KLM.visible(one.run.name)}: ${line.name}` : line.name,
        get: (how) => {
          const of = how || line.get;
          return one.pair && of ? KLM.column(one.pair.metrics, of) : null;
        },
      })));
    }

    empty() {
      const shown = this.app.shown();
      if (!shown.length) return "no run is selected";
      if (!shown.some((one) => one.pair)) return KLM.whyNoPair(this.app.state.pair);
      const has = this.panel.axis === "heat"
        ? this.app.focused().pair !== null && this.app.focused().pair.heat.some((value) => value)
        : this.lines().some((one) => {
          const column = one.get(one.line.band ? one.line.low : null);
          return column !== null && column.least.some((row) => row >= 0);
        });
      return has ? "" : this.panel.why(this.app.state);
    }

    inView() {
      const { top, bottom } = this.node.getBoundingClientRect();
      return bottom > 0 && top < innerHeight;
    }

    draw() {
      this.stale = false;
      this.unit.textContent = this.panel.unit(this.app.state);
      const why = this.empty();
      if (this.plot) { this.plot.destroy(); this.plot = null; }
      this.body.replaceChildren();
      this.legend.replaceChildren();
      this.node.classList.toggle("nodata", Boolean(why));
      if (why) {
        this.body.append(KLM.el("p", { className: "why", textContent: `no data because ${why}` }));
        return;
      }
      if (typeof uPlot === "undefined") {
        this.body.append(KLM.el("p", { className: "why", textContent: "not drawn: uPlot is missing, see above" }));
        return;
      }
      this.width = Math.max(280, Math.floor(this.body.clientWidth || this.node.clientWidth || 600));
      this.plot = new uPlot(this.options(), this.data(), this.body);
      this.plot.over.append(this.mark);
      this.plot.over.addEventListener("mousemove", (event) => this.hover(event));
      this.plot.over.addEventListener("mouseleave", () => this.app.hint(null));
      this.plot.over.addEventListener("click", (event) => this.seek(event));
      this.buildLegend();
      this.values();
    }

    // New data or another range, in the plot that is there.
    update() {
      this.stale = false;
      if (!this.plot || this.empty()) { this.draw(); return; }
      this.plot.setData(this.data());
      this.values();
    }

    data() {
      const { state } = this.app;
      const range = this.app.range();
      const columns = Math.min(MOST_COLUMNS, Math.max(100, Math.floor(this.width - 75)));
      const shown = this.app.shown();
      this.sample = this.app.sample(columns);
      if (this.panel.axis === "heat") {
        const one = this.app.focused();
        this.pixels = KLM.heatPixels(one.run, one.pair, range, columns, state.log);
        this.columns = columns;
        return [[range[0], range[1]], [null, null]];
      }
      const series = [];
      for (const { line, at, get } of this.lines()) {
        if (line.band) {
          series.push(this.sample.pick(at, get(line.low), "low"), this.sample.pick(at, get(line.high), "high"));
        } else {
          series.push(this.sample.pick(at, get(), "line"));
        }
      }
      const positive = this.panel.axis === "log" ? series.map((s) => s.map((v) => (v > 0 ? v : v === undefined ? v : null))) : series;
      return [this.sample.x, ...positive];
    }

    options() {
      const ink = KLM.ink("ink"), grid = { stroke: KLM.ink("grid"), width: 1 };
      // uPlot scales the axes by the series; lines and bands are painted by `drawLines`.
      const one = { paths: () => null, points: { show: false } };
      const count = this.panel.axis === "heat" ? 1 : this.lines().reduce((sum, { line }) => sum + (line.band ? 2 : 1), 0);
      const series = [{}, ...Array.from({ length: count }, () => ({ ...one }))];
      return {
        width: this.width, height: 210, legend: { show: false }, series,
        padding: [8, 8, 0, 0],
        cursor: { x: false, y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
        scales: { x: { time: false, distr: this.app.state.log ? 3 : 1, range: () => this.app.range() }, y: KLM.yScale(this) },
        axes: [
          { stroke: ink, grid, ticks: grid, size: 30, font: "11px system-ui, sans-serif" },
          KLM.yAxis(this, ink, grid),
        ],
        hooks: {
          draw: [(u) => { this.drawLines(u); this.drawRules(u); this.drawThreshold(u); this.moveCursor(); }],
          drawAxes: [(u) => { if (this.panel.axis === "heat") this.drawHeat(u); }],
          setSelect: [(u) => {
            if (u.select.width < 4) return;
            const low = u.posToVal(u.select.left, "x"), high = u.posToVal(u.select.left + u.select.width, "x");
            u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            this.dragged = Date.now();
            this.app.zoom([low, high]);
          }],
        },
      };
    }

    drawLines(u) {
      if (this.panel.axis === "heat") return;
      const { ctx, bbox } = u, xs = u.data[0];
      const dense = KLM.isDense(xs, bbox.width / devicePixelRatio);
      const px = KLM.placesOf(u, xs, dense);
      clipped(u);
      let series = 1;
      for (const { line, dash, bare } of this.lines()) {
        const colour = faded(KLM.ink(line.ink), line.alpha || 1);
        if (line.band) {
          const [low, high] = [u.data[series++], u.data[series++]];
          if (!bare) KLM.fillBand(u, px, low, high, { colour, dense });
          const edge = { colour: faded(KLM.ink(line.ink), bare ? 0.7 : 0.45), width: 1, dash, dense };
          if (line.edge) for (const side of [low, high]) KLM.strokeLine(u, px, side, edge);
        } else {
          KLM.strokeLine(u, px, u.data[series++], { colour, width: line.width || 1.5, dash, dense });
        }
      }
      ctx.restore();
    }

    // A line from top to bottom with a head: ▼ critical, ▽ warning, ◆ a notice or what nobody was told.
    drawRules(u) {
      const { ctx, bbox } = u, size = 5 * devicePixelRatio;
      clipped(u);
      const seen = new Set();
      for (const alert of this.app.alerts()) {
        const x = Math.round(u.valToPos(alert.step, "x", true)) + 0.5;
        const quiet = alert.severity === "info" || alert.muted, critical = alert.severity === "critical" && !quiet;
        const key = `${x}/${quiet}/${critical}`;
        if (seen.has(key)) continue;
        seen.add(key);
        ctx.strokeStyle = ctx.fillStyle = KLM.ink(quiet ? "info" : "alert");
        ctx.lineWidth = critical ? 2 : 1;
        ctx.setLineDash(critical ? [] : quiet ? [1, 4] : [4, 3]);
        path(ctx, [[x, bbox.top], [x, bbox.top + bbox.height]]);
        ctx.stroke();
        ctx.setLineDash([]);
        const middle = bbox.top + size;
        path(ctx, quiet ? [[x - size, middle], [x, middle - size], [x + size, middle], [x, middle + size]]
          : [[x - size, bbox.top], [x + size, bbox.top], [x, bbox.top + 1.6 * size]]);
        ctx.closePath();
        if (critical || quiet) ctx.fill(); else ctx.stroke();
      }
      ctx.restore();
    }

    drawThreshold(u) {
      if (!this.panel.threshold && !this.panel.zero) return;
      const { z, known } = this.app.spike();
      const value = this.panel.threshold ? z : 0;
      if (value === null) return;
      const y = Math.round(u.valToPos(value, "y", true)) + 0.5;
      const { ctx, bbox } = u;
      if (y < bbox.top || y > bbox.top + bbox.height) return;
      ctx.save();
      ctx.strokeStyle = KLM.ink(this.panel.threshold ? "alert" : "ink");
      ctx.setLineDash(this.panel.threshold ? [8, 4] : []);
      ctx.lineWidth = 1;
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      if (this.panel.threshold) {
        ctx.fillStyle = KLM.ink("alert");
        ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
        ctx.textAlign = "left";
        ctx.textBaseline = "bottom";
        ctx.fillText(`${known ? "" : "default "}threshold ${value}`, bbox.left + 6, y - 2);
      }
      ctx.restore();
    }

    drawHeat(u) {
      const bins = KLM.HEAT_ROWS, columns = this.columns;
      const image = new ImageData(columns, bins), pixels = new Uint32Array(image.data.buffer);
      const colours = heatColours(this.pixels);
      for (let column = 0; column < columns; column++) {
        for (let bin = 0; bin < bins; bin++) pixels[(bins - 1 - bin) * columns + column] = colours[this.pixels[column * bins + bin]];
      }
      const canvas = KLM.el("canvas", { width: columns, height: bins });
      canvas.getContext("2d").putImageData(image, 0, 0);
      u.ctx.save();
      u.ctx.imageSmoothingEnabled = false;
      u.ctx.drawImage(canvas, u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
      u.ctx.restore();
    }

    // --- the cursor --------------------------------------------------------------------------
    stepAt(event) { return this.plot.posToVal(event.clientX - this.plot.over.getBoundingClientRect().left, "x"); }

    hover(event) {
      this.app.seek(this.stepAt(event), false);
      const pixel = event.clientX - this.plot.over.getBoundingClientRect().left;
      const near = this.app.alerts().filter((alert) => Math.abs(this.plot.valToPos(alert.step, "x") - pixel) < 5);
      this.app.hint(near.length ? near : null, event);
    }

    seek(event) {
      if (Date.now() - (this.dragged || 0) < 300) return;
      this.app.seek(this.stepAt(event), true);
    }

    moveCursor() {
      if (!this.plot) return;
      const { step } = this.app.state;
      const [low, high] = this.app.range();
      const hidden = step === null || step < low || step > high;
      this.mark.hidden = hidden;
      this.markStep.textContent = hidden ? "" : `step ${step}`;
      if (hidden) return;
      const x = Math.round(this.plot.valToPos(step, "x"));
      this.mark.style.transform = `translateX(${x}px)`;
      this.mark.classList.toggle("last", x > this.plot.bbox.width / devicePixelRatio - 30); // its foot stays inside
    }

    // The name and the colour of each line, beside the place of its value at the cursor.
    buildLegend() {
      if (this.panel.axis === "heat") { this.legend.replaceChildren(...this.heatKey()); return; }
      this.shownValues = this.lines().map(({ line, label, dash, bare }) => {
        const filled = line.band && !bare;
        const swatch = KLM.swatch(faded(KLM.ink(line.ink), filled ? 0.3 + line.alpha : line.band ? 0.7 : line.alpha || 1), { dash, wide: filled });
        const value = KLM.el("b");
        this.legend.append(KLM.el("span", {}, swatch, `${label} `, value));
        return value;
      });
      const left = this.panel.lines(this.app.state).length * this.app.shown().length > this.shownValues.length;
      if (left) this.legend.append(KLM.el("span", { className: "why", textContent: "bands: choose one run" }));
    }

    values() {
      if (!this.plot || this.panel.axis === "heat") return;
      const { step } = this.app.state;
      const rows = this.app.shown().map((one) => (step === null ? -1 : KLM.nearestRow(one.run.steps, step)));
      this.lines().forEach(({ line, at, get }, i) => {
        const value = (how) => { const column = get(how); return column && rows[at] >= 0 ? KLM.number(column.values[rows[at]]) : "-"; };
        this.shownValues[i].textContent = line.band ? `${value(line.low)} to ${value(line.high)}` : value();
      });
    }

    heatKey() {
      const who = this.app.shown().length > 1 ? `${KLM.visible(this.app.focused().run.name)} alone; ` : "";
      return [KLM.el("span", {}, `${who}few`, KLM.el("i", { className: "swatch heat" }), "many of the step's tokens (log)")];
    }
  };

  function path(ctx, points) {
    ctx.beginPath();
    for (const [x, y] of points) ctx.lineTo(x, y);
  }

  // What follows is drawn inside the axes only, until the context is restored.
  function clipped({ ctx, bbox }) {
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
  }

  // The colour of each byte of a heat map, as ImageData holds it; 0 is left clear.
  function heatColours(bytes) {
    let least = 255, most = 0;
    for (const value of bytes) {
      if (value > most) most = value;
      if (value && value < least) least = value;
    }
    const [low, high] = [KLM.ink("heat-low"), KLM.ink("heat-high")].map((c) => parseInt(c.slice(1), 16));
    const colours = new Uint8ClampedArray(4 * 256);
    for (let value = least; value <= most; value++) {
      const t = 0.15 + (0.85 * (value - least)) / Math.max(most - least, 1);
      [16, 8, 0].forEach((shift, i) => { colours[4 * value + i] = ((low >> shift) & 255) * (1 - t) + ((high >> shift) & 255) * t; });
      colours[4 * value + 3] = 255;
    }
    return new Uint32Array(colours.buffer);
  }
})();
