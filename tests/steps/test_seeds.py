"""Several seeds: the same held-out rows, other draws, mean and spread worked by hand, and going on after a stop."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Event, Finished, Metric, Progress, silent
from tunesmith.core.run import RunFolder
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import Recipe, make_recipe, read_recipe
from tunesmith.steps.seeds import SeedsReport, is_seeds, resume_seeds, train_seeds


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return _recipe(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def report(recipe: Recipe, events: list[Event], tmp_path_factory: pytest.TempPathFactory) -> SeedsReport:
    return train_seeds(recipe, 3, emit=events.append, root=tmp_path_factory.mktemp("straight"))


def _recipe(folder: Path) -> Recipe:
    write_tiny(folder / "base", "bert")
    rows = [{"text": f"row {n} is of kind {n % 3}", "label": f"k{n % 3}"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_recipe(
        {
            "name": "few",
            "model": {"name": str(folder / "base"), "precision": "fp32"},
            "data": {"source": str(folder / "rows.jsonl"), "shots": 2, "split": {"validation": 0.2, "test": 0.3}},
            "method": "full",
            "train": {"steps": 3, "tokens_per_step": 64, "micro_tokens": 64, "validations": 1, "lr": 1e-3},
            "seed": 4,
        }
    )


def test_the_mean_and_spread_of_seeds_that_share_their_held_out_rows(report: SeedsReport, events: list[Event]) -> None:
    assert report.seeds == (4, 5, 6)
    assert [run.name for run in report.runs] == ["seed-4", "seed-5", "seed-6"]
    saved = [RunFolder(run).read_json("report.json")["after"] for run in report.runs]
    values = [next(one["value"] for one in after["scores"] if one["metric"] == "accuracy") for after in saved]
    score = report.to_dict()["scores"]["accuracy"]
    assert score["values"] == pytest.approx(values)
    assert score["mean"] == pytest.approx(statistics.mean(values))
    assert score["sd"] == pytest.approx(statistics.stdev(values))
    assert score["low"] <= score["mean"] <= score["high"]
    cards = [RunFolder(run).read_json("data.json")["contents_sha256"] for run in report.runs]
    assert len({card["test"] for card in cards}) == len({card["validation"] for card in cards}) == 1
    assert len({card["train"] for card in cards}) == 3
    recipes = [read_recipe(run / "recipe.yaml") for run in report.runs]
    assert [recipe.seed for recipe in recipes] == [4, 5, 6]
    assert {recipe.data.split.seed for recipe in recipes} == {4}
    assert [event.label for event in events if isinstance(event, Metric) and event.step == "seeds"] == [
        "seed 4",
        "seed 5",
        "seed 6",
    ]
    assert isinstance(events[-1], Finished) and events[-1].table[0][1:] == ("mean", "sd", "each seed")
    assert json.loads((report.path / "report.json").read_text())["scores"] == report.to_dict()["scores"]
    assert "| accuracy |" in (report.path / "report.md").read_text()


def test_what_was_stopped_goes_on_without_the_finished_seeds(recipe: Recipe, report: SeedsReport, tmp_path) -> None:
    class StopError(Exception):
        """Stands for a kill in the middle of the second seed."""

    def stop(event: Event) -> None:
        if isinstance(event, Metric) and event.step == "seeds":
            raise StopError

    with pytest.raises(StopError):
        train_seeds(recipe, 2, emit=stop, root=tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    assert is_seeds(folder) and not (folder / "report.json").exists()
    first = (folder / "seed-4" / "state.json").read_bytes()
    again = resume_seeds(folder, emit=silent)
    assert (folder / "seed-4" / "state.json").read_bytes() == first
    assert again.seeds == (4, 5)
    for metric, score in again.to_dict()["scores"].items():
        assert score["values"] == report.to_dict()["scores"][metric]["values"][:2]


def test_ctrl_c_names_the_command_that_goes_on_with_all_seeds(recipe: Recipe, tmp_path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.label == "training":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        train_seeds(recipe, 2, emit=stop, root=tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    assert caught.value.resume == f"tunesmith train --resume {folder}"


def test_one_seed_has_no_spread(recipe: Recipe, tmp_path) -> None:
    with pytest.raises(UserError, match="at least 2 seeds"):
        train_seeds(recipe, 1, emit=silent, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
