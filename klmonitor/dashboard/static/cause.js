// Why the two policies disagree at the cursor's step, with the numbers that say so; and where |d| sits.
"use strict";

(function () {
  const { el } = KLM;

  // A room of what the host knows of the pair at the step under the cursor.
  class StepRoom extends KLM.Room {
    told(details) {
      const found = details && details.rooms && details.rooms[this.app.state.pair];
      if (!this.bare(found ? "" : "no step of this pair is under the cursor, or this file does not hold it")) this.show(found);
    }
  }

  KLM.rooms.push(class extends StepRoom {
    constructor(app) {
      super(app, {
        id: "cause", title: "Cause, and what speaks for it",
        help: "What klmonitor takes for the reason why the two policies disagree, beside the step's numbers that bear on it.",
      });
      this.told(null);
    }

    show({ cause, evidence }) {
      const head = cause
        ? el("p", { className: cause.impossible ? "cause impossible" : "cause" }, el("strong", { textContent: KLM.visible(cause.name) }), `: ${KLM.visibleLong(cause.text)}`)
        : el("p", { className: "cause", textContent: "No cause is named here: no signature of a known fault stands out, or fewer than 512 tokens were seen." });
      this.body.replaceChildren(head, el("table", { className: "facts" }, el("tbody", {}, ...evidence.map(([name, value, what, formula]) =>
        el("tr", { title: formula }, el("th", { scope: "row" }, ...name.split(/(?<=[/_])/).flatMap((part) => [part, el("wbr")])), el("td", { textContent: KLM.number(value) }), el("td", { className: "what", textContent: what }))))));
    }
  });

  // A table of bars: [label, mean |d|, what stands beside].
  function bars(rows) {
    const most = Math.max(...rows.map(([, size]) => size || 0), 1e-12);
    return el("table", { className: "bars" }, el("tbody", {}, ...rows.map(([label, size, beside]) => {
      const bar = el("i", {});
      bar.style.width = `${(100 * (size || 0)) / most}%`;
      return el("tr", {}, el("th", { scope: "row", textContent: label }), el("td", { className: "amount" }, bar), el("td", { textContent: size === null ? "-" : KLM.number(size) }), el("td", { className: "what", textContent: beside }));
    })));
  }

  KLM.rooms.push(class extends StepRoom {
    constructor(app) {
      super(app, {
        id: "where", title: "Where |d| sits", unit: "mean |d|, nats",
        help: "Numeric noise grows where a token is unlikely, 1 - q. Noise that does not, or sits in one turn or at one end, has another reason.",
      });
      this.told(null);
    }

    show(found) {
      const part = (title, rows, why) => [el("h3", { textContent: title }), rows.length ? bars(rows) : el("p", { className: "why", textContent: `no data because ${why}` })];
      const span = (low, high) => `${low} to ${high}`;
      this.body.replaceChildren(
        ...part("by the token's probability q", found.by_probability.map((one) => [span(one.low, one.high), one.abs, `1 - q ${KLM.number(one.left)}`]),
          "this is told of the sampler's pair alone, else of the first one"),
        ...part("by position in the sequence", found.by_position.map((size, i) => [span(`${10 * i}`, `${10 * i + 10} %`), size, ""]), found.why_no_places),
        ...part("by turn (stretches that count)", found.by_turn.map((size, i) => [i + 1 === found.turns ? `${i + 1} and later` : String(i + 1), size, ""]), found.why_no_places));
    }
  });
})();
