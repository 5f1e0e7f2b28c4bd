// The KL term's coefficient c against d: its curve, the reverse KL's beside it, and the tokens of the
// step under the cursor where they lie on it. A canvas of its own, as its x axis is no step.
"use strict";

(function () {
  const { el } = KLM;
  const KNEE = 0.05, HEIGHT = 230, LEFT = 58, BELOW = 24, DECADES = 7;
  const TICKS = [0.1, 1, 10, 100, 1000, 1e4, 1e6, 1e9];
  const bend = (v) => Math.asinh(v / KNEE);

  // Places in pixels of a range [low, high] on an asinh axis.
  const axis = (low, high, from, to) => (v) => from + ((bend(v) - bend(low)) / (bend(high) - bend(low) || 1)) * (to - from);

  KLM.rooms.push(class extends KLM.Room {
    constructor(app) {
      super(app, {
        id: "pull", title: "What the KL term pulls", unit: "c of grad log π, against d = log ref - log π in nats", wide: true,
        help: "What the KL term adds to a token's gradient. Off the dashed line where the tokens are, it pulls otherwise than the reverse KL.",
        tools: [["PNG", "save as PNG", () => this.savePng()]],
      });
    }

    // The curve of the selected pair and the share of the step's tokens in each row of the heat map.
    what() {
      const one = this.app.focused(), { pair, step } = this.app.state;
      const curve = one && one.run.pull[pair];
      if (!curve) return { why: "the run tells of no KL term on this pair: klmonitor.attach reads TRL's, others are given as penalty=" };
      if (curve.why) return curve;
      const row = step === null ? -1 : KLM.nearestRow(one.run.steps, step);
      const heat = row < 0 || !one.pair ? [] : one.pair.heat.subarray(row * KLM.HEAT_ROWS, (row + 1) * KLM.HEAT_ROWS);
      const tokens = [];
      heat.forEach((byte, i) => { if (byte) tokens.push({ d: middle(i), c: curve.rows[i], share: Math.pow(10, ((byte - 255) * DECADES) / 254) }); });
      const shares = one.pair && one.pair.metrics["penalty/dead_share"];
      return { curve, tokens, step: row < 0 ? null : one.run.steps[row], lost: shares && row >= 0 ? shares[row] : NaN };
    }

    draw() {
      const found = this.what();
      this.legend.replaceChildren();
      if (this.bare(found.why)) {
        this.canvas = null;
        return;
      }
      const width = Math.max(280, Math.floor(this.body.clientWidth || this.node.clientWidth || 600)), scale = devicePixelRatio;
      this.canvas = el("canvas", { width: width * scale, height: HEIGHT * scale });
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${HEIGHT}px`;
      this.body.replaceChildren(this.canvas);
      const ctx = this.canvas.getContext("2d");
      ctx.scale(scale, scale);
      this.paint(ctx, width, found);
      this.key(found);
    }

    paint(ctx, width, { curve, tokens }) {
      const far = Math.max(1, ...tokens.map((t) => Math.abs(t.d))) * 1.3;
      const inside = curve.d.map((d, i) => i).filter((i) => Math.abs(curve.d[i]) <= far);
      const sizes = [...tokens.map((t) => Math.abs(t.c)), ...tokens.map((t) => Math.abs(t.d)), 1];
      const most = Math.max(...sizes) * 1.5;
      const x = axis(-far, far, LEFT, width - 8), y = axis(-most, most, HEIGHT - BELOW, 6);
      ctx.font = "11px system-ui, sans-serif";
      ctx.lineWidth = 1;
      ctx.strokeStyle = KLM.ink("grid");
      ctx.fillStyle = KLM.ink("ink");
      const ticks = (limit) => [0, ...TICKS.filter((v) => v <= limit).flatMap((v) => [v, -v])];
      ctx.textAlign = "center";
      for (const v of ticks(far)) { stroke(ctx, [[x(v), 6], [x(v), HEIGHT - BELOW]]); ctx.fillText(KLM.number(v), x(v), HEIGHT - 8); }
      ctx.textAlign = "right";
      for (const v of ticks(most)) { stroke(ctx, [[LEFT, y(v)], [width - 8, y(v)]]); ctx.fillText(KLM.number(v), LEFT - 6, y(v) + 4); }
      ctx.save();
      ctx.beginPath();
      ctx.rect(LEFT, 6, width - 8 - LEFT, HEIGHT - BELOW - 6);
      ctx.clip();
      ctx.strokeStyle = KLM.ink("k1");
      ctx.setLineDash([6, 4]);
      ctx.lineWidth = 1.5;
      stroke(ctx, inside.map((i) => [x(curve.d[i]), y(-curve.d[i])]));
      ctx.setLineDash([]);
      ctx.strokeStyle = KLM.ink("k3");
      ctx.lineWidth = 2;
      stroke(ctx, inside.map((i) => [x(curve.d[i]), y(curve.c[i])]));
      for (const t of tokens) {
        ctx.globalAlpha = 0.75;
        ctx.fillStyle = KLM.ink(dead(t) ? "alert" : "ink");
        ctx.beginPath();
        ctx.arc(x(t.d), y(t.c), 2 + 7 * Math.sqrt(t.share), 0, 2 * Math.PI);
        ctx.fill();
      }
      ctx.restore();
    }

    key({ curve, lost, step }) {
      const swatch = (ink) => { const i = el("i", { className: "swatch" }); i.style.background = KLM.ink(ink); return i; };
      const c = curve.ratio ? "c / ρ" : "c";
      this.legend.append(
        el("span", {}, swatch("k3"), `${c} of ${KLM.visible(curve.term)}`),
        el("span", {}, swatch("k1"), "-d, the reverse KL's"),
        el("span", {}, swatch("ink"), step === null ? "no step is under the cursor" : `tokens of step ${step}, by area`));
      if (lost > 0) this.legend.append(el("span", {}, swatch("alert"), "pulled not at all: ", el("b", { textContent: `${KLM.number(Number((100 * lost).toPrecision(3)))} %` })));
    }

    savePng() { if (this.canvas) this.canvas.toBlob((blob) => KLM.download("klmonitor-pull.png", blob)); }
  });

  const dead = (t) => t.c === 0 && t.d !== 0;

  // d in the middle of a row of the heat map: two rows an octave from 2^-9, 30 a side.
  function middle(row) {
    const away = Math.abs(row - 30);
    if (!away) return 0;
    const low = Math.pow(2, -9 + (away - 1) / 2), high = away === 30 ? 64 : Math.pow(2, -9 + away / 2);
    return (Math.sign(row - 30) * (low + high)) / 2;
  }

  function stroke(ctx, points) {
    ctx.beginPath();
    points.forEach(([x, y], i) => { if (i) ctx.lineTo(x, y); else ctx.moveTo(x, y); });
    ctx.stroke();
  }
})();
