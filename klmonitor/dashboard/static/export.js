// A chart as a picture, or its rows in view as a table.
"use strict";

(function () {
  KLM.savePng = function (chart) {
    if (!chart.plot) return;
    const from = chart.plot.ctx.canvas, head = 26 * devicePixelRatio;
    const canvas = KLM.el("canvas", { width: from.width, height: from.height + head });
    const ctx = canvas.getContext("2d");
    ctx.fillStyle = KLM.ink("paper");
    ctx.fillRect(0, 0, canvas.width, canvas.height);
    ctx.fillStyle = KLM.ink("ink");
    ctx.font = `${13 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.fillText(`${chart.panel.title}, ${chart.panel.unit(chart.app.state)}: ${chart.app.state.pair}`, 8 * devicePixelRatio, 17 * devicePixelRatio);
    ctx.drawImage(from, 0, head);
    canvas.toBlob((blob) => KLM.download(`klmonitor-${chart.panel.id}.png`, blob));
  };

  KLM.saveCsv = (chart) => KLM.download(`klmonitor-${chart.panel.id}.csv`, new Blob([csv(chart)], { type: "text/csv" }));

  // Every row in view, not decimated.
  function csv(chart) {
    const lines = chart.lines(true);
    const [low, high] = chart.app.range();
    const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
    const heads = lines.flatMap(({ line, label }) => (line.band ? [`${label} low`, `${label} high`] : [label]));
    const out = [["run", "step", ...heads].map(quoted).join(",")];
    chart.app.shown().forEach((one, at) => {
      for (let row = KLM.rowFrom(one.run.steps, low); row < one.run.steps.length && one.run.steps[row] <= high; row++) {
        const cells = lines.flatMap(({ line, at: mine, get }) => {
          const columns = line.band ? [get(line.low), get(line.high)] : [get()];
          return columns.map((column) => (mine === at && column && Number.isFinite(column.values[row]) ? String(column.values[row]) : ""));
        });
        out.push([quoted(KLM.visible(one.run.name)), one.run.steps[row], ...cells].join(","));
      }
    });
    return out.join("\r\n") + "\r\n";
  }
})();
