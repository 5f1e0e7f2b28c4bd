// What each panel shows. `lines(view)` names metrics; `get(metrics)` is the values of a line.
"use strict";

(function () {
  const Z95 = 1.96;
  // A metric, or minus it, of all rows; `key` tells one such function from another.
  function metric(name, sign = 1) {
    const get = (m) => (!m[name] || sign === 1 ? m[name] || null : m[name].map((v) => -v));
    return Object.assign(get, { key: `${sign}*${name}` });
  }
  function bound(mean, se, side) {
    const get = (m) => (m[mean] && m[se] ? m[mean].map((v, i) => v + side * Z95 * (m[se][i] >= 0 ? m[se][i] : NaN)) : null);
    return Object.assign(get, { key: `${mean}+${side}*${se}` });
  }

  function band(name, low, high, ink, alpha, edge = false) {
    return { band: true, name, low, high, ink, alpha, edge };
  }
  const line = (name, get, ink, more = {}) => ({ name, get, ink, ...more });

  function estimators(view) {
    if (view.level === "sequence") {
      return ["k1", "k3"].map((k) => line(k, metric(`sequence/${k}`), k));
    }
    const prefix = view.group ? `group/${view.group}/` : "";
    const names = view.group ? ["k1", "k3"] : ["k1", "k2", "k3"];
    return names.flatMap((k) => [
      band(`${k} 95 %`, bound(`${prefix}${k}/mean`, `${prefix}${k}/se`, -1),
        bound(`${prefix}${k}/mean`, `${prefix}${k}/se`, 1), k, 0.18),
      line(k, metric(`${prefix}${k}/mean`), k),
    ]);
  }

  // k1 = -d: the p-quantile of k1 is minus the (1 - p)-quantile of d.
  const k1q = (of_d) => metric(`log_ratio/${of_d}`, -1);
  const fan = () => [
    band("0.1-99.9 %", k1q("p99.9"), k1q("p0.1"), "k1", 0.14, true),
    band("1-99 %", k1q("p99"), k1q("p1"), "k1", 0.22),
    band("25-75 %", k1q("p75"), k1q("p25"), "k1", 0.4),
    line("median", k1q("p50"), "k1"),
  ];

  const variances = () => ["k1", "k2", "k3"].flatMap((k) => [
    line(`Var ${k}`, metric(`${k}/var`), k),
    line(`running ${k}`, metric(`${k}/running_var`), k, { width: 2.5, alpha: 0.55 }),
  ]);

  KLM.panels = [
    {
      id: "estimators", title: "Estimators", help: "Mean of k1, k2 and k3 over the step's tokens, shaded ±1.96 standard errors. They should agree within the shade.",
      axis: "asinh", zero: true, lines: estimators,
      unit: (view) => (view.level === "sequence" ? "nats per sequence" : "nats per token"),
      why: (view) => view.group ? `the run has no group ${view.group}` : "no token of this pair was counted",
    },
    {
      id: "fan", title: "Quantiles of k1", help: "Where the tokens lie. An outer band apart from the inner ones: few tokens carry the mean. All moving: the policy moved.",
      axis: "asinh", zero: true, lines: fan,
      unit: () => "nats", why: () => "the record holds no quantiles of d",
    },
    {
      id: "dominance", title: "Share of the largest tokens", help: "How much of the sum its few largest tokens hold. Near 0 the mean is a mean, near 1 it is a single token.",
      axis: "linear", range: [0, 1],
      lines: () => ["k1", "k3"].map((k) =>
        line(k === "k1" ? "of sum |k1|" : "of sum k3", metric(`dominance/${k}/top_share`), k)),
      unit: () => "share of the sum", why: () => "the record holds no dominance of this pair",
    },
    {
      id: "variance", title: "Variance, and running variance", help: "Of this step's tokens (thin) and of recent steps' (thick). A jump of the thin line alone is a few extreme tokens.",
      axis: "log", lines: variances,
      unit: () => "nats²", why: () => "fewer than two tokens a step, or all of them equal",
    },
    {
      id: "heat", title: "Tokens by log-ratio d", help: "A column is a step's tokens by d = log p - log q. Below 0 is k1's heavy side, above 0 is k3's.",
      axis: "heat", lines: () => [],
      unit: () => "d, nats", why: () => "the record holds no histograms: they are left out past half of the run's disk limit",
    },
    {
      id: "outliers", title: "Outlier tokens", help: "Tokens that one policy finds more than 7 times likelier than the other, on either side.",
      axis: "asinh", least: 0,
      lines: () => [
        line("d ≤ -2 (k1's side)", metric("outliers/k1"), "k1"),
        line("d ≥ 2 (k3's side)", metric("outliers/k3"), "k3"),
        line("per 10,000 tokens", metric("outliers/rate"), "rate", { width: 1 }),
      ],
      unit: () => "tokens", why: () => "the record counts no outliers of this pair",
    },
    {
      id: "spike", title: "Spike score", help: "How far log k3 is above its level of the steps before. Past the dashed line the spike rule alerts.",
      axis: "asinh", lines: () => [line("z of log k3", metric("spike/z"), "k3")],
      threshold: true, unit: () => "scales",
      why: () => "the spike rule has judged no step of this pair yet: it needs earlier steps with k3 > 0",
    },
  ];

  // The signed value at the edge of a heat-map row; HALF rows a side, two an octave from 2^-9.
  const HALF = 30;
  KLM.HEAT_TICKS = [3, 11, 19, 30, 41, 49, 57]; // 16, 1 and 1/16 nats, either way
  KLM.heatLabel = function (row) {
    if (row === HALF) return "0";
    const away = Math.abs(row - HALF);
    const size = Math.pow(2, -9 + (away - 1) / 2);
    return (row < HALF ? "-" : "+") + KLM.number(size);
  };

  // Four digits, as every sentence on the page has them.
  KLM.number = function (value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "-";
    if (Math.abs(value) >= 1.7e38) return value > 0 ? "∞" : "-∞";
    const size = Math.abs(value), four = Number(value.toPrecision(4));
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? four.toExponential() : four.toString();
  };
})();
