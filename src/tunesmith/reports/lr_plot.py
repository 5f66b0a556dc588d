"""The plot of a learning-rate range test: the loss over the rate, the suggestion marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.reports.search_plots import ACCENT, FAINT, GRID, INK, MUTED

PALE = "#9fb3c8"


def lr_plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw what `RangeTest.to_dict` gives into `path`."""
    from matplotlib.figure import Figure

    points = report["points"]
    rates = [point["rate"] for point in points]
    means = [point["smoothed"] for point in points]
    losses = [point["loss"] for point in points]
    figure = Figure(figsize=(8, 4.4), dpi=144, layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=PALE, linewidth=1.0, alpha=0.7, label="each step")
    axes.plot(rates, means, color=ACCENT, linewidth=2.2, label="smoothed")
    axes.set_xscale("log")
    low, high = min(means), max(means[: max(1, len(means) // 2)])
    room = high - low or 1.0
    axes.set_ylim(low - 0.3 * room, high + 0.25 * room)
    axes.set_xlim(rates[0], rates[-1])
    suggested = report["lr"]
    place = min(range(len(rates)), key=lambda i: abs(rates[i] - suggested))
    axes.axvline(suggested, color=ACCENT, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7)
    axes.plot([suggested], [means[place]], "o", color=ACCENT, markersize=8, markeredgecolor="white", zorder=5)
    axes.annotate(
        f"{report['override']}\nfalls fastest",
        (suggested, means[place]),
        xytext=(-12, -6),
        textcoords="offset points",
        ha="right",
        va="top",
        color=ACCENT,
        fontsize=10,
        fontweight="bold",
    )
    lowest = report["lowest_lr"]
    bottom = means[min(range(len(rates)), key=lambda i: abs(rates[i] - lowest))]
    axes.plot([lowest], [bottom], "o", markersize=8, markerfacecolor="none", color=MUTED)
    axes.annotate(
        f"lowest at {lowest:.2g}",
        (lowest, bottom),
        xytext=(0, -14),
        textcoords="offset points",
        ha="center",
        va="top",
        color=MUTED,
        fontsize=9,
    )
    axes.set_xlabel("learning rate", color=INK)
    axes.set_title("Training loss while the learning rate rises", loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, loc="upper right", fontsize=9, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(which="both", colors=MUTED, labelsize=8.5, length=3)
    axes.tick_params(which="minor", length=2)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    figure.savefig(path, format="png", metadata={"Software": "Tunesmith"})
