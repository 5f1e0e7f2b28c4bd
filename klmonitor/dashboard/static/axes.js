// The y axis of a chart: its scale, and ticks that do not touch.
"use strict";

(function () {
  KLM.yAxis = function (chart, ink, grid) {
    const axis = { stroke: ink, grid, ticks: grid, size: 62, font: "11px system-ui, sans-serif" };
    if (chart.panel.axis === "heat") {
      return { ...axis, grid: { show: false }, splits: () => KLM.HEAT_TICKS, values: (u, at) => at.map(KLM.heatLabel) };
    }
    if (chart.panel.axis === "asinh") axis.splits = (u, i, low, high) => asinhTicks(low, high, u.scales.y.asinh, u.bbox.height / devicePixelRatio);
    if (chart.panel.axis === "log") axis.splits = (u, i, low, high) => logTicks(low, high, u.bbox.height / devicePixelRatio);
    return { ...axis, filter: (u, at) => at, values: (u, at) => at.map((v) => (v === null ? "" : KLM.number(v))) };
  };

  KLM.yScale = function (chart) {
    const { axis, range } = chart.panel;
    if (axis === "heat") return { range: [-0.5, KLM.HEAT_ROWS - 0.5] };
    if (axis === "linear") return { range };
    if (axis === "log") {
      return { distr: 3, range: (u, low, high) => (low > 0 ? [low / 1.6, high * 1.6] : [1e-6, 1]) };
    }
    return {
      distr: 4, asinh: knee(chart),
      range: (u, low, high) => {
        if (chart.panel.threshold) high = Math.max(high, chart.app.spike().z ?? high);
        if (chart.panel.zero || chart.panel.least === 0) { low = Math.min(low, 0); high = Math.max(high, 0); }
        const knee = chart.knee;
        const a = Math.asinh(low / knee), b = Math.asinh(high / knee), pad = Math.max((b - a) * 0.06, 0.05);
        const floor = chart.panel.least === 0 ? 0 : knee * Math.sinh(a - pad);
        return [floor, knee * Math.sinh(b + pad)];
      },
    };
  };

  // Where the axis turns from linear to logarithmic: a power of ten near the median size.
  function knee(chart) {
    const sizes = [];
    const shown = chart.app.shown();
    for (const { line, at, get } of chart.lines()) {
      const column = line.band ? null : get();
      const steps = shown[at].run.steps.length, stride = Math.max(1, Math.floor(steps / 500));
      for (let i = 0; column && i < steps; i += stride) {
        const size = Math.abs(column.values[i]);
        if (size > 0 && Number.isFinite(size)) sizes.push(size);
      }
    }
    sizes.sort((a, b) => a - b);
    const median = sizes.length ? sizes[sizes.length >> 1] : 1;
    chart.knee = Math.pow(10, Math.floor(Math.log10(median)));
    return chart.knee;
  }

  function spread(ticks, place, gap) {
    const kept = [];
    for (const tick of ticks) if (!kept.length || place(tick) - place(kept[kept.length - 1]) >= gap) kept.push(tick);
    return kept;
  }

  function logTicks(low, high, height) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const m of Math.log10(high / low) < 2 ? [1, 2, 5] : [1]) {
        const v = m * Math.pow(10, e);
        if (v >= low && v <= high) ticks.push(v);
      }
    }
    return spread(ticks, (v) => (Math.log(v / low) / Math.log(high / low)) * height, 18);
  }

  function asinhTicks(low, high, knee, height) {
    const a = Math.asinh(low / knee), b = Math.asinh(high / knee);
    const place = (v) => ((Math.asinh(v / knee) - a) / (b - a)) * height;
    const up = [], most = Math.max(Math.abs(low), Math.abs(high));
    for (let e = Math.log10(knee) - 1; Math.pow(10, e) <= most; e++) {
      for (const m of b - a < 6 ? [1, 2, 5] : [1]) up.push(m * Math.pow(10, Math.round(e)));
    }
    const above = spread([0, ...up].filter((v) => v <= high), place, 18).filter((v) => v >= low);
    const below = spread([0, ...up].filter((v) => -v >= low), (v) => -place(-v), 18).filter((v) => v > 0 && -v <= high);
    return [...below.map((v) => -v).reverse(), ...above];
  }
})();
