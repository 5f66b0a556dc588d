"""The verbs of the Python API: the same steps as the command line, with the same settings and the same errors."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import Interrupted, UserError, suggest, unknown_name
from tunesmith.core.events import Emit, Event, Finished, Started
from tunesmith.core.home import Home
from tunesmith.core.plugins import Plugin, find, names
from tunesmith.core.run import RunFolder
from tunesmith.core.settings import Settings, validate
from tunesmith.nouns import Data, Plan, Report, Rows, Run, Seeds, Server, Version
from tunesmith.recipe import (
    DataSettings,
    GenerateSettings,
    ModelSettings,
    Recipe,
    TrainSettings,
    make_recipe,
    read_recipe,
)
from tunesmith.reporters.choose import choose
from tunesmith.reporters.text import Output
from tunesmith.reporters.third_parties import silence

if TYPE_CHECKING:
    from tunesmith.steps.merge import Merged
    from tunesmith.steps.models import Promotion, Rollback

__all__ = ["compare", "data", "evaluate", "plan", "register", "run", "serve", "train", "train_seeds"]

Place = str | Path | None
RECIPES = (".yaml", ".yml")
SHORT_NAMES = {"retrieval": "rag"}
FROM_NAMES = "0123456789abcdefghijklmnopqrstuvwxyz._"


def data(source: Any, *, home: Place = None, seed: int = 1, **settings: Any) -> Data:
    """Rows of a file, a folder, a list of rows, a DataFrame or a `datasets.Dataset`: read, checked, split.

    `settings` are those of a recipe's `data`. Rows that are no file are kept under the home, named by their contents.

    Raises:
        UserError: A setting or a row is wrong.
    """
    path = str(source) if isinstance(source, str | Path) else str(_keep(source, _home(home)))
    made = make_data({**settings, "source": path}, seed)
    with _reporter() as emit:
        emit(Started("data"))
        for finding in made.findings:
            emit(finding)
        emit(Finished("data", made.sentence))
    return made


def make_data(settings: Mapping[str, Any], seed: int) -> Data:
    """Data from plain settings, without a word."""
    from tunesmith.data.load import load_data

    chosen = validate(DataSettings, settings, place="data")
    return Data(chosen, load_data(chosen, seed=seed), seed)


def plan(
    model: str | Path | Recipe,
    data: Any = None,
    *,
    machine: str = "",
    method: str | Mapping[str, Any] | Plugin = "",
    objective: str | Mapping[str, Any] | Plugin = "",
    home: Place = None,
    **settings: Any,
) -> Plan:
    """Memory and time of what `train` would do with the same arguments, before anything is loaded.

    `machine` is another machine's name, such as "h100" or "a100x8".

    Raises:
        UserError: As `tunesmith plan` would say it.
    """
    from tunesmith.steps.plan import plan as run_step

    recipe = make_training(model, data, method=method, objective=objective, **settings)
    with _reporter() as emit:
        return Plan.of_step(run_step(recipe, machine=machine, emit=emit, runs=_home(home).runs))


def train(
    model: str | Path | Recipe,
    data: Any = None,
    *,
    method: str | Mapping[str, Any] | Plugin = "",
    objective: str | Mapping[str, Any] | Plugin = "",
    home: Place = None,
    **settings: Any,
) -> Run:
    """Train a model on data, or a recipe: `train("recipe.yaml")`. Ctrl-C saves and gives back a stopped run.

    `settings` are a recipe's, without their sections: `rank=16, epochs=2, lr=2e-4, seed=3`.

    Raises:
        UserError: As `tunesmith train` would say it.
    """
    recipe = make_training(model, data, method=method, objective=objective, **settings)
    place = _home(home)

    def work(emit: Emit) -> RunFolder:
        from tunesmith.steps.train import train as run_step

        return run_step(recipe, emit=emit, root=place.runs)

    return Run(_training(work), place)


def train_seeds(
    model: str | Path | Recipe, data: Any = None, *, num_seeds: int = 5, home: Place = None, **settings: Any
) -> Seeds:
    """As `train`, with the seed and those after it: the mean and the spread of every score, on the same rows.

    `ts.train_seeds("base", data, num_seeds=3, shots=8)` is few-shot fine-tuning with three draws of 8 rows per class.

    Raises:
        UserError: As `tunesmith train --seeds` would say it.
    """
    from tunesmith.steps.seeds import train_seeds as run_step

    recipe = make_training(model, data, **settings)
    place = _home(home)
    with _reporter() as emit:
        return Seeds.of_report(run_step(recipe, num_seeds, emit=emit, root=place.runs), place)


def resume(stopped: Run) -> Run:
    """Go on with a stopped run."""

    def work(emit: Emit) -> RunFolder:
        from tunesmith.steps.train import resume as run_step

        return run_step(stopped.folder, emit=emit)

    return Run(_training(work), stopped.home)


def run(path: str | Path, *, home: Place = None) -> Run:
    """A run that was made before, by its folder or its name under `runs/`."""
    place = _home(home)
    beside = place.runs / str(path)
    is_name = not Path(path).exists() and (beside / "recipe.yaml").is_file()
    return Run(RunFolder.open(beside if is_name else path).path, place)


def evaluate(
    target: str | Path | Run | Version,
    data: str | Path = "",
    *,
    metrics: Sequence[str] = (),
    limit: int = 0,
    home: Place = None,
) -> Report:
    """Scores with intervals, and every answer; a run is scored on its own held-out rows where no data are given."""
    from tunesmith.steps.evaluate import evaluate as run_step

    name = _target(target)
    with _reporter() as emit:
        found = run_step(name, data=str(data), metrics=metrics, limit=limit, emit=emit, home=_home(home))
    return Report.of_evaluation(name, found)


def compare(
    data: Data | Rows,
    rows: Sequence[str | Run | Mapping[str, Any]],
    *,
    model: str = "",
    out: str | Path = "",
    home: Place = None,
    jobs: int = 1,
    **settings: Any,
) -> Report:
    """The same held-out rows answered in several ways: "zero-shot", "few-shot", "retrieval", a method, a run.

    `model` is the base of the prompting rows, the first run's where left out; `jobs` worker processes share the cores.
    Other settings are a recipe's.
    """
    from tunesmith.steps.compare import compare as run_step

    whole = data.data if isinstance(data, Rows) else data
    base = model or next((row.recipe.model.name for row in rows if isinstance(row, Run)), "tunesmith/base")
    values = {"name": f"{Path(whole.name).stem}-compare", "seed": whole.seed, **_arrange({}, settings)}
    values |= {"model": {"name": base, **values.get("model", {})}, "data": whole.settings.model_dump(mode="json")}
    values["compare"] = {**values.get("compare", {}), "rows": [_row(row) for row in rows]}
    recipe = make_recipe(values)
    folder = Path(out) if out else _home(home).path / "comparisons" / recipe.name
    with _reporter() as emit:
        return Report.of_comparison(run_step(recipe, emit=emit, out=folder, jobs=jobs))


def register(run: Run, name: str = "", *, home: Place = None) -> Version:
    """The run as the next version of a name; the same model again gives the version there is."""
    from tunesmith.steps.models import register as run_step

    place = _home(home) if home is not None else run.home
    with _reporter() as emit:
        return Version(run_step(place, run.path, name, emit=emit).reference, place)


def promote(home: Home, reference: str, *, alias: str, must_improve: bool) -> Promotion:
    """Move an alias if every gate holds."""
    from tunesmith.steps.models import promote as run_step

    with _reporter() as emit:
        return run_step(home, reference, alias=alias, must_improve=must_improve, emit=emit)


def merge(run: Run, folder: str | Path, *, precision: str) -> Merged:
    """Write a run's adapter and its base as one plain folder."""
    from tunesmith.steps.merge import merge as run_step

    with _reporter() as emit:
        return run_step(run.path, folder, precision=precision, emit=emit)


