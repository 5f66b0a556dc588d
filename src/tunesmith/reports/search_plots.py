"""The plots of a search: what came of each trial, which keys mattered, and which values went together.

Each is written as PNG, for slides, and as SVG; the page holds the SVG with the page's own colours.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.quantities import number

INK, MUTED, FAINT, GRID, ACCENT, PALE = "#1f2328", "#7a828b", "#c5cad0", "#e6e8eb", "#0b5d8a", "#d3dde4"
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--soft)",
    FAINT: "var(--faint)",
    GRID: "var(--faint)",
    ACCENT: "var(--tuned)",
    "#ffffff": "var(--paper)",
}
Report = Mapping[str, Any]
WIDTH = 8.4
"""Inches."""
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2}
"""Behind words that lines may cross."""
MARGIN = 0.06
"""Of an axis, so that no point lies on its end."""
FENCE = 3.0
"""A value so many interquartile ranges beyond the quartile is drawn at the border, with an arrow."""


def draw_plots(report: Report, folder: Path) -> dict[str, str]:
    """Write every plot there are trials for; their SVGs by name, for the page."""
    import matplotlib

    plots: dict[str, Callable[[Report], Any]] = {"history": history, "importance": importance, "parallel": parallel}
    drawn = {}
    for name, draw in plots.items():
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
            figure = draw(report)
            if figure is None:
                continue
            figure.savefig(folder / f"{name}.png", format="png", dpi=144, metadata={"Software": "Tunesmith"})
            metadata = {"Date": None, "Creator": "Tunesmith"}
            figure.savefig(folder / f"{name}.svg", format="svg", transparent=True, metadata=metadata)
        drawn[name] = for_page((folder / f"{name}.svg").read_text(encoding="utf-8"))
    return drawn


def for_page(svg: str) -> str:
    """An SVG of matplotlib's in the colours and the font of the page around it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' id="[a-zA-Z]+(\d*_\d+)+"', "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for ours, pages in PAGE_COLOURS.items():
        svg = svg.replace(ours, pages)
    return svg


