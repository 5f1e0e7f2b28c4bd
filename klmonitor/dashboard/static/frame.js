// What every part of the page is made of: elements, colours, the frame of a panel.
"use strict";

(function () {
  KLM.el = function (tag, props = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props)) {
      if (key in node && key !== "list") node[key] = value; else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };

  // A colour of the style sheet; read once, until the theme changes.
  let inks = {};
  KLM.ink = (name) => (inks[name] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  KLM.freshInks = () => { inks = {}; };

  // What tells overlaid runs apart, in pixels: line, gap, ... of the first, second, ... run.
  KLM.DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];

  // The piece of a line that stands in a legend.
  KLM.swatch = function (colour, { dash = [], wide = false } = {}) {
    const node = KLM.el("i", { className: wide ? "swatch wide" : "swatch" });
    let at = 0;
    const parts = dash.map((length, i) => {
      const from = at;
      at += length;
      return `${i % 2 ? "transparent" : colour} ${from}px ${at}px`;
    });
    node.style.background = parts.length ? `repeating-linear-gradient(90deg, ${parts.join(", ")})` : colour;
    return node;
  };

  KLM.download = function (name, blob) {
    const link = KLM.el("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // Parts of the page beside the charts, classes in the order in which they stand: each is made with
  // the app, has a `node`, and may have `draw()` (what is selected, shown or under the cursor has
  // changed) and `told(details, step, run)` (what the host knows of the step under the cursor, null:
  // nothing). A script adds its own: KLM.rooms.push(class extends KLM.Room {...}).
  KLM.rooms = [];

  // The frame of a panel: {node, unit, legend, body}; `tools` are [text, label, does].
  KLM.frame = function ({ id, title, unit = "", help = "", tools = [], wide = false }) {
    const { el } = KLM;
    const buttons = tools.map(([text, label, does]) => el("button", { type: "button", textContent: text, title: label, ariaLabel: `${title}: ${label}`, onclick: does }));
    const parts = { unit: el("span", { className: "unit", textContent: unit }), legend: el("div", { className: "legend" }), body: el("div", { className: "plot" }) };
    parts.node = el("section", { className: wide ? "panel wide" : "panel", id: `panel-${id}` },
      el("header", {}, el("h2", { textContent: title }), parts.unit, el("span", { className: "tools" }, ...buttons)),
      ...(help ? [el("p", { className: "help", textContent: help })] : []), parts.legend, parts.body);
    parts.node.setAttribute("aria-label", title);
    return parts;
  };

  // A room that is a panel.
  KLM.Room = class {
    constructor(app, frame) {
      this.app = app;
      Object.assign(this, KLM.frame(frame));
    }

    // Whether there is nothing to show: `why` is said then, and is empty otherwise.
    bare(why) {
      this.node.classList.toggle("nodata", Boolean(why));
      if (why) {
        this.drawn = null; // what comes back is drawn again
        this.body.replaceChildren(KLM.el("p", { className: "why", textContent: `no data because ${why}` }));
      }
      return Boolean(why);
    }

    // Whether what is drawn from `parts` stands there since the last call.
    same(parts) {
      const same = Boolean(this.drawn) && parts.every((part, i) => part === this.drawn[i]);
      this.drawn = parts;
      return same;
    }
  };
})();
