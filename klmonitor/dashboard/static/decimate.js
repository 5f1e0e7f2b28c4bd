// Fewer points than rows, without losing any extreme: per pixel column the least and the largest
// value are kept, in their order. A step that stands out is drawn at every zoom.
"use strict";

(function () {
  // Where each row lies: pixel columns of the range [low, high] on a linear or log axis.
  function columnsOf(steps, first, last, range, width, log) {
    const f = log ? (x) => Math.log10(Math.max(x, 1)) : (x) => x;
    const low = f(range[0]), span = f(range[1]) - low || 1;
    const out = new Int32Array(last - first);
    for (let i = first; i < last; i++) {
      out[i - first] = Math.min(width - 1, Math.max(0, Math.floor(((f(steps[i]) - low) / span) * width)));
    }
    return { of: out, at: (column) => { const v = low + (column / width) * span; return log ? Math.pow(10, v) : v; } };
  }

  // One x axis for several runs in a range. `pick(column, how)` gives values on it.
  //   how "line": least and largest in order; "low": the least twice; "high": the largest twice.
  // Missing rows are undefined (bridged), nan is null (a gap).
  KLM.sample = function (runs, range, width, log) {
    const parts = runs.map((run) => {
      const first = Math.max(KLM.rowFrom(run.steps, range[0]) - 1, 0);
      const last = Math.min(KLM.rowFrom(run.steps, range[1] + 1e-9) + 1, run.steps.length);
      return { steps: run.steps, first, last };
    });
    const most = Math.max(0, ...parts.map((part) => part.last - part.first));
    return most <= 2 * width ? exact(parts) : squeezed(parts, range, width, log);
  };

  function exact(parts) {
    const all = new Set();
    for (const part of parts) for (let i = part.first; i < part.last; i++) all.add(part.steps[i]);
    const x = Float64Array.from(all).sort();
    const slots = parts.map((part) => {
      const out = new Int32Array(part.last - part.first);
      for (let i = part.first, at = 0; i < part.last; i++) {
        while (x[at] < part.steps[i]) at++;
        out[i - part.first] = at;
      }
      return out;
    });
    function pick(which, column) {
      const out = new Array(x.length).fill(undefined);
      if (!column) return out;
      const part = parts[which];
      for (let i = part.first; i < part.last; i++) {
        const value = column(i);
        out[slots[which][i - part.first]] = Number.isFinite(value) ? value : null;
      }
      return out;
    }
    return { x: Array.from(x), pick, exact: true };
  }

  function squeezed(parts, range, width, log) {
    const maps = parts.map((part) => columnsOf(part.steps, part.first, part.last, range, width, log));
    const used = new Uint8Array(width);
    for (const map of maps) for (const column of map.of) used[column] = 1;
    const slot = new Int32Array(width);
    const x = [];
    for (let column = 0; column < width; column++) {
      if (!used[column]) continue;
      slot[column] = x.length;
      x.push(maps[0].at(column + 0.25), maps[0].at(column + 0.75));
    }
    function pick(which, column, how = "line") {
      const out = new Array(x.length).fill(undefined);
      if (!column) return out;
      const part = parts[which], of = maps[which].of;
      let i = part.first;
      while (i < part.last) {
        const here = of[i - part.first];
        let low = NaN, high = NaN, lowAt = i, highAt = i;
        for (; i < part.last && of[i - part.first] === here; i++) {
          const value = column(i);
          if (!Number.isFinite(value)) continue;
          if (!(low <= value)) { low = value; lowAt = i; }
          if (!(high >= value)) { high = value; highAt = i; }
        }
        const first = how === "low" || (how === "line" && lowAt <= highAt) ? low : high;
        const second = how === "high" || (how === "line" && lowAt <= highAt) ? high : low;
        out[slot[here]] = Number.isFinite(first) ? first : null;
        out[slot[here] + 1] = Number.isFinite(second) ? second : null;
      }
      return out;
    }
    return { x, pick, exact: false };
  }

  // The heat map's pixels: per pixel column the largest density of its rows, for each bin.
  KLM.heatPixels = function (run, pair, range, width, log) {
    const bins = KLM.HEAT_ROWS;
    const out = new Uint8Array(width * bins);
    const first = KLM.rowFrom(run.steps, range[0]), last = KLM.rowFrom(run.steps, range[1] + 1e-9);
    if (last <= first) return out;
    const of = columnsOf(run.steps, first, last, range, width, log).of;
    for (let i = first; i < last; i++) {
      // A row is as wide as the way to the next one, at most 1/50 of the picture.
      const reach = i + 1 < last ? Math.min(of[i + 1 - first], of[i - first] + Math.ceil(width / 50)) : of[i - first] + 1;
      for (let bin = 0; bin < bins; bin++) {
        const value = pair.heat[i * bins + bin];
        if (!value) continue;
        for (let column = of[i - first]; column < Math.max(reach, of[i - first] + 1) && column < width; column++) {
          const place = column * bins + bin;
          if (out[place] < value) out[place] = value;
        }
      }
    }
    return out;
  };
})();
