"""The quality plot of a comparison as a PNG, for slides and papers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.quantities import interval
from tunesmith.reports.drawings import axis

COLOURS = {"prompting": "#6b7580", "retrieval": "#a3620a", "baseline": "#7a4a8a", "fine-tuning": "#0b5d8a"}
MARKS = {"prompting": "o", "retrieval": "D", "baseline": "^", "fine-tuning": "s"}


def quality_plot(report: Mapping[str, Any], path: Path) -> None:
    """Every row's score with its 95 % interval, drawn into `path`."""
    from matplotlib.figure import Figure

    rows = report["rows"]
    scores = [row["scores"][report["metric"]] for row in rows]
    figure = Figure(figsize=(8, 0.9 + 0.45 * len(rows)), dpi=144, layout="constrained")
    axes = figure.subplots()
    for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
        colour = COLOURS[row["kind"]]
        axes.plot([score["low"], score["high"]], [i, i], color=colour, linewidth=2, alpha=0.6, solid_capstyle="round")
        axes.plot([score["value"]], [i], color=colour, marker=MARKS[row["kind"]], markersize=7)
        text = interval(score["value"], score["low"], score["high"])
        axes.text(1.02, i, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    lowest, highest, ticks = axis(scores, is_rate=report["is_rate"])
    axes.set_xlim(lowest, highest)
    axes.set_xticks(ticks)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{report['metric_title']}, {report['num_rows']} held-out {report['noun']}, 95 % intervals")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    figure.savefig(path, format="png", metadata={"Software": "Tunesmith"})
