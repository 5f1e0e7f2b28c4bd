// The first line of the page: of each shown run where the pair stands, where it goes, what to believe and
// what is open; and which other pairs have something open.
"use strict";

(function () {
  const { el } = KLM;
  const SIGNS = { fine: "●", warn: "▽", critical: "▼" };

  KLM.glance = function (app) {
    const shown = app.shown(), { pair } = app.state;
    return shown.flatMap(({ run }) => {
      const found = run.glance[pair];
      if (!found) return [];
      const who = shown.length > 1 ? `${KLM.visible(run.name)} · ` : "";
      const others = Object.entries(run.glance).filter(([name, one]) => name !== pair && one.since !== null);
      return [el("p", { className: `glance ${found.level}` },
        el("strong", { textContent: `${SIGNS[found.level]} ${found.level}` }),
        el("span", { textContent: ` ${who}${KLM.visible(pair)} at ${found.parts.map(KLM.visibleLong).join(" · ")}` }),
        ...others.map(([name, one]) => el("button", {
          type: "button", className: one.level, textContent: `${KLM.visible(name)}: ${one.level}, open since step ${one.since}`, onclick: () => app.set({ pair: name }),
        })))];
    });
  };
})();
