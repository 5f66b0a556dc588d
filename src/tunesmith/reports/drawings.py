"""Drawings as inline SVG that follow the page's colours; each has a title and a description in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.core.quantities import interval, number

WIDTH = 960
ROW, TOP, BOTTOM = 44, 8, 34
LABELS, VALUES = 220, 190
"""Room for the names on the left and the numbers on the right."""


def interval_plot(report: Mapping[str, Any]) -> str:
    """Every row's score as a mark on a common axis, with its interval as a line."""
    key = report["metric"]
    rows = [(row["name"], row["kind"], row["scores"][key]) for row in report["rows"]]
    lowest, highest, ticks = axis([score for *_, score in rows], is_rate=report["is_rate"])
    height = TOP + ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        share = (value - lowest) / ((highest - lowest) or 1)
        return LABELS + min(1.0, max(0.0, share)) * (WIDTH - LABELS - VALUES)

    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text class="soft" x="{x(t):.1f}" y="{height - 10}" font-size="14" text-anchor="middle">{number_of(t)}</text>'
        for t in ticks
    ]
    for i, (name, kind, score) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        value, low, high = score["value"], score["low"], score["high"]
        text, _, band = interval(value, low, high).partition(" ")
        parts.append(
            f'<g class="{kind}"><text x="0" y="{y + 5:.1f}" font-size="16">{escape(_cut(name, 26))}</text>'
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="currentColor" stroke-width="3" '
            f'stroke-linecap="round" opacity=".55"/>'
            f"{_mark(kind, x(value), y)}"
            f'<text x="{WIDTH - VALUES + 34}" y="{y + 5:.1f}" font-size="16" font-weight="600">{text}'
            f'<tspan class="soft" font-weight="400" font-size="14" dx="10">{band}</tspan></text></g>'
        )
    words = "; ".join(f"{name} {interval(s['value'], s['low'], s['high'])}" for name, _, s in rows)
    title = f"{report['metric_title']} of each row with its 95 % interval"
    return _svg(WIDTH, height, title, words, "".join(parts))


def curve_plot(name: str, curve: Mapping[str, Any]) -> str:
    """Training and validation loss over steps, the best validation marked."""
    width, height, left, right, top, bottom = 460, 210, 44, 10, 10, 30
    train, validation = curve["train"], curve["validation"]
    points = [*train, *validation]
    if not points:
        return ""
    lowest, highest, ticks = nice(min(v for _, v in points), max(v for _, v in points), 4)
    last = max(s for s, _ in points) or 1

    def at(point: Sequence[float]) -> tuple[float, float]:
        share = (point[1] - lowest) / ((highest - lowest) or 1)
        return left + point[0] / last * (width - left - right), top + (1 - share) * (height - top - bottom)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at((0, t))[1]:.1f}" y2="{at((0, t))[1]:.1f}"/>'
        f'<text class="soft" x="{left - 8}" y="{at((0, t))[1] + 4:.1f}" font-size="12" text-anchor="end">'
        f"{number_of(t)}</text>"
        for t in ticks
    ]
    parts.append(f'<text class="soft" x="{left}" y="{height - 8}" font-size="12">0</text>')
    end = f'x="{width - right}" y="{height - 8}" font-size="12" text-anchor="end"'
    parts.append(f'<text class="soft" {end}>step {last:,.0f}</text>')
    for series, style in ((train, 'stroke-width="1.4" opacity=".5"'), (validation, 'stroke-width="2.2"')):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(at, series))
        parts.append(f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-linejoin="round" {style}/>')
    words = f"training loss from {number(train[0][1])} to {number(train[-1][1])}" if train else ""
    if validation:
        best = min(validation, key=lambda point: point[1])
        px, py = at(best)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="currentColor"/>')
        words += f"; best validation loss {number(best[1])} at step {best[0]:,.0f}"
    return _svg(width, height, f"Loss of {name} over steps", words, f'<g class="fine-tuning">{"".join(parts)}</g>')


def axis(scores: Sequence[Mapping[str, float]], *, is_rate: bool) -> tuple[float, float, list[float]]:
    """Both ends of a common axis and its ticks: 0 to 1 for rates, otherwise what the intervals need."""
    if is_rate:
        return 0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    return nice(min(0.0, *(s["low"] for s in scores)), max(s["high"] for s in scores), 5)


def nice(low: float, high: float, count: int) -> tuple[float, float, list[float]]:
    """Ends and about `count` round ticks around a range."""
    span = (high - low) or abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
    return ticks[0], ticks[-1], ticks


def number_of(tick: float) -> str:
    """A tick as short as it can be."""
    return f"{tick:,.6g}".replace("-", "−")


def _mark(kind: str, x: float, y: float) -> str:
    if kind == "prompting":
        return f'<circle cx="{x:.1f}" cy="{y}" r="7" fill="currentColor"/>'
    if kind == "baseline":
        return f'<path d="M{x:.1f} {y - 8}l8 14h-16z" fill="currentColor"/>'
    turn = f' transform="rotate(45 {x:.1f} {y})"' if kind == "retrieval" else ""
    return f'<rect x="{x - 6.5:.1f}" y="{y - 6.5}" width="13" height="13" fill="currentColor"{turn}/>'


def _svg(width: int, height: float, title: str, words: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(words)}</desc>{body}</svg>"
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
