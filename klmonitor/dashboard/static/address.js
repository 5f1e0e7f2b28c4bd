// What is selected, kept in the address: copy it to share a view.
"use strict";

(function () {
  KLM.readAddress = function () {
    const q = new URLSearchParams(location.hash.slice(1));
    const range = (q.get("x") || "").split(",").map(Number);
    return {
      runs: q.has("run") ? q.getAll("run") : null,
      pair: q.get("pair"), group: q.get("group") || "", focus: q.get("focus") || "",
      level: q.get("level") === "sequence" ? "sequence" : "token",
      log: q.get("log") === "1",
      step: q.has("step") && Number.isFinite(Number(q.get("step"))) ? Number(q.get("step")) : null,
      range: range.length === 2 && range.every(Number.isFinite) && range[0] < range[1] ? range : null,
      theme: ["dark", "light"].includes(q.get("theme")) ? q.get("theme") : "",
    };
  };

  // The address of a selection, `step` only where it is pinned; in a host's frame it is not ours.
  let waiting;
  KLM.writeAddress = function (state, pinned) {
    if (window.parent !== window) return;
    const q = new URLSearchParams();
    for (const name of state.runs || []) q.append("run", name);
    for (const key of ["pair", "group", "focus", "theme"]) if (state[key]) q.set(key, state[key]);
    if (state.level !== "token") q.set("level", state.level);
    if (state.log) q.set("log", "1");
    if (state.step !== null && pinned) q.set("step", state.step);
    if (state.range) q.set("x", state.range.map((v) => Number(v.toFixed(2))).join(","));
    clearTimeout(waiting);
    waiting = setTimeout(() => history.replaceState(null, "", `#${q}`), 150);
  };
})();
