"""The picture of the control variate, as SVG: the tangent, and the error by lambda."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from klmonitor.simulate.study import best_lambda, mixture, moments
from klmonitor.simulate.worlds import Pool

WIDTH, HEIGHT, MARGIN = 400, 300, 48
Points = Sequence[tuple[float, float]]


def svg(pool: Pool) -> str:
    """Two panels: r - 1 over log r, whose distance is k3; sd over the KL against lambda."""
    weights = [float(w) for w in np.linspace(0, 1.5, 61)]
    noise = [(w, moments(pool, mixture(w))[1] / pool.kl) for w in weights]
    best = best_lambda(pool)
    marks = [(w, moments(pool, mixture(w))[1] / pool.kl, n) for w, n in ((0.0, "k1"), (1.0, "k3"))]
    if 0 <= best <= 1.5:
        marks.append((best, moments(pool, mixture(best))[1] / pool.kl, "lambda*"))
    r = np.linspace(0.12, 3, 120)
    line = [(float(x), float(x - 1)) for x in r]
    curve = [(float(x), math.log(x)) for x in r]
    title = f"{pool.name}, KL {pool.kl:.3g} nats: sd of one token's estimate over the KL"
    panels = (
        _panel(0, "r - 1 is the tangent of log r at 1: k3 is the distance", "r = p/q",
               [(line, "#1f77b4"), (curve, "#d62728")], []),
        _panel(WIDTH, title, "lambda", [(noise, "#1f77b4")], marks),
    )  # fmt: skip
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *panels, "</svg>\n"])


def _panel(
    left: float,
    title: str,
    below: str,
    curves: Sequence[tuple[Points, str]],
    marks: Sequence[tuple[float, float, str]],
) -> str:
    every = [point for points, _ in curves for point in points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    low = min(0.0, *ys) if not marks else 0.0
    high = max(ys) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / (max(xs) - min(xs))
        up = (y - low) / (high - low)
        return (
            left + MARGIN + across * (WIDTH - 2 * MARGIN),
            HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN),
        )

    (x0, y0), (x1, y1) = place(min(xs), low), place(max(xs), high)
    parts = [
        f'<text x="{left + MARGIN}" y="20">{title}</text>',
        f'<path d="M{x0:.1f},{y1:.1f}V{y0:.1f}H{x1:.1f}" fill="none" stroke="black"/>',
        f'<text x="{(x0 + x1) / 2:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{below}</text>',
        *(_label(*place(x, low), f"{x:.2g}", "middle", 14) for x in (min(xs), max(xs))),
        *(_label(x0 - 4, place(min(xs), y)[1], f"{y:.3g}", "end", 4) for y in (low, high)),
    ]
    for points, colour in curves:
        drawn = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for x, y, name in marks:
        across, up = place(x, y)
        parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="#d62728"/>')
        parts.append(_label(across + 6, up - 6, f"{name} {y:.3g}", "start", 0))
    return "\n".join(parts)


def _label(x: float, y: float, text: str, anchor: str, down: float) -> str:
    return f'<text x="{x:.1f}" y="{y + down:.1f}" text-anchor="{anchor}">{text}</text>'
