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
        const value = column.values[i];
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
    const cells = parts.map((part, i) => cellsOf(maps[i].of, part.first));
    function pick(which, column, how = "line") {
      const out = new Array(x.length).fill(undefined);
      if (!column) return out;
      const { values } = column;
      for (const { at, from, to } of cells[which]) {
        const [least, largest] = extremes(column, from, to);
        const low = least < 0 ? null : values[least], high = least < 0 ? null : values[largest];
        const rises = how === "line" && least <= largest;
        out[slot[at]] = how === "low" || rises ? low : high;
        out[slot[at] + 1] = how === "high" || rises ? high : low;
      }
      return out;
    }
    return { x, pick, exact: false };
  }

  // Rows by pixel column: {at, from, to}.
  function cellsOf(of, first) {
    const cells = [];
    for (let i = 0; i < of.length;) {
      const from = i;
      while (i < of.length && of[i] === of[from]) i++;
      cells.push({ at: of[from], from: first + from, to: first + i });
    }
    return cells;
  }

  // Of every 2^SHIFT rows it is known which hold the least and the largest value, so that a zoom looks
  // at blocks and not at rows.
  const SHIFT = 5, BLOCK = 1 << SHIFT;

  function indexed(values) {
    const blocks = (values.length >> SHIFT) + 1;
    const least = new Int32Array(blocks).fill(-1), largest = new Int32Array(blocks).fill(-1);
    for (let i = 0; i < values.length; i++) {
      const value = values[i], block = i >> SHIFT;
      if (!Number.isFinite(value)) continue;
      if (least[block] < 0 || value < values[least[block]]) least[block] = i;
      if (largest[block] < 0 || value > values[largest[block]]) largest[block] = i;
    }
    return { values, least, largest };
  }

  // The rows of the least and of the largest value from one row to another, -1 where none is finite.
  function extremes({ values, least, largest }, from, to) {
    let low = -1, high = -1;
    for (let i = from; i < to;) {
      const whole = (i & (BLOCK - 1)) === 0 && i + BLOCK <= to;
      const a = whole ? least[i >> SHIFT] : i, b = whole ? largest[i >> SHIFT] : i;
      i += whole ? BLOCK : 1;
      if (a < 0 || !Number.isFinite(values[a])) continue;
      if (low < 0 || values[a] < values[low]) low = a;
      if (high < 0 || values[b] > values[high]) high = b;
    }
    return [low, high];
  }

  // What `get` makes of a pair's metrics, indexed; made once, until rows arrive. null if it has none.
  const made = new WeakMap();
  KLM.column = function (metrics, get) {
    if (!made.has(metrics)) made.set(metrics, new Map());
    const mine = made.get(metrics);
    if (!mine.has(get.key)) {
      const values = get(metrics);
      mine.set(get.key, values && indexed(values));
    }
    return mine.get(get.key);
  };

  // Per block of rows the largest density of each bin.
  const tops = new WeakMap();
  function heatTops(heat) {
    if (!tops.has(heat)) {
      const bins = KLM.HEAT_ROWS, rows = heat.length / bins;
      const out = new Uint8Array(((rows >> SHIFT) + 1) * bins);
      for (let row = 0; row < rows; row++) {
        const from = row * bins, to = (row >> SHIFT) * bins;
        for (let bin = 0; bin < bins; bin++) if (out[to + bin] < heat[from + bin]) out[to + bin] = heat[from + bin];
      }
      tops.set(heat, out);
    }
    return tops.get(heat);
  }

  // The heat map's pixels: per pixel column the largest density of its rows, for each bin.
  KLM.heatPixels = function (run, pair, range, width, log) {
    const bins = KLM.HEAT_ROWS, { heat } = pair, top = heatTops(heat);
    const out = new Uint8Array(width * bins);
    const first = KLM.rowFrom(run.steps, range[0]), last = KLM.rowFrom(run.steps, range[1] + 1e-9);
    const cells = cellsOf(columnsOf(run.steps, first, last, range, width, log).of, first);
    cells.forEach(({ at, from, to }, k) => {
      const place = at * bins;
      for (let i = from; i < to;) {
        const whole = (i & (BLOCK - 1)) === 0 && i + BLOCK <= to;
        const source = whole ? top : heat, row = (whole ? i >> SHIFT : i) * bins;
        i += whole ? BLOCK : 1;
        for (let bin = 0; bin < bins; bin++) if (out[place + bin] < source[row + bin]) out[place + bin] = source[row + bin];
      }
      // A row is as wide as the way to the next one, at most 1/50 of the picture.
      const next = k + 1 < cells.length ? Math.min(cells[k + 1].at, at + Math.ceil(width / 50)) : at + 1;
      for (let column = at + 1; column < next; column++) out.copyWithin(column * bins, place, place + bins);
    });
    return out;
  };
})();
