"""The learning-rate range test: its rates, its smoothing, its rule, and that nothing of it stays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.events import silent
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import Recipe, make_recipe
from tunesmith.steps.lr_range import Point, is_broken, lr_range, rates, smoothed, suggested


def recipe(folder: Path) -> Recipe:
    write_tiny(folder / "tiny", "llama")
    rows = [{"question": f"what does light {n} mean", "answer": "the tank is empty"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"name": str(folder / "tiny"), "precision": "fp32"},
        "data": {"source": str(folder / "rows.jsonl")},
    }
    return make_recipe({**values, "method": "full", "train": {"tokens_per_step": 128, "micro_tokens": 128}})


def test_rates_rise_by_one_factor_from_end_to_end() -> None:
    assert rates(1e-4, 1.0, 5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_smoothing_worked_by_hand() -> None:
    """b = 0.9; m1 = 0.1 * 4 = 0.4, / 0.1 = 4; m2 = 0.36 + 0.2 = 0.56, / 0.19; m3 = 0.504 + 0.3 = 0.804, / 0.271."""
    assert smoothed([4.0, 2.0, 3.0], 0.9) == pytest.approx([4.0, 0.56 / 0.19, 0.804 / 0.271])
    assert smoothed([5.0] * 30, 0.9) == pytest.approx([5.0] * 30), "a constant stays what it is"


def test_the_suggestion_is_where_the_loss_falls_fastest_before_it_is_lowest() -> None:
    """A logistic fall of 3 nats around 1e-3, then a rise from 3e-2 on: steepest at 1e-3 by its form."""

    def loss(rate: float) -> float:
        x = math.log10(rate)
        return 5 - 3 / (1 + math.exp(-4 * (x + 3))) + max(0.0, x + 1.5) ** 2 * 4

    points = [Point(rate, loss(rate), loss(rate)) for rate in rates(1e-6, 1.0, 121)]
    rate, lowest = suggested(points)
    assert rate == pytest.approx(1e-3, rel=0.15)
    assert lowest == min(points, key=lambda point: point.smoothed).rate
    assert 1e-2 < lowest < 1e-1


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        suggested([Point(rate, i, i) for i, rate in enumerate(rates(1e-6, 1.0, 50))])
    assert caught.value.code == "no_rate"
    assert caught.value.message == (
        "the loss fell at no learning rate: smoothed, it went from 10 at 1.7e-05 to 49 at 1.0e+00."
    )
    assert "the first 10 only warm up" in caught.value.remedy


def test_a_loss_that_breaks_at_once_says_so() -> None:
    with pytest.raises(UserError, match="the loss broke after 8 steps, of which the first 10 say nothing"):
        suggested([Point(rate, i, i) for i, rate in enumerate(rates(1e-6, 1.0, 50)[:8])])


def test_so_few_steps_that_half_a_decade_holds_one_rate_still_give_a_suggestion() -> None:
    """20 steps over 6 decades lie 0.32 decades apart: slopes were measured over one rate, and never found."""
    points = [Point(rate, 0.0, abs(math.log10(rate) + 1.5)) for rate in rates(1e-6, 1.0, 20)]
    rate, lowest = suggested(points)
    assert 1e-3 < rate < lowest < 0.1


def test_it_ends_where_the_loss_breaks() -> None:
    calm = [4.0] * 20
    assert not is_broken(calm) and not is_broken([*calm, 5.9])
    assert is_broken([*calm, 6.1]), "half as much again as at the beginning"
    assert is_broken([*calm, 0.5, 2.1]) and not is_broken([*calm, 0.5, 1.9]), "four times the lowest"
    assert not is_broken([1.0, 9.0]), "the first steps say nothing"


def test_nothing_is_kept_but_the_report_and_the_plot(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    found = lr_range(made, low=1e-5, high=10.0, num_steps=60, emit=silent, root=tmp_path / "searches")
    assert torch.equal(torch.rand(3), expected), "the random states are as they were"
    assert 1e-5 < found.rate < found.lowest < 10
    assert found.has_diverged and len(found.points) < 60
    assert found.override == f"train.lr={found.rate:g}"
    assert {path.name for path in found.path.iterdir()} == {"lr_range.png", "recipe.yaml", "report.json"}
    report = json.loads((found.path / "report.json").read_text())
    assert report["lr"] == found.rate and len(report["points"]) == len(found.points)
    again = lr_range(made, low=1e-5, high=10.0, num_steps=60, emit=silent, root=tmp_path / "searches")
    assert again.points == found.points


def test_an_empty_range_or_too_few_steps_are_refused_at_once(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    for low, high, steps, code in (
        (1.0, 1e-3, 50, "empty_range"),
        (0.0, 1.0, 50, "empty_range"),
        (0.1, 1, 5, "bad_value"),
    ):
        with pytest.raises(UserError) as caught:
            lr_range(made, low=low, high=high, num_steps=steps, emit=silent, root=tmp_path / "searches")
        assert caught.value.code == code
    assert not (tmp_path / "searches").exists()