def rollback(home: Home, name: str) -> Rollback:
    """Move the champion back."""
    from tunesmith.steps.models import rollback as run_step

    with _reporter() as emit:
        return run_step(home, name, emit=emit)


def serve(*targets: str | Path | Run | Version, port: int = 0, home: Place = None) -> Server:
    """A server with OpenAI's API on a thread of this process: `with ts.serve(run) as server: server.client()`."""
    from tunesmith.steps.serve import start

    owner = next((target.home for target in targets if isinstance(target, Run | Version)), None)
    place = owner if owner is not None and home is None else _home(home)
    with _reporter() as emit:
        return Server(start(place, [_target(target) for target in targets], port=port, emit=emit))


def make_training(
    model: str | Path | Recipe,
    data: Any = None,
    *,
    method: str | Mapping[str, Any] | Plugin = "",
    objective: str | Mapping[str, Any] | Plugin = "",
    **settings: Any,
) -> Recipe:
    """The recipe that `train` carries out."""
    values: dict[str, Any]
    if isinstance(model, Recipe):
        values = model.model_dump(mode="json")
    elif str(model).endswith(RECIPES):
        values = read_recipe(model).model_dump(mode="json")
    else:
        values = {"model": {"name": str(model)}}
    if data is not None:
        given = data if isinstance(data, Data) else _data_of(data)
        values["data"] = given if isinstance(given, dict) else given.settings.model_dump(mode="json")
        values.setdefault("seed", given.seed if isinstance(given, Data) else 1)
    for key, spec in (("method", method), ("objective", objective)):
        if spec:
            values[key] = spec.spec() if isinstance(spec, Plugin) else {"name": spec} if isinstance(spec, str) else spec
    values = _arrange(values, settings)
    if not values.get("name"):
        values["name"] = _name(values)
    return make_recipe(values)


