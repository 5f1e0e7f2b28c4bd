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

  // How many, and how many of them are critical.
  KLM.alertCount = function (alerts) {
    const told = alerts.filter((one) => one.phase !== "note"), critical = told.filter((one) => one.severity === "critical").length;
    return told.length ? `${told.length}${critical ? `, ${critical} critical` : ""}` : "none";
  };

  KLM.visibleLong = (text) => (text.match(/[\s\S]{1,100}/gu) || []).map(KLM.visible).join("");

  KLM.alertText = (alert) => [
    `[${alert.severity}] step ${alert.step}: ${KLM.visibleLong(alert.message)}`,
    ...alert.lines.map(([label, text]) => `${label}: ${KLM.visibleLong(text)}`),
  ].join("\n");

  // A prompt's name: its number where that is short, else letters and digits made of it.
  const LETTERS = "abcdefghjkmnpqrstuvwxyz23456789", NAME = 5;
  KLM.promptName = function (id) {
    if (id === undefined || id === null) return "";
    if (!/^-?\d+$/.test(id)) return KLM.visible(String(id));
    if (id.length <= NAME) return id;
    let left = BigInt.asUintN(64, BigInt(id)), name = "";
    const base = BigInt(LETTERS.length);
    for (let i = 0; i < NAME; i++) { name += LETTERS[Number(left % base)]; left /= base; }
    return name;
  };

  // Where a token was seen, in words; what is the same of all is left out.
  function placed(token, { ranks, batches }) {
    const who = token.worker !== undefined ? `worker ${KLM.visible(token.worker)}, ` : ranks ? `rank ${token.rank}, ` : "";
    return `${who}${batches ? `micro-batch ${token.micro_batch}, ` : ""}sequence ${token.sequence}`;
  }

  const COLUMNS = [
    ["token", (t) => (t.text === undefined ? "" : KLM.visible(t.text))],
    ["id", (t) => t.token_id ?? ""],
    ["position", (t) => t.position],
    ["d", (t) => KLM.number(t.log_ratio)],
    ["log q", (t) => KLM.number(t.log_q)],
    ["log p", (t) => KLM.number(t.log_p)],
    ["k1", (t) => KLM.number(t.k1)],
    ["k3", (t) => KLM.number(t.k3)],
    ["where", placed],
    ["prompt", (t) => KLM.promptName(t.prompt_id)],
  ];
  const TITLES = { position: "column within the row", d: "log p - log q, nats", where: "who saw it, and the row of the batch", prompt: "a short name; under the cursor is the whole id" };

  // What a token weighs in the estimator that it weighs most in.
  const weight = (token) => Math.max(Math.abs(token.k1), token.k3);

  // Panel 8. `details` is the host's answer on a step, null where it has none.
  KLM.tokenTable = function (details, pair, whyNoText) {
    const tokens = details ? details.tokens.filter((token) => token.pair === pair).sort((a, b) => weight(b) - weight(a)) : [];
    if (!tokens.length) {
      const why = details
        ? "no extreme tokens were recorded at this step (log_tokens=False keeps none)"
        : "this file holds the tokens of chosen steps only; klmonitor serve shows every step";
      return el("p", { className: "why", textContent: `no data because ${why}` });
    }
    const several = (key) => new Set(tokens.map((token) => token[key])).size > 1;
    const told = { ranks: several("rank") || tokens.some((token) => token.rank), batches: several("micro_batch") || tokens.some((token) => token.micro_batch) };
    const blank = tokens.every((token) => token.text === undefined);
    const head = ([name]) => el("th", { textContent: name, scope: "col", title: TITLES[name] || "" }, ...(name === "token" && blank ? [el("small", { textContent: whyNoText })] : []));
    const cell = (token) => ([name, show]) => el("td", {
      className: name, dir: "ltr", textContent: show(token, told), title: name === "prompt" ? String(token.prompt_id ?? "") : "",
    });
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...COLUMNS.map(head))),
      el("tbody", {}, ...tokens.map((token) => el("tr", { className: token.tail }, ...COLUMNS.map(cell(token))))));
    return KLM.sideways(table, "Extreme tokens");
  };

  // A wide table in a box that scrolls, reached by keys too; a line above says so where it overflows.
  KLM.sideways = function (table, name) {
    const hint = el("p", { className: "why hint", hidden: true, textContent: "→ scroll sideways: the table has more columns" });
    const box = el("div", { className: "scroll", tabIndex: 0, role: "region" }, table);
    box.setAttribute("aria-label", `${name}, scrolls sideways`);
    const look = () => {
      const over = box.scrollWidth - box.clientWidth;
      hint.hidden = over <= 1;
      box.classList.toggle("more", over - box.scrollLeft > 1);
    };
    box.addEventListener("scroll", look, { passive: true });
    requestAnimationFrame(look);
    return el("div", {}, hint, box);
  };
})();
