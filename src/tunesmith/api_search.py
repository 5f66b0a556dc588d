"""The verbs of the Python API that look for settings: a search, and the learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.api import RECIPES, Place, _home, _reporter, make_training
from tunesmith.nouns import Search
from tunesmith.recipe import Recipe, make_recipe, read_values

__all__ = ["lr_range", "search"]


def search(
    model: str | Path | Recipe,
    data: Any = None,
    *,
    space: Mapping[str, Any] | None = None,
    trials: int = 0,
    jobs: int = 1,
    home: Place = None,
    **settings: Any,
) -> Search:
    """The best settings of a recipe: `search("recipe.yaml")`, or `search(model, data, space={"train.lr": …})`.

    `space` holds ranges by dotted name, `{"low": 1e-5, "high": 1e-3, "log": True}`, or lists of values. `jobs` trials
    run at once (0: as many as there is room for). Other settings are a recipe's: `search={"sampler": "grid"}`.

    Raises:
        UserError: As `tunesmith search` would say it.
        Interrupted: It was stopped; `tunesmith search --resume` goes on.
    """
    from tunesmith.steps.search import search as run_step
    from tunesmith.steps.search_plan import SearchPlan

    values = _search_values(model, data, settings)
    wished = {"space": dict(space)} if space is not None else {}
    values["search"] = {**values.get("search", {}), **wished, **({"trials": trials} if trials else {})}
    plan, place = SearchPlan.make(values), _home(home)
    with _reporter() as emit:
        found = run_step(plan, emit=emit, root=place.path / "searches", jobs=jobs)
    return Search(found.path, found.report, place)


def lr_range(
    model: str | Path | Recipe,
    data: Any = None,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    home: Place = None,
    **settings: Any,
) -> float:
    """The learning rate at which the loss falls fastest while the rate rises; nothing that was trained is kept.

    The plot lies under `searches/`. Other settings are a recipe's.

    Raises:
        UserError: As `tunesmith search --lr-range` would say it.
    """
    from tunesmith.core.space import without_ranges
    from tunesmith.steps.lr_range import lr_range as run_step

    recipe = make_recipe(without_ranges(_search_values(model, data, settings)))
    with _reporter() as emit:
        found = run_step(recipe, low=low, high=high, num_steps=steps, emit=emit, root=_home(home).path / "searches")
    return found.rate


def _search_values(model: str | Path | Recipe, data: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain recipe values; those of a file keep the ranges beside their keys."""
    if data is None and not settings and not isinstance(model, Recipe) and str(model).endswith(RECIPES):
        return read_values(model)[0]
    return make_training(model, data, **settings).model_dump(mode="json")
