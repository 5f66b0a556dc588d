"""The loss curve is drawn from metrics.jsonl as it is, torn or empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.reports.curve import loss_curve, points, source_curves, thinned


def test_points_are_sorted_and_the_last_of_a_step_counts() -> None:
    records = [
        {"step": 2, "train_loss": 1.0},
        {"step": 1, "train_loss": 2.0, "validation_loss": None},
        {"step": 2, "train_loss": 0.5},
        {"step": 3, "train_loss": float("nan")},
        {"train_loss": 9.0},
    ]
    assert points(records, "train_loss") == [(1, 2.0), (2, 0.5)]
    assert points(records, "validation_loss") == []


def test_thinning_keeps_the_mean() -> None:
    curve = [(i, float(i % 7)) for i in range(1, 1001)]
    thin = thinned(curve, 100)
    assert len(thin) == 100
    assert sum(v for _, v in thin) / 100 == pytest.approx(sum(v for _, v in curve) / 1000)
    assert thinned(curve[:5], 100) == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0), (5.0, 5.0)]


@pytest.mark.parametrize(
    "records",
    [
        [{"step": i, "train_loss": 3 / i, "learning_rate": 1e-4, "validation_loss": 4 / i} for i in range(1, 20)],
        [{"step": 1, "validation_loss": 1.0}],
        [{"step": 1, "train_loss": 1.0, "learning_rate": 0.0}],
    ],
)
def test_a_curve_is_a_png(tmp_path: Path, records: list[dict[str, float]]) -> None:
    assert loss_curve(records, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_loss_there_is_no_file(tmp_path: Path) -> None:
    assert not loss_curve([{"step": 1, "tokens_per_second": 3.0}], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_each_source_has_its_own_curve() -> None:
    records = [
        {"step": step, "validation_loss": 3.0, "validation_loss.kinds": 1.0 / step, "validation_loss.texts": None}
        for step in (2, 1)
    ]
    assert source_curves(records) == {"kinds": [(1, 1.0), (2, 0.5)], "texts": []}


def test_sources_are_drawn_into_the_picture(tmp_path: Path) -> None:
    plain = [{"step": step, "validation_loss": 3.0 / step} for step in (1, 2, 3)]
    several = [{**record, "validation_loss.a": 1.0, "validation_loss.b": 2.0} for record in plain]
    assert loss_curve(plain, tmp_path / "plain.png") and loss_curve(several, tmp_path / "several.png")
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "several.png").read_bytes()
