"""The loss curve of a run as a PNG: training and validation over steps, the best marked, the learning rate below."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

INK, MUTED, TRAIN, VALIDATION = "#1f2328", "#7a828b", "#9fb3c8", "#0b5d8a"
SOURCES = ("#b3541e", "#3a7d44", "#7a5195", "#bc9a00")
SOURCE_LOSS = "validation_loss."
ROOM = {"left": 0.085, "right": 0.985, "bottom": 0.1, "top": 0.94, "hspace": 0.15}
"""Where the axes lie, as shares of the picture."""
NUM_SMOOTHED = 200
"""Training losses are averaged in so many pieces, so that a long run stays a line."""


def loss_curve(records: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> bool:
    """Draw the records of metrics.jsonl into `path`; False, and no file, where there is no loss to draw."""
    train = points(records, "train_loss")
    validation = points(records, "validation_loss")
    if not train and not validation:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: it keeps figures in a global and picks a window system

    figure = Figure(figsize=(8, 4.6), dpi=144)
    figure.subplots_adjust(**ROOM)  # to find it, everything would be drawn twice
    rates = points(records, "learning_rate")
    if rates:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        _draw_rates(below, rates)
    else:
        axes = below = figure.subplots()
    sources = source_curves(records)
    _draw_sources(axes, sources)
    _draw_losses(axes, train, validation)
    below.set_xlabel("step", color=INK)
    axes.set_title(title or "Loss", loc="left", color=INK, fontsize=11)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(path, metadata={"Software": "Tunesmith"})
    return True


def points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the records that hold this number, in order of steps."""
    found = [
        (int(record["step"]), float(record[name]))
        for record in records
        if record.get(name) is not None and "step" in record and isfinite(record[name])
    ]
    return sorted(dict(found).items())


def source_curves(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The validation loss of each source, where several are trained together."""
    names = dict.fromkeys(name for record in records for name in record if name.startswith(SOURCE_LOSS))
    return {name.removeprefix(SOURCE_LOSS): points(records, name) for name in names}


def thinned(curve: Sequence[tuple[int, float]], most: int = NUM_SMOOTHED) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours."""
    if len(curve) <= most:
        return [(float(step), value) for step, value in curve]
    pieces = [curve[i * len(curve) // most : (i + 1) * len(curve) // most] for i in range(most)]
    return [(sum(s for s, _ in piece) / len(piece), sum(v for _, v in piece) / len(piece)) for piece in pieces]


def _draw_sources(axes: Any, sources: Mapping[str, list[tuple[int, float]]]) -> None:
    drawn = {name: curve for name, curve in sources.items() if curve}
    for (name, curve), color in zip(drawn.items(), itertools.cycle(SOURCES), strict=False):
        axes.plot(
            *zip(*curve, strict=True), color=color, linewidth=1.2, linestyle="--", marker="o", markersize=2, label=name
        )


def _draw_losses(axes: Any, train: list[tuple[int, float]], validation: list[tuple[int, float]]) -> None:
    if train:
        axes.plot(*zip(*thinned(train), strict=True), color=TRAIN, linewidth=1.4, label="training")
    if validation:
        axes.plot(
            *zip(*validation, strict=True),
            color=VALIDATION,
            linewidth=1.8,
            marker="o",
            markersize=3,
            label="validation",
        )
        step, best = min(validation, key=lambda point: point[1])
        axes.plot([step], [best], marker="o", markersize=9, markerfacecolor="none", color=VALIDATION)
        axes.annotate(
            f"best {best:.3g} at {step:,}",
            (step, best),
            xytext=(0, 12),
            textcoords="offset points",
            ha="right" if step > 0.7 * validation[-1][0] else "left",
            color=VALIDATION,
            fontsize=9,
        )
    axes.legend(frameon=False, loc="upper right", fontsize=9, labelcolor=INK)
    _plain(axes)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_rates(axes: Any, rates: list[tuple[int, float]]) -> None:
    axes.plot(*zip(*rates, strict=True), color=MUTED, linewidth=1)
    axes.set_ylim(bottom=0)
    highest = max(rate for _, rate in rates)
    axes.set_yticks([0, highest] if highest else [0], ["0", f"{highest:.1e}"] if highest else ["0"])
    axes.set_title("learning rate", loc="left", fontsize=8, color=MUTED, pad=2)
    _plain(axes)


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c5cad0")
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