def history(report: Report) -> Any:
    """The value of every trial in order, with the best so far as a line."""
    figure, axes = _figure(3.6)
    drawn = _drawn(report)
    low, high = view([value for _, value in drawn], higher_is_better=report["higher_is_better"])
    for trial, value in drawn:
        at = trial["trial"]
        is_out = not low <= value <= high
        if trial["state"] == "pruned":
            style: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": MUTED, "markersize": 5}
        else:
            style = {"markerfacecolor": ACCENT, "markeredgecolor": ACCENT, "markersize": 5.5, "alpha": 0.55}
        mark = "o" if not is_out else "^" if value > high else "v"
        axes.plot([at], [min(high, max(low, value))], mark, linestyle="none", clip_on=False, **style)
    for trial in report["trials"]:
        if trial["state"] == "failed":
            worst = low if report["higher_is_better"] else high
            axes.plot([trial["trial"]], [worst], "x", color=MUTED, markersize=5, clip_on=False)
    _best_so_far(axes, report)
    best = report["best"]
    axes.plot([best["trial"]], [best["value"]], "o", markersize=10, markerfacecolor="none", color=ACCENT)
    room = MARGIN * (high - low)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(0.4, max(trial["trial"] for trial in report["trials"]) + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial", color=INK)
    so_far = f"the best so far, {number(best['value'])} in the end by trial {best['trial']}"
    _title(axes, f"{_capital(report['metric_title'])} of each trial; line: {so_far}")
    _legend(figure, report)
    _plain(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    return figure


def importance(report: Report) -> Any:
    """How much of the value's variance each key explains, as bars."""
    shares = report["importance"]
    if not shares:
        return None
    figure, axes = _figure(0.9 + 0.36 * len(shares))
    keys = list(shares)
    axes.barh(range(len(keys)), [shares[key] for key in keys], height=0.56, color=ACCENT)
    for i, key in enumerate(keys):
        axes.text(shares[key] + 0.012, i, f"{shares[key]:.2f}", va="center", color=INK, fontsize=9.5)
    axes.set_yticks(range(len(keys)), keys)
    axes.set_ylim(len(keys) - 0.45, -0.55)
    axes.set_xlim(0, 1.08 * max(0.3, *shares.values()))
    _title(axes, f"Share of the variance of {report['metric_title']} that each key explains (fANOVA)")
    _plain(axes)
    axes.tick_params(axis="y", length=0, labelsize=9.5, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    return figure


def parallel(report: Report) -> Any:
    """Every trial as a line through its values to its score; the best in front."""
    from matplotlib.colors import LinearSegmentedColormap

    drawn = _drawn(report)
    if not drawn:
        return None
    columns = [column(report, axis) for axis in report["space"]] + [_score_column(report, [v for _, v in drawn])]
    figure, axes = _figure(4.4)
    colours = LinearSegmentedColormap.from_list("score", [PALE, "#8db4c9", ACCENT])
    ranked = sorted(drawn, key=lambda pair: pair[1], reverse=not report["higher_is_better"])
    for place, (trial, _) in enumerate(ranked):
        is_best = trial["trial"] == report["best"]["trial"]
        points = [at(trial) for *_, at in columns]
        share = place / max(1, len(ranked) - 1)
        _curve(
            axes,
            points,
            color=ACCENT if is_best else colours(0.85 * share),
            linewidth=3.0 if is_best else 1.3,
            alpha=1.0 if is_best else 0.9,
            linestyle="-" if trial["state"] == "complete" else (0, (3, 2)),
        )
    for i, (title, ticks, _) in enumerate(columns):
        axes.plot([i, i], [0, 1], color=FAINT, linewidth=1.2, zorder=3)
        axes.text(i, 1.075, title, ha="center", va="bottom", color=INK, fontsize=9.5, fontweight="bold")
        for y, text in ticks:
            is_last = i == len(columns) - 1
            axes.plot([i - 0.008, i + 0.008], [y, y], color=MUTED, linewidth=1, zorder=4)
            axes.text(
                i + (0.03 if is_last or i else -0.03),
                y,
                text,
                ha="left" if is_last or i else "right",
                va="center",
                color=INK,
                fontsize=8.5,
                zorder=5,
                bbox=None if is_last or not i else HALO,
            )
    axes.set_xlim(-0.35, len(columns) - 1 + 0.35)
    axes.set_ylim(min([0.0, *(y for _, ticks, _ in columns for y, _ in ticks)]) - 0.04, 1.16)
    axes.axis("off")
    return figure


BELOW = -0.13
"""Where a trial passes an axis that means nothing in it."""
Column = tuple[str, list[tuple[float, str]], Callable[[Mapping[str, Any]], float]]
"""A title, ticks (height from 0 to 1, text), and where a trial passes."""


def column(report: Report, axis: Mapping[str, Any]) -> Column:
    """The axis of one key; a trial in which the key means nothing passes below it."""
    key = axis["key"]
    if "options" in axis:
        options = sorted(axis["options"]) if _are_numbers(axis["options"]) else list(axis["options"])
        places = {option: _spread(i, len(options)) for i, option in enumerate(options)}
        ticks = [(places[option], shown(option)) for option in options]
    else:
        places = {}
        ticks = [(_height(value, axis), shown(value)) for value in _ticks(axis)]
    is_partial = any(key not in trial["params"] for trial in report["trials"])

    def at(trial: Mapping[str, Any]) -> float:
        value = trial["params"].get(key)
        if value is None:
            return BELOW
        return places[value] if places else _height(value, axis)

    return key.rpartition(".")[2] if "." in key else key, [*ticks, *([(BELOW, "–")] if is_partial else [])], at


def height(report: Report, trial: Mapping[str, Any]) -> float | None:
    """What a trial is drawn at: its value, or where it ended early, the best loss it had."""
    if trial["state"] == "complete":
        return float(trial["value"])
    is_loss = report["metric"] == "validation_loss"
    return trial["validation_loss"] if is_loss and trial["state"] == "pruned" else None


def view(values: Sequence[float], *, higher_is_better: bool) -> tuple[float, float]:
    """The range to show: all values but those far on the bad side, which would squeeze the rest together."""
    low, high = min(values), max(values)
    if len(values) >= 4:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        reach = FENCE * (third - first)
        if higher_is_better:
            low = max(low, first - reach)
        else:
            high = min(high, third + reach)
    return (low, high) if high > low else (low - abs(low or 1) / 10, high + abs(high or 1) / 10)


def shown(value: Any) -> str:
    """A value at an axis, as short as it can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def _best_so_far(axes: Any, report: Report) -> None:
    sign = -1 if report["higher_is_better"] else 1
    steps: list[tuple[int, float]] = []
    for trial in report["trials"]:
        if trial["state"] == "complete" and (not steps or sign * trial["value"] < sign * steps[-1][1]):
            steps.append((trial["trial"], trial["value"]))
    if steps:
        last = max(trial["trial"] for trial in report["trials"])
        xs, ys = zip(*[*steps, (last, steps[-1][1])], strict=True)
        axes.step(xs, ys, where="post", color=ACCENT, linewidth=1.8)


def _legend(figure: Any, report: Report) -> None:
    from matplotlib.lines import Line2D

    marks: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "markerfacecolor": ACCENT, "markeredgecolor": ACCENT, "alpha": 0.55},
        "pruned": {"marker": "o", "markerfacecolor": "none", "markeredgecolor": MUTED},
        "failed": {"marker": "x", "color": MUTED},
    }
    names = {"complete": "to its end", "pruned": "ended early", "failed": "failed"}
    states = {trial["state"] for trial in report["trials"]}
    if report["metric"] != "validation_loss":
        states -= {"pruned"}
    handles = [
        Line2D([], [], linestyle="none", markersize=5.5, label=names[state], **style)
        for state, style in marks.items()
        if state in states
    ]
    if len(handles) > 1:
        place = {"loc": "outside lower right", "ncols": len(handles)}
        figure.legend(handles=handles, frameon=False, fontsize=9, labelcolor=INK, **place)


def _curve(axes: Any, points: Sequence[float], **style: Any) -> None:
    """A line that leaves and meets every axis at a right angle."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    vertices, codes = [(0.0, points[0])], [Curve.MOVETO]
    for i in range(1, len(points)):
        vertices += [(i - 0.6, points[i - 1]), (i - 0.4, points[i]), (float(i), points[i])]
        codes += [Curve.CURVE4] * 3
    axes.add_patch(PathPatch(Curve(vertices, codes), facecolor="none", edgecolor=style.pop("color"), **style))


def _drawn(report: Report) -> list[tuple[Mapping[str, Any], float]]:
    """The trials that have a place in the plots, with their heights."""
    found = ((trial, height(report, trial)) for trial in report["trials"])
    return [(trial, value) for trial, value in found if value is not None]


def _score_column(report: Report, values: Sequence[float]) -> Column:
    low, high = view(values, higher_is_better=report["higher_is_better"])

    def at(value: float) -> float:
        share = (min(high, max(low, value)) - low) / (high - low)
        return share if report["higher_is_better"] else 1 - share

    ticks = [(at(low + i * (high - low) / 4), number(low + i * (high - low) / 4)) for i in range(5)]
    return report["metric_title"], ticks, lambda trial: at(height(report, trial) or 0.0)


def _height(value: float, axis: Mapping[str, Any]) -> float:
    low, high = axis["low"], axis["high"]
    if axis["log"]:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def _ticks(axis: Mapping[str, Any]) -> list[float]:
    """Both ends, and round numbers between where they have room."""
    from tunesmith.reports.drawings import nice

    low, high = axis["low"], axis["high"]
    if axis["log"]:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        between = [factor * 10.0**power for power in powers for factor in (1, 3)]
    else:
        between = nice(low, high, 4)[2]
    ends = [low, high]
    kept = [v for v in between if low < v < high and all(abs(_height(v, axis) - _height(e, axis)) > 0.08 for e in ends)]
    is_whole = isinstance(low, int) and isinstance(high, int)
    return sorted([*ends, *(round(v) if is_whole else v for v in kept)])


def _spread(place: int, many: int) -> float:
    return place / (many - 1) if many > 1 else 0.5


def _are_numbers(options: Sequence[Any]) -> bool:
    return all(isinstance(option, int | float) and not isinstance(option, bool) for option in options)


def _figure(inches: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, inches), layout="constrained")
    return figure, figure.subplots()


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", color=INK, fontsize=10.5, pad=10)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3)
    axes.set_axisbelow(True)