def _arrange(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe with flat settings put into their sections.

    Raises:
        UserError: A name is no setting of any section.
    """
    arranged = dict(values)
    places = _places(arranged)
    for key, value in settings.items():
        if key in Recipe.model_fields:
            held = arranged.get(key)
            arranged[key] = {**held, **value} if isinstance(held, Mapping) and isinstance(value, Mapping) else value
            continue
        place = next((name for name, cls in places.items() if key in cls.model_fields), "")
        if not place:
            raise _unknown(key, places)
        arranged[place] = {**({"name": "lora"} if place == "method" else {}), **arranged.get(place, {}), key: value}
    return arranged


def _places(values: Mapping[str, Any]) -> dict[str, type[Settings]]:
    method = values.get("method") or {"name": "lora"}
    places: dict[str, type[Settings]] = {"method": find("methods", method["name"])}
    objective = values.get("objective", "auto")
    if isinstance(objective, Mapping):
        places["objective"] = find("objectives", objective["name"])
    return {
        **places,
        "train": TrainSettings,
        "generate": GenerateSettings,
        "model": ModelSettings,
        "data": DataSettings,
    }


def _unknown(key: str, places: Mapping[str, type[Settings]]) -> UserError:
    near = [place for place, cls in places.items() if suggest(key, cls.model_fields).here]
    place = near[0] if near else "train"
    elsewhere = {name: list(cls.model_fields) for name, cls in places.items() if name != place}
    try:
        validate(places[place], {key: None}, place=place, elsewhere=elsewhere)
    except UserError as fault:
        return fault
    raise AssertionError(f"{key} was not refused by {place}")


def _name(values: Mapping[str, Any]) -> str:
    source = values.get("data", {}).get("source", "run")
    stem = Path(source).name.partition(".")[0] if isinstance(source, str) else "mix"
    method = (values.get("method") or {}).get("name", "lora")
    name = f"{stem}-{method}".lower().replace("_", "-")
    return "".join(char if char in FROM_NAMES else "-" for char in name).strip("-.") or "run"


def _row(row: str | Run | Mapping[str, Any]) -> Any:
    if isinstance(row, Run):
        return {"run": str(row.path)}
    if not isinstance(row, str):
        return row
    name = SHORT_NAMES.get(row, row).replace("-", "_")
    if name in names("prompting"):
        return {"prompting": name}
    if name in names("methods"):
        return {"method": name}
    known = [*(one.replace("_", "-") for one in names("prompting")), *names("methods")]
    raise unknown_name("row", row, known, listing="tunesmith plugins prompting")


def _data_of(source: Any) -> Data | dict[str, Any]:
    """A path as it stands; anything else is read first."""
    return {"source": str(source)} if isinstance(source, str | Path) else data(source)


def _keep(rows: Any, home: Home) -> Path:
    """Rows from memory as a file that a recipe can name; equal rows give the same file."""
    from tunesmith.core.publish import write_text
    from tunesmith.data.write import jsonl

    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = rows.to_dict(orient="records")
    rows = list(rows)
    wrong = next((place for place, row in enumerate(rows) if not isinstance(row, Mapping)), None)
    if not rows or wrong is not None:
        what = f"row {wrong} is {type(rows[wrong]).__name__}" if wrong is not None else "there are no rows"
        raise UserError(
            f"data are a path, a list of mappings, a DataFrame or a datasets.Dataset; {what}.",
            code="bad_rows",
            remedy='For example: ts.data([{"question": "…", "answer": "…"}, …])',
        )
    text = jsonl(rows)
    path = home.registry / "data" / f"rows-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    if not path.is_file():
        write_text(path, text)
    return path


def _training(work: Any) -> Path:
    """Do the work; where it is interrupted, the folder of the run that was saved."""
    begun: list[str] = []
    with _reporter() as reporter:

        def emit(event: Event) -> None:
            if isinstance(event, Started) and event.values.get("run"):
                begun.append(str(event.values["run"]))
            reporter(event)

        try:
            folder: RunFolder = work(emit)
        except Interrupted:
            if not begun:
                raise
            return Path(begun[-1])
        return folder.path


def _target(target: str | Path | Run | Version) -> str:
    if isinstance(target, Run):
        return str(target.path)
    return target.reference if isinstance(target, Version) else str(target)


def _home(place: Place) -> Home:
    return Home.open(str(place) if place is not None else None)


@contextmanager
def _reporter() -> Iterator[Emit]:
    silence(os.environ)
    with choose(Output(sys.stderr)) as reporter:
        yield reporter
