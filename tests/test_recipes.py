"""Every recipe in recipes/ is valid, says what it is for, and runs: here on tiny models and a handful of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.core.events import Event, silent
from tunesmith.models.tiny import tiny_config, write_tiny
from tunesmith.objectives.base import Task
from tunesmith.recipe import CompareRow, ModelSettings, Recipe, SourceSettings, make_recipe, read_recipe

ROOT = Path(__file__).parent.parent
SIDES = ("path", "validation", "test")
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
COMPARISONS = [path for path in RECIPES if read_recipe(path).compare.rows]

# Rows of the shape of the public data that a recipe names, which the repository does not hold.
GAMES = [
    {"mr": f"inform(name[Game {n}], genres[{genre}])", "ref": f"Game {n} is a {genre} game."}
    for n, genre in enumerate(("racing", "puzzle", "sport", "action") * 6)
]
TEXTS = [{"text": f"The lamp was built in {year} and is still in use."} for year in range(1900, 1924)]
MESSAGES = [
    {"text": f"{start} {n}?", "category": label}
    for n in range(12)
    for start, label in (("Where is my card, order", "card_arrival"), ("Why was I charged fee", "extra_charge"))
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_what_it_is_for_and_how_it_is_run(path: Path) -> None:
    recipe = read_recipe(path)
    first, *_ = text = path.read_text(encoding="utf-8").splitlines()
    verb = "search" if recipe.search.space else "compare" if recipe.compare.rows else "train"
    assert first.startswith("# ") and len(first) > 40
    assert any(line.endswith(f"tunesmith {verb} recipes/{path.name}") for line in text if line.startswith("#"))
    assert recipe.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_data_of_the_repository_or_the_public_data_beside_it(path: Path) -> None:
    data = read_recipe(path).data
    files = [data.source] if isinstance(data.source, str) else []
    files += [] if isinstance(data.source, str) else [getattr(one, key) for one in data.source for key in SIDES]
    for place in filter(None, (*files, data.validation, data.test, data.documents)):
        assert str(place).startswith("../shared/data/") or (ROOT / str(place)).exists(), place


def smaller(path: Path, folder: Path) -> Recipe:
    """The recipe with the same method, objective, metrics and columns, on a tiny model, few rows and two steps."""
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe = read_recipe(path)
    values["name"] = path.stem
    values["data"] |= {"limit": 12, **rows_like(recipe, folder)}
    values.setdefault("train", {}).update(steps=2, validations=1, tokens_per_step=256, micro_tokens=256)
    values["generate"] = {"max_new_tokens": 4}
    if path in COMPARISONS:
        values["compare"] |= {"seeds": 1, "limit": 4}
    objective = "" if recipe.objective == "auto" else recipe.objective.name
    architecture = "bert" if objective in ("classification", "mlm") else "llama"
    task: Task | None = "mask" if objective == "mlm" else None
    name = str(write_tiny(folder / "model", architecture, task))
    values["model"] = tiny_like(recipe.model, name)
    if path in COMPARISONS:
        rows = zip(values["compare"]["rows"], recipe.compare.rows, strict=True)
        values["compare"]["rows"] = [smaller_row(given, row, name) for given, row in rows]
    return make_recipe(values)


def smaller_row(given: Any, row: CompareRow, name: str) -> Any:
    """A row of a comparison with no rates to choose from, on its own tiny model where it has one of its own."""
    if isinstance(given, str):
        return given
    own = {"model": tiny_like(row.model, name)} if row.model is not None else {}
    return {**given, "lr": [], "train": {}, **own}


def tiny_like(model: ModelSettings, name: str) -> dict[str, Any]:
    """The tiny model of that folder, or a random one of the wished architecture."""
    return {"name": name, "config": tiny_config(model.config["model_type"])} if model.config else {"name": name}


def rows_like(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Small files of the shape that the recipe reads: the first lines of the repository's own, or invented ones."""
    if not isinstance(recipe.data.source, str):
        return {"source": [source_like(source, folder) for source in recipe.data.source]}
    places = {name: getattr(recipe.data, name) for name in ("source", "validation", "test")}
    written = {}
    for name, place in places.items():
        if not place:
            continue
        if (ROOT / place).is_file() and not place.startswith(".."):
            lines = (ROOT / place).read_text(encoding="utf-8").splitlines()[: 24 if name == "source" else 4]
        else:
            rows = MESSAGES if "banking77" in place else TEXTS if "wikitext2" in place else GAMES
            lines = [json.dumps(row) for row in (rows if name == "source" else rows[-4:])]
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written[name] = str(file)
    return written


def source_like(source: SourceSettings, folder: Path) -> dict[str, Any]:
    """One of several sources, with small files of its shape."""
    values = source.model_dump(mode="json")
    rows = MESSAGES if "banking77" in source.path else GAMES
    for side in filter(lambda side: values[side], SIDES):
        file = folder / f"{source.title}_{side}.jsonl"
        shown = rows if side == "path" else rows[-4:]
        file.write_text("".join(json.dumps(row) + "\n" for row in shown), encoding="utf-8")
        values[side] = str(file)
    return values


@pytest.mark.parametrize("path", [path for path in RECIPES if path not in COMPARISONS], ids=lambda path: path.stem)
def test_a_recipe_trains_and_scores_before_and_after(path: Path, tmp_path: Path) -> None:
    from tunesmith.steps.train import train

    recipe = smaller(path, tmp_path)
    events: list[Event] = []
    run = train(recipe, emit=events.append, root=tmp_path / "runs")
    report = run.read_json("report.json")
    assert run.state == "finished"
    assert report["training"]["steps"] == 2
    wished = {metric.name for metric in recipe.evaluate} if recipe.evaluate != "auto" else set()
    parts = report["tasks"].values() if "tasks" in report else [report]
    for side in ("before", "after"):
        assert wished <= {score["metric"].partition(":")[0] for part in parts for score in part[side]["scores"]}


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_a_comparison_has_a_row_for_every_row_of_its_recipe(path: Path, tmp_path: Path) -> None:
    from tunesmith.steps.compare import compare

    recipe = smaller(path, tmp_path)
    comparison = compare(recipe, emit=silent, out=tmp_path / "out").to_dict()
    for given, row in zip(recipe.compare.rows, comparison["rows"], strict=True):
        assert row["method"] == (given.method.spec() if given.method else None)
        learns = bool(given.method or given.baseline)
        assert (row["train_seconds"] is not None, row["trainable_parameters"] > 0) == (learns, learns)
