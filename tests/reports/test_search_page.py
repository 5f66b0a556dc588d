"""The plots and the page of a search, drawn from its report alone."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunesmith.reports.search_page import ranked, search_page
from tunesmith.reports.search_plots import column, draw_plots, for_page, height, view


def trial(number: int, value: float | None, state: str = "complete", **params: Any) -> dict[str, Any]:
    return {
        "trial": number,
        "params": params,
        "chosen": params,
        "state": state,
        "value": value if state == "complete" else None,
        "validation_loss": value,
        "best_step": 8,
        "steps": 10 if state == "complete" else 0,
        "seconds": 3.0,
        "peak_bytes": 10**9,
        "trainable": 100,
        "losses": [],
        "code": "not_finite" if state == "failed" else "",
        "fault": "the loss is not a number <b>" if state == "failed" else "",
    }


def made() -> dict[str, Any]:
    """A report with every state, a key that is not always there, and a value far off."""
    trials = [
        trial(1, 3.0, **{"method": "lora", "train.lr": 1e-4, "method.rank": 4}),
        trial(2, 2.0, **{"method": "lora", "train.lr": 1e-3, "method.rank": 8}),
        trial(3, 2.5, **{"method": "full", "train.lr": 1e-3}),
        trial(4, 90.0, **{"method": "full", "train.lr": 1e-2}),
        trial(5, 4.0, "pruned", **{"method": "full", "train.lr": 1e-2}),
        trial(6, None, "failed", **{"method": "full", "train.lr": 1e-1}),
    ]
    return {
        "name": "small",
        "at": "2026-11-21T15:00:00Z",
        "seconds": 60.0,
        "metric": "validation_loss",
        "metric_title": "validation loss",
        "higher_is_better": False,
        "sampler": "tpe",
        "pruner": "median",
        "seed": 1,
        "space": [
            {"key": "method", "options": ["lora", "full"], "text": "lora, full"},
            {"key": "train.lr", "low": 1e-4, "high": 1e-1, "log": True, "step": None, "text": "0.0001 to 0.1 (log)"},
            {"key": "method.rank", "options": [8, 4], "text": "8, 4"},
        ],
        "counts": {"complete": 4, "pruned": 1, "failed": 1},
        "best": {**trials[1], "recipe": "best.yaml"},
        "best_run": None,
        "importance": {"train.lr": 0.7, "method": 0.3},
        "trials": trials,
        "recipe": {"model": {"name": "tiny"}},
        "environment": {"machine": "x", "num_cores": 2, "python": "3.11", "packages": {"torch": "2"}},
    }


def test_a_value_passes_its_axis_where_it_belongs() -> None:
    report = made()
    _, ticks, at = column(report, report["space"][1])
    assert [at(one) for one in report["trials"][:2]] == pytest.approx([0.0, 1 / 3]), "1e-3 is a third of three decades"
    assert (ticks[0], ticks[-1]) == ((0.0, "0.0001"), (1.0, "0.1"))
    title, ticks, at = column(report, report["space"][2])
    assert title == "rank" and [text for _, text in ticks] == ["4", "8", "–"], (
        "numbers in order, and where it is absent"
    )
    assert at(report["trials"][0]) == 0.0 and at(report["trials"][1]) == 1.0 and at(report["trials"][2]) < 0


def test_one_value_far_off_does_not_squeeze_the_rest() -> None:
    low, high = view([2.0, 2.1, 2.2, 2.3, 2.4, 90.0], higher_is_better=False)
    assert low == 2.0 and high < 90
    assert view([0.9, 0.89, 0.88, 0.87, 0.0], higher_is_better=True)[0] > 0
    assert view([1.0, 1.0], higher_is_better=False) == (0.9, 1.1)


def test_only_what_has_a_value_is_drawn_at_one() -> None:
    report = made()
    assert [height(report, one) for one in report["trials"]] == [3.0, 2.0, 2.5, 90.0, 4.0, None]
    report["metric"] = "rouge"
    assert height(report, report["trials"][4]) is None, "a loss has no place among other scores"


def test_every_plot_is_drawn_as_png_and_as_svg_in_the_colours_of_the_page(tmp_path: Path) -> None:
    drawn = draw_plots(made(), tmp_path)
    assert set(drawn) == {"history", "importance", "parallel"}
    for name, svg in drawn.items():
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert svg.startswith("<svg") and "var(--ink)" in svg and "#1f2328" not in svg
        assert "train.lr" in svg or name != "importance"
    again = draw_plots(made(), tmp_path)
    assert again == drawn, "equal reports give equal drawings"


def test_a_search_without_importance_has_no_such_plot(tmp_path: Path) -> None:
    assert set(draw_plots({**made(), "importance": {}}, tmp_path)) == {"history", "parallel"}


def test_trials_stand_best_first_and_those_without_a_value_last() -> None:
    report = made()
    assert [one["trial"] for one in ranked(report)] == [2, 3, 1, 4, 5, 6]
    turned = copy.deepcopy(report) | {"higher_is_better": True}
    assert [one["trial"] for one in ranked(turned)][:4] == [4, 1, 3, 2]


def test_the_page_is_whole_needs_nothing_else_and_escapes_what_it_quotes(tmp_path: Path) -> None:
    report = made()
    page = search_page(report, draw_plots(report, tmp_path))
    assert "Validation loss 2.00" in page and "with method lora, train.lr 0.001, method.rank 8" in page
    assert "1 ended early · 1 failed" in page
    assert "not a number &lt;b&gt;" in page
    assert not re.search(r'(src|href)="(?!#)', page), "nothing is loaded from elsewhere"
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "input", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Balance().feed(page)
    assert open_tags == []


def test_an_svg_keeps_its_shape_and_loses_what_belongs_to_a_file() -> None:
    head = '<?xml version="1.0"?>\n<svg height="9pt" viewBox="0 0 9 9" width="9pt">'
    svg = head + '<metadata>x</metadata><g id="axes_1"/></svg>'
    assert for_page(svg) == '<svg viewBox="0 0 9 9"><g/></svg>'
