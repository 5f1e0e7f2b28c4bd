// Axes on a canvas: scales, ticks, a grid, and the area that is pointed at and dragged over.
"use strict";

(function () {
  const LEFT = 62, RIGHT = 8, TOP = 8, BOTTOM = 30;
  const FONT = "system-ui, sans-serif";
  const LEAST_DRAG = 4;

  // Where a value lies on an axis, before it is stretched to the axis; `knee` is asinh's.
  const ALONG = {
    linear: () => (v) => v,
    log: () => (v) => Math.log10(v),
    asinh: (knee) => (v) => Math.asinh(v / knee),
  };

  // options: {width, height, ink, grid, x: {kind, range()}, y: {kind, knee, range(low, high), ticks(low, high, pixels), label(v), bare},
  //   draw(plot), select([low, high])}. `data` is [x, ...series] with null for gaps, undefined for no point.
  KLM.Plot = class {
    constructor(options, parent) {
      const scale = devicePixelRatio, { width, height } = options;
      this.options = options;
      this.scale = scale;
      this.canvas = KLM.el("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
      this.over = KLM.el("div", { className: "over" });
      this.chosen = KLM.el("div", { className: "chosen", hidden: true });
      this.over.append(this.chosen);
      this.wide = width - LEFT - RIGHT;
      this.high = height - TOP - BOTTOM;
      Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
      Object.assign(this.over.style, { left: `${LEFT}px`, top: `${TOP}px`, width: `${this.wide}px`, height: `${this.high}px` });
      this.bbox = { left: Math.round(LEFT * scale), top: Math.round(TOP * scale), width: Math.round(this.wide * scale), height: Math.round(this.high * scale) };
      this.ctx = this.canvas.getContext("2d");
      this.scales = { x: {}, y: {} };
      this.root = KLM.el("div", { className: "axes" }, this.canvas, this.over);
      parent.append(this.root);
      this.listen();
    }

    destroy() {
      this.root.remove();
      this.deaf.abort();
    }

    setData(data) {
      this.data = data;
      this.stretch("x", this.options.x, ...this.options.x.range());
      let low = Infinity, high = -Infinity;
      for (const series of data.slice(1)) {
        for (const value of series) {
          if (value === null || value === undefined) continue;
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
      this.stretch("y", this.options.y, ...this.options.y.range(low, high));
      this.draw();
    }

    stretch(axis, { kind, knee }, min, max) {
      const along = ALONG[kind](knee), from = along(min), span = along(max) - from || 1;
      this.scales[axis] = { min, max, share: (v) => (along(v) - from) / span };
    }

    // In pixels of the area, or of the canvas; y grows downwards.
    valToPos(value, axis, onCanvas = false) {
      const share = this.scales[axis].share(value), { bbox } = this;
      if (axis === "x") return onCanvas ? bbox.left + share * bbox.width : share * this.wide;
      return onCanvas ? bbox.top + (1 - share) * bbox.height : (1 - share) * this.high;
    }

    // The x value at a pixel of the area.
    posToVal(pixel) {
      const { min, max } = this.scales.x, share = pixel / this.wide;
      return this.options.x.kind === "log" ? min * Math.pow(max / min, share) : min + share * (max - min);
    }

    draw() {
      const { ctx, options, scale } = this, { min, max } = this.scales.y;
      ctx.clearRect(0, 0, this.canvas.width, this.canvas.height);
      ctx.font = `${11 * scale}px ${FONT}`;
      this.xTicks();
      ctx.textAlign = "right";
      ctx.textBaseline = "middle";
      for (const value of options.y.ticks(min, max, this.high)) {
        const y = Math.round(this.valToPos(value, "y", true)) + 0.5;
        this.gridLine(this.bbox.left - 5 * scale, y, options.y.bare ? this.bbox.left : this.bbox.left + this.bbox.width, y);
        ctx.fillText(options.y.label(value), this.bbox.left - 8 * scale, y);
      }
      options.draw(this);
    }

    xTicks() {
      const { ctx, bbox, scale } = this, { min, max } = this.scales.x;
      const ticks = this.options.x.kind === "log" ? KLM.logTicks(min, max, this.wide, 60) : KLM.evenTicks(min, max, this.wide / 60, 1);
      ctx.textBaseline = "top";
      for (const value of ticks) {
        const x = Math.round(this.valToPos(value, "x", true)) + 0.5, text = value.toLocaleString("en");
        const half = ctx.measureText(text).width / 2;
        this.gridLine(x, bbox.top, x, bbox.top + bbox.height + 5 * scale);
        ctx.textAlign = "center";
        ctx.fillText(text, Math.min(x, this.canvas.width - half), bbox.top + bbox.height + 9 * scale);
      }
    }

    gridLine(x0, y0, x1, y1) {
      const { ctx, options } = this;
      ctx.strokeStyle = options.grid;
      ctx.lineWidth = Math.max(1, Math.round(this.scale));
      ctx.beginPath();
      ctx.moveTo(x0, y0);
      ctx.lineTo(x1, y1);
      ctx.stroke();
      ctx.fillStyle = options.ink;
    }

    // Dragging chooses a range of x.
    listen() {
      const at = (event) => Math.min(Math.max(event.clientX - this.over.getBoundingClientRect().left, 0), this.wide);
      let from = null;
      this.deaf = new AbortController();
      const on = (target, name, does) => target.addEventListener(name, does, { signal: this.deaf.signal });
      on(this.over, "mousedown", (event) => {
        if (event.button !== 0) return;
        event.preventDefault();
        from = at(event);
      });
      on(window, "mousemove", (event) => {
        if (from === null) return;
        const to = at(event);
        this.chosen.hidden = Math.abs(to - from) < LEAST_DRAG;
        Object.assign(this.chosen.style, { left: `${Math.min(from, to)}px`, width: `${Math.abs(to - from)}px` });
      });
      on(window, "mouseup", (event) => {
        if (from === null) return;
        const ends = [from, at(event)].sort((a, b) => a - b);
        from = null;
        this.chosen.hidden = true;
        if (ends[1] - ends[0] >= LEAST_DRAG) this.options.select(ends.map((pixel) => this.posToVal(pixel)));
      });
    }
  };

  // Multiples of 1, 2 or 5 times a power of ten, about `count` of them, no closer than `least`.
  KLM.evenTicks = function (low, high, count, least = 0) {
    const rough = Math.max((high - low) / Math.max(count, 1), least), power = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * (1 - 1e-9));
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) ticks.push(Number((k * step).toPrecision(12)));
    return ticks;
  };

  // Of `ticks`, those that are `gap` pixels apart.
  function spread(ticks, place, gap) {
    const kept = [];
    for (const tick of ticks) if (!kept.length || place(tick) - place(kept[kept.length - 1]) >= gap) kept.push(tick);
    return kept;
  }

  KLM.logTicks = function (low, high, pixels, gap = 18) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const m of Math.log10(high / low) < 2 ? [1, 2, 5] : [1]) {
        const v = m * Math.pow(10, e);
        if (v >= low && v <= high) ticks.push(v);
      }
    }
    return spread(ticks, (v) => (Math.log(v / low) / Math.log(high / low)) * pixels, gap);
  };

  KLM.asinhTicks = function (low, high, knee, height) {
    const a = Math.asinh(low / knee), b = Math.asinh(high / knee);
    const place = (v) => ((Math.asinh(v / knee) - a) / (b - a)) * height;
    const up = [], most = Math.max(Math.abs(low), Math.abs(high));
    for (let e = Math.log10(knee) - 1; Math.pow(10, e) <= most; e++) {
      for (const m of b - a < 6 ? [1, 2, 5] : [1]) up.push(m * Math.pow(10, Math.round(e)));
    }
    const above = spread([0, ...up].filter((v) => v <= high), place, 18).filter((v) => v >= low);
    const below = spread([0, ...up].filter((v) => -v >= low), (v) => -place(-v), 18).filter((v) => v > 0 && -v <= high);
    return [...below.map((v) => -v).reverse(), ...above];
  };
})();
