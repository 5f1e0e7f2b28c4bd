// What is said in words: alerts, the verdict on a step, its extreme tokens. Text only, ever.
"use strict";

(function () {
  const { el } = KLM;
  const LONGEST = 120;

  // Text from outside as one harmless line: control, format and bidi characters are spelled out.
  KLM.visible = function (text) {
    const short = text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
    return short.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => {
      const code = c.codePointAt(0);
      return { 9: "\\t", 10: "\\n", 13: "\\r" }[code] || `\\u{${code.toString(16)}}`;
    });
  };

  KLM.whyNoPair = function (pair) {
    if (!pair) return "the run has not recorded a step with tokens yet";
    const [q, p] = pair.split("_");
    return `the run has no pair ${KLM.visible(pair)}: its trainer gave no log-probs of ${q} and ${p} for the same tokens`;
  };

  KLM.alertItem = function (alert, onpick) {
    const where = alert.runName ? `${KLM.visible(alert.runName)}, ` : "";
    const weight = alert.phase === "note" ? "" : ` · ${alert.severity}${alert.muted ? " · muted" : ""}`;
    return el("li", {},
      el("button", { type: "button", className: `alert ${alert.severity}`, onclick: onpick, title: KLM.alertText(alert) },
        el("b", { textContent: `${where}step ${alert.step} · ${alert.kind}${weight}` }),
        el("span", { textContent: KLM.visibleLong(alert.message) })));
  };

  KLM.visibleLong = (text) => (text.match(/[\s\S]{1,100}/gu) || []).map(KLM.visible).join("");

  KLM.alertText = (alert) => [
    `[${alert.severity}] step ${alert.step}: ${KLM.visibleLong(alert.message)}`,
    ...alert.lines.map(([label, text]) => `${label}: ${KLM.visibleLong(text)}`),
  ].join("\n");

  const TITLES = { sample: "rank · micro-batch · sequence", position: "column within the row" };
  const COLUMNS = [
    ["token", (t) => (t.text === undefined ? "" : KLM.visible(t.text))],
    ["id", (t) => t.token_id ?? ""],
    ["position", (t) => t.position],
    ["d", (t) => KLM.number(t.log_ratio)],
    ["log q", (t) => KLM.number(t.log_q)],
    ["log p", (t) => KLM.number(t.log_p)],
    ["k1", (t) => KLM.number(t.k1)],
    ["k3", (t) => KLM.number(t.k3)],
    ["sample", (t) => `${t.rank} · ${t.micro_batch} · ${t.sequence}`],
    ["prompt", (t) => t.prompt_id ?? ""],
  ];

  // What a token weighs in the estimator that it weighs most in.
  const weight = (token) => Math.max(Math.abs(token.k1), token.k3);

  // Panel 8. `details` is the host's answer on a step, null where it has none.
  KLM.tokenTable = function (details, pair) {
    const tokens = details ? details.tokens.filter((token) => token.pair === pair).sort((a, b) => weight(b) - weight(a)) : [];
    if (!tokens.length) {
      const why = details
        ? "no extreme tokens were recorded at this step (log_tokens=False keeps none)"
        : "this file holds the tokens of chosen steps only; klmonitor serve shows every step";
      return el("p", { className: "why", textContent: `no data because ${why}` });
    }
    return el("div", { className: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ...COLUMNS.map(([name]) => el("th", { textContent: name, scope: "col", title: TITLES[name] || "" })))),
      el("tbody", {}, ...tokens.map((token) => el("tr", { className: token.tail },
        ...COLUMNS.map(([name, show]) => el("td", { className: name === "token" ? "token" : "", dir: "ltr", textContent: show(token) })))))));
  };
})();
