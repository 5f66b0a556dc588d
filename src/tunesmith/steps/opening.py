"""Opening what answers: a run, a registered version, a model, or an OpenAI-compatible URL, and its held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.home import Home
from tunesmith.core.records import Example
from tunesmith.core.run import RunFolder
from tunesmith.recipe import DataSettings, Recipe, override_recipe, read_recipe

if TYPE_CHECKING:
    from tunesmith.core.store import Store
    from tunesmith.models.predict import Predictor

KEY_VARIABLE = "TUNESMITH_API_KEY"
"""The environment variable that holds the key of an OpenAI-compatible URL, where it wants one."""


@dataclass(frozen=True)
class Opened:
    """A target, ready to answer."""

    predictor: Predictor
    title: str
    task: str
    objective: str
    """Empty where the target does not say."""
    recipe: Recipe | None


def open_target(target: str, home: Home) -> Opened:
    """A predictor from a URL (`http://host/v1#model`), a run, a registered `name@alias`, a folder or a hub name.

    Raises:
        UserError: Nothing of that name can be opened.
    """
    if target.startswith(("http://", "https://")):
        return _open_url(target)
    from tunesmith.models.predict import LocalPredictor

    loaded, recipe = _load(target, home)
    return Opened(
        predictor=LocalPredictor(loaded),
        title=target,
        task=loaded.task,
        objective=str(loaded.card.get("objective", "")),
        recipe=recipe,
    )


def with_named_run(recipe: Recipe, runs: Path) -> Recipe:
    """The recipe with the folder of a run as its model, where `model.name` is the name of one and of nothing here."""
    name = recipe.model.name
    if "/" in name or Path(name).exists() or not (runs / name / "recipe.yaml").is_file():
        return recipe
    return override_recipe(recipe, model={**recipe.model.model_dump(mode="json"), "name": str(runs / name)})


def held_out(data: str, opened: Opened, limit: int = 0) -> tuple[Example, ...]:
    """The rows to score: those of a file, or the run's own.

    Raises:
        UserError: There are none.
    """
    from tunesmith.data.load import load_data, read_examples

    if data:
        settings = opened.recipe.data if opened.recipe else DataSettings(source=data)
        examples = tuple(read_examples(data, settings.model_copy(update={"source": data})).examples)
    elif opened.recipe:
        loaded = load_data(opened.recipe.data, seed=opened.recipe.seed)
        examples = loaded.test or loaded.validation
    else:
        raise UserError("this target has no held-out rows of its own.", code="no_data", remedy="Name a file: --data.")
    if not examples:
        raise UserError("there are no rows to score.", code="no_rows", where=data, remedy="Name a file that has some.")
    return examples[:limit] if limit else examples


def _load(target: str, home: Home) -> tuple[Any, Recipe | None]:
    from tunesmith.models.load import load_trained

    folder = _trained_folder(target, home)
    if folder is None:
        return load_trained(target), None
    RunFolder(folder).refuse_several_tasks()
    recipe = folder / "recipe.yaml"
    return load_trained(folder / "model"), read_recipe(recipe) if recipe.is_file() else None


def _trained_folder(target: str, home: Home) -> Path | None:
    """The folder of a run or of a registered version, None where the target is neither."""
    for path in (Path(target), home.runs / target):
        if (path / "recipe.yaml").is_file():
            return path
    if Path(target).exists() or "/" in target:
        return None
    if "@" in target or ":" in target:
        return _store(home).version(target).folder
    return _store(home).version(target).folder if home.database.is_file() and target in _store(home).names() else None


def _store(home: Home) -> Store:
    from tunesmith.core.store import Store

    return Store.open(home)


def _open_url(target: str) -> Opened:
    import os

    from tunesmith.models.predict import RemotePredictor

    url, _, model = target.partition("#")
    if not model:
        model = _only_model(url)
    predictor = RemotePredictor(url, model, os.environ.get(KEY_VARIABLE, ""))
    return Opened(predictor=predictor, title=f"{model} at {url}", task="causal", objective="sft", recipe=None)


def _only_model(url: str) -> str:
    import httpx

    try:
        names = [model["id"] for model in httpx.get(f"{url.rstrip('/')}/models", timeout=10).json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as fault:
        raise UserError(
            f"no list of models could be read ({fault}).",
            code="no_server",
            where=url,
            remedy="Give the address up to /v1 and the model: http://host:8321/v1#name",
        ) from None
    if len(names) == 1:
        return str(names[0])
    raise UserError(
        f"the server has {len(names)} models: {', '.join(map(str, names[:8]))}.",
        code="which_model",
        where=url,
        remedy=f"Say which: {url}#{names[0] if names else 'name'}",
    )
