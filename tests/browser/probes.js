// What the tests ask of the page: pixels, contrast, names of controls.
window.probe = (function () {
  const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

  function like(data, i, colour, within) {
    return colour.every((c, j) => Math.abs(data[i + j] - c) < within) && data[i + 3] > 120;
  }

  function distinctColours(selector) {
    const canvas = document.querySelector(`${selector} canvas`);
    if (!canvas) return 0;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
  }

  // The share of a column of pixels, at a step, that has the colour of alerts.
  function ruleAt(chart, step) {
    const u = KLM.app.charts[chart].plot;
    const x = Math.round(u.valToPos(step, "x", true));
    const { data } = u.ctx.getImageData(x, u.bbox.top, 1, u.bbox.height);
    const colour = rgb(KLM.ink("alert"));
    let rows = 0;
    for (let i = 0; i < data.length; i += 4) if (like(data, i, colour, 30)) rows++;
    return rows / u.bbox.height;
  }

  // Those of the steps at which k3's colour is drawn at the height of a value.
  function drawnAt([steps, value]) {
    const u = KLM.app.charts[0].plot;
    const colour = rgb(KLM.ink("k3"));
    return steps.filter((step) => {
      const x = Math.round(u.valToPos(step, "x", true));
      const y = Math.round(u.valToPos(value, "y", true));
      const { data } = u.ctx.getImageData(x - 2, y - 3, 5, 9);
      for (let i = 0; i < data.length; i += 4) if (like(data, i, colour, 45)) return true;
      return false;
    });
  }

  function contrast(names) {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    function light(name) {
      const [r, g, b] = rgb(KLM.ink(name)).map((c) => linear(c / 255));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }
    const ground = light("panel");
    const ratio = (a) => (Math.max(a, ground) + 0.05) / (Math.min(a, ground) + 0.05);
    return Object.fromEntries(names.map((name) => [name, ratio(light(name))]));
  }

  function nameless() {
    const named = (node) => node.ariaLabel || node.textContent.trim()
      || [...(node.labels || [])].some((label) => label.textContent.trim());
    return [...document.querySelectorAll("button, select, input")].filter((n) => !named(n)).length;
  }

  return { distinctColours, ruleAt, drawnAt, contrast, nameless };
})();
