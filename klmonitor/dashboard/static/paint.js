// Lines and bands on a canvas, fast where they are as dense as the pixels.
"use strict";

(function () {
  // A browser strokes a long zigzag in a time that grows with the square of its points.
  const SHORT = 8;

  // Several values a pixel: a line is one pixel thin, and a band is drawn pixel by pixel.
  KLM.isDense = (xs, pixels) => xs.length > 0.75 * pixels;

  // Where values lie on a canvas: undefined is left out, null is a gap (nan).
  function placed(u, px, ys) {
    const x = [], y = [];
    for (let i = 0; i < ys.length; i++) {
      if (ys[i] === undefined) continue;
      x.push(px[i]);
      y.push(ys[i] === null ? NaN : u.valToPos(ys[i], "y", true));
    }
    return { x, y };
  }

  KLM.placesOf = (u, xs, dense) => xs.map((x) => {
    const at = u.valToPos(x, "x", true);
    return dense ? Math.floor(at) + 0.5 : at;
  });

  KLM.strokeLine = function (u, px, ys, { colour, width, dash, dense }) {
    const { ctx } = u, { x, y } = placed(u, px, ys), scale = devicePixelRatio;
    ctx.strokeStyle = ctx.fillStyle = colour;
    ctx.lineWidth = (dense ? Math.max(1, width - 0.5) : width) * scale;
    ctx.lineJoin = dense ? "bevel" : "round";
    ctx.setLineDash(dash.map((part) => part * scale));
    let length = 0, points = 0;
    const end = () => { if (points > 1) ctx.stroke(); points = 0; };
    for (let i = 0; i < y.length; i++) {
      if (Number.isNaN(y[i])) { end(); length = 0; continue; }
      const from = i > 0 && !Number.isNaN(y[i - 1]);
      const on = i + 1 < y.length && !Number.isNaN(y[i + 1]);
      if (!from && !on) dot(ctx, x[i], y[i], 2 * scale); // no line reaches it
      if (from) length += Math.hypot(x[i] - x[i - 1], y[i] - y[i - 1]);
      if (points) ctx.lineTo(x[i], y[i]);
      if (points >= SHORT) end();
      if (!points) {
        ctx.lineDashOffset = length;
        ctx.beginPath();
        ctx.moveTo(x[i], y[i]);
      }
      points++;
    }
    end();
  };

  function dot(ctx, x, y, radius) {
    ctx.beginPath();
    ctx.arc(x, y, radius, 0, 2 * Math.PI);
    ctx.fill();
  }

  KLM.fillBand = function (u, px, lows, highs, { colour, dense }) {
    const { ctx } = u, low = placed(u, px, lows), high = placed(u, px, highs);
    ctx.fillStyle = colour;
    if (dense) return columns(ctx, low, high);
    for (let i = 0; i < low.y.length;) {
      const from = i;
      while (i < low.y.length && !Number.isNaN(low.y[i] + high.y[i])) i++;
      if (i > from + 1) area(ctx, low, high, from, i);
      i = Math.max(i, from + 1);
    }
  };

  function area(ctx, low, high, from, to) {
    ctx.beginPath();
    for (let i = from; i < to; i++) ctx.lineTo(low.x[i], low.y[i]);
    for (let i = to - 1; i >= from; i--) ctx.lineTo(high.x[i], high.y[i]);
    ctx.fill();
  }

  // Upright bars from one point to the next, on whole pixels, so that none overlaps another.
  function columns(ctx, low, high) {
    const { x } = low, last = x.length - 1;
    for (let i = 0; i <= last; i++) {
      const left = Math.floor(x[i]), right = Math.floor(i < last ? x[i + 1] : x[i] + 1);
      if (right > left && !Number.isNaN(low.y[i] + high.y[i])) ctx.fillRect(left, high.y[i], right - left, low.y[i] - high.y[i]);
    }
  }
})();
