// What stood around an extreme token: its neighbours' d as a strip, their text where it may be shown.
"use strict";

(function () {
  const { el } = KLM;
  const bend = (d) => Math.asinh(d / 0.05), FULL = bend(20);

  KLM.rooms.push(class extends KLM.Room {
    constructor(app) {
      super(app, {
        id: "around", title: "Around the token", unit: "d, nats", wide: true,
        help: "The 16 tokens before and after, of steps that opened or worsened an alert. One bar alone: a token of its own. Many: the place, a turn or a whole stretch.",
      });
      this.chosen = 0;
      this.show(null);
    }

    told(details, step, run) {
      const same = this.at && this.at.step === step && this.at.run === run.name;
      this.at = { step, run: run.name };
      if (!same) this.chosen = 0;
      this.show(details, run);
    }

    show(details, run) {
      const { pair } = this.app.state;
      const found = ((details && details.around) || []).map((one) => ({ ...one, of: details.tokens[one.token] })).filter((one) => one.of && one.of.pair === pair)
        .sort((a, b) => Math.abs(b.of.log_ratio) - Math.abs(a.of.log_ratio));
      this.legend.replaceChildren();
      const why = !details ? "no step is under the cursor, or this file does not hold it"
        : "neighbours are kept at steps that open or worsen an alert of the pair, if tokens are recorded (log_tokens=False keeps none)";
      if (this.bare(found.length ? "" : why)) return;
      const one = found[Math.min(this.chosen, found.length - 1)];
      const pick = el("select", { ariaLabel: "token", onchange: () => { this.chosen = pick.selectedIndex; this.show(details, run); } },
        ...found.map((each, i) => el("option", { textContent: `d ${KLM.number(each.of.log_ratio)}, sequence ${each.of.sequence}, position ${each.of.position}`, selected: each === one, value: String(i) })));
      this.legend.append(el("label", {}, "token ", pick),
        el("span", { textContent: one.text ? "" : `text and ids: ${run.why_no_text}` }));
      this.body.replaceChildren(...this.strip(one));
    }

    strip(one) {
      const said = el("p", { className: "said", role: "status" });
      const d = one.log_q.map((q, i) => (q === null || one.log_p[i] === null ? null : one.log_p[i] - q));
      const numbers = (i) => {
        const place = one.first + i, where = place ? `${place > 0 ? "+" : ""}${place}` : "the token";
        if (one.log_q[i] === null && one.log_p[i] === null) return `${where}: not counted (masked, or no number)`;
        const who = [one.text && one.text[i] !== null ? `“${KLM.visible(one.text[i])}”` : "", one.ids && one.ids[i] !== null ? `id ${one.ids[i]}` : ""].filter(Boolean).join(", ");
        return `${where}: ${who ? `${who}, ` : ""}d ${KLM.number(d[i])}, log q ${KLM.number(one.log_q[i])}, log p ${KLM.number(one.log_p[i])}`;
      };
      const tell = (i) => { said.textContent = numbers(i); };
      const own = -one.first;
      const bars = el("div", { className: "strip", role: "img", tabIndex: 0, ariaLabel: `d of ${d.length} tokens; arrow keys read them` }, ...d.map((value, i) => {
        const bar = el("i", { className: value === null ? "gap" : value < 0 ? "left" : "right" });
        const size = value === null ? 0 : Math.min(Math.abs(bend(value)) / FULL, 1);
        bar.style.height = value === null ? "100%" : `${Math.max(50 * size, 1)}%`;
        bar.style.top = value === null ? "0" : value > 0 ? `${50 - 50 * size}%` : "50%";
        return el("span", { className: i === own ? "cell own" : "cell", title: numbers(i), onmouseenter: () => tell(i), onclick: () => tell(i) }, bar);
      }));
      let at = own;
      bars.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        event.stopPropagation();
        at = Math.min(Math.max(at + by, 0), d.length - 1);
        tell(at);
      });
      tell(own);
      const parts = [bars, said];
      if (one.text) {
        parts.push(el("p", { className: "words", dir: "ltr" }, ...one.text.map((text, i) => {
          const word = el("span", { className: i === own ? "own" : "", textContent: text === null ? "·" : KLM.visible(text), onmouseenter: () => tell(i) });
          const size = d[i] === null ? 0 : Math.min(Math.abs(bend(d[i])) / FULL, 1);
          if (size > 0.02) word.style.boxShadow = `inset 0 -${Math.max(2, Math.round(9 * size))}px 0 ${KLM.ink(d[i] < 0 ? "k1" : "k3")}55`;
          return word;
        })));
      }
      return parts;
    }
  });
})();
