// Runs as columns, from a host that is asked or from the file itself. Nothing here draws.
"use strict";
var KLM = {};

(function () {
  function bytes(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }
  const doubles = (text) => new Float64Array(bytes(text).buffer);
  const singles = (text) => new Float32Array(bytes(text).buffer);

  // `head` up to row `from`, then `tail`, in `rows` rows; what is missing reads `blank`.
  function joined(Kind, head, from, tail, rows, blank) {
    const out = new Kind(rows);
    if (blank !== 0) out.fill(blank);
    if (head) out.set(head.subarray(0, from));
    if (tail) out.set(tail, from);
    return out;
  }

  const HEAT_ROWS = 61;

  function emptyRun(name) {
    return { name, meta: {}, starts: [], spike: { z: null, known: true }, pull: {}, glance: {}, why_no_text: "", generation: 0, steps: new Float64Array(0), pairs: {}, alerts: [] };
  }

  // A run with what came since, as a new object if anything did; `data` is an answer of the host.
  function extended(run, data) {
    const { rows: from, steps, pairs, alerts, alert_rows: kept, ...said } = data;
    const more = doubles(steps);
    if (run.generation === data.generation && from === run.steps.length && !more.length && !alerts.length && run.name === data.name) {
      return Object.assign(run, said);
    }
    const rows = from + more.length;
    const next = {
      ...said, pairs: {},
      steps: joined(Float64Array, run.steps, from, more, rows, 0),
      alerts: run.alerts.slice(0, kept).concat(alerts),
    };
    for (const name of Object.keys(pairs)) {
      const old = run.pairs[name] || { metrics: {} };
      const pair = pairs[name];
      const metrics = {};
      for (const metric of Object.keys(pair.metrics)) {
        metrics[metric] = joined(Float32Array, old.metrics[metric], from, singles(pair.metrics[metric]), rows, NaN);
      }
      const heat = bytes(pair.heat);
      const before = old.heat && old.heat.subarray(0, from * HEAT_ROWS);
      next.pairs[name] = { metrics, heat: joined(Uint8Array, before, from * HEAT_ROWS, heat, rows * HEAT_ROWS, 0) };
    }
    return next;
  }

  // The first row whose step is not below `step`.
  function rowFrom(steps, step) {
    let low = 0, high = steps.length;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (steps[mid] < step) low = mid + 1; else high = mid;
    }
    return low;
  }

  // The row whose step is nearest, -1 of an empty run.
  function nearestRow(steps, step) {
    if (!steps.length) return -1;
    const after = Math.min(rowFrom(steps, step), steps.length - 1);
    const before = Math.max(after - 1, 0);
    return step - steps[before] <= steps[after] - step ? before : after;
  }

  // A host: answers at `base`; the runs are asked again every `every` milliseconds.
  KLM.live = function (base, every = 2000) {
    async function ask(question) {
      const reply = await fetch(base + question, { cache: "no-store" });
      if (!reply.ok) throw new Error(`${question}: ${reply.status}`);
      return reply.json();
    }
    return {
      every,
      overview: () => ask("runs"),
      async run(number, run) {
        const query = `run=${number}&rows=${run.steps.length}&alerts=${run.alerts.length}&generation=${run.generation}`;
        return extended(run, await ask(`data?${query}`));
      },
      step: (number, step) => ask(`step?run=${number}&step=${step}`),
    };
  };

  // A file that carries everything: {overview, data: [...], steps: [{step: details}, ...]}.
  KLM.embedded = function (body) {
    return {
      every: 0,
      summary: body.summary,
      overview: async () => body.overview,
      run: async (number) => extended(emptyRun(""), body.data[number]),
      step: async (number, step) => body.steps[number][step] || null,
    };
  };

  Object.assign(KLM, { HEAT_ROWS, emptyRun, rowFrom, nearestRow });
})();
