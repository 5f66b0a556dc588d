"""Retrain: the champion's recorded recipe with new rows, promoted only if it beats what is served.

The held-out rows stay the champion's: new rows are for training only, and one that asks what a held-out row asks is
left out. Both answer the same rows; the new version must be better by estimate and, as for every promotion, not
worse beyond the margin. A version that is not better stays registered, and that is no error: the exit code is 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import GateError, UserError
from tunesmith.core.events import Emit, Finding, Finished, Saved, Started, Warning
from tunesmith.core.home import Home
from tunesmith.core.publish import publishing
from tunesmith.core.quantities import count
from tunesmith.core.records import Example
from tunesmith.core.store import CHAMPION, Store, Version, split_reference
from tunesmith.data.load import CARD, DataSet, load_data, read_examples
from tunesmith.data.repeats import content_key, normalise, question_of
from tunesmith.data.write import FORMATS, jsonl, row_of
from tunesmith.recipe import DataSettings, Recipe, override_recipe, read_recipe
from tunesmith.steps.feedback import export
from tunesmith.steps.gates import MARGIN, Gate
from tunesmith.steps.models import promote
from tunesmith.steps.register import register
from tunesmith.steps.train import train

STEP = "retrain"
SIDES = ("train", "validation", "test")


@dataclass(frozen=True)
class Retrained:
    """What a retraining led to."""

    version: Version
    champion: Version
    """What was served when it began."""
    is_promoted: bool
    gates: tuple[Gate, ...]
    run: Path
    data: Path
    num_new_rows: int
    sentence: str
    """Why it was or was not promoted, with the numbers."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": self.version.reference,
            "champion": self.version.reference if self.is_promoted else self.champion.reference,
            "previous": self.champion.reference,
            "is_promoted": self.is_promoted,
            "gates": [gate.to_dict() for gate in self.gates],
            "run": str(self.run),
            "data": str(self.data),
            "new_rows": self.num_new_rows,
            "sentence": self.sentence,
            "seconds": self.seconds,
        }


def retrain(home: Home, name: str, *, data: str = "", margin: float = MARGIN, emit: Emit) -> Retrained:
    """A new version of a name from its champion's recipe and the rows of `data` (else its exported corrections).

    Raises:
        UserError: There is no champion, its data are gone, or nothing in the new rows is new.
    """
    started = time.perf_counter()
    champion = _champion(home, name)
    recipe = read_recipe(champion.folder / "recipe.yaml")
    title = f"{champion.reference}, the champion, with new rows"
    emit(Started(STEP, title, {"champion": champion.reference, "data": data}))
    known = _known_rows(champion, recipe, emit)
    source = data or str(export(home, champion.name, kinds=("sft",), emit=emit).file("sft"))
    new = _new_rows(source, recipe, known, emit)
    folder = _mix(home, champion.name, known, new)
    emit(Saved(STEP, str(folder), f"{count(len(known.train))} old and {count(len(new))} new rows"))
    run = train(_with_data(recipe, folder), emit=emit, root=home.runs)
    version = register(home, run.path, champion.name, emit=emit, parent=champion.reference)
    try:
        gates = promote(home, version.reference, margin=margin, emit=emit, must_improve=True).judgement.gates
        is_promoted = True
    except GateError as fault:
        gates, is_promoted = fault.gates, False
    sentence = _sentence(version, champion, gates, is_promoted=is_promoted)
    seconds = time.perf_counter() - started
    result = Retrained(version, champion, is_promoted, gates, run.path, folder, len(new), sentence, seconds)
    emit(Finished(STEP, sentence, seconds, {"is_promoted": is_promoted, "version": version.number}, next=_next(result)))
    return result


def _champion(home: Home, name: str) -> Version:
    name = split_reference(name)[0]
    with Store.open(home) as store:
        newest = store.version(name)
        if CHAMPION not in store.aliases(name):
            raise UserError(
                f'"{name}" has no champion, so there is nothing to be better than.',
                code="no_champion",
                remedy=f"Promote a version first: tunesmith models promote {newest.reference}",
            )
        return store.version(f"{name}@{CHAMPION}")


def _known_rows(champion: Version, recipe: Recipe, emit: Emit) -> DataSet:
    """What the champion was trained and scored on, read again."""
    known = load_data(recipe.data, seed=recipe.seed)
    recorded = json.loads((champion.folder / "data.json").read_text(encoding="utf-8"))
    changed = [side for side in SIDES if known.card()["contents_sha256"][side] != recorded["contents_sha256"][side]]
    if changed:
        message = f"the {' and '.join(changed)} rows are not those that {champion.reference} was made from"
        emit(Warning(STEP, "data_changed", message))
    return known


def _new_rows(source: str, recipe: Recipe, known: DataSet, emit: Emit) -> list[Example]:
    """Rows to learn from that are not known yet; what is left out is said.

    Raises:
        UserError: They are of another kind, or none is left.
    """
    settings = DataSettings(source=source, system=recipe.data.system, on_fault=recipe.data.on_fault)
    loaded = read_examples(source, settings)
    kind = type(known.train[0])
    wrong = next((example for example in loaded.examples if not isinstance(example, kind)), None)
    if wrong is not None:
        raise UserError(
            f"the new rows are {loaded.format_name} rows, and the champion was trained on {known.format_name} rows.",
            code="mixed_kinds",
            where=str(wrong.origin),
            remedy="Give rows of the same kind.",
        )
    held_out = {normalise(question_of(example)) for example in (*known.validation, *known.test)}
    seen = {content_key(example) for example in known.train}
    new: list[Example] = []
    asked, repeated = [], []
    for example in loaded.examples:
        key = content_key(example)
        if normalise(question_of(example)) in held_out:
            asked.append(example)
        elif key in seen:
            repeated.append(example)
        else:
            seen.add(key)
            new.append(example)
    _say(emit, "held_out_question", "asks what a held-out row asks; left out, so that the test stays honest", asked)
    _say(emit, "duplicate", "is among the training rows already; left out", repeated)
    for finding in loaded.findings:
        emit(finding)
    if not new:
        raise UserError(
            f"no row is new: {count(len(repeated))} are known, {count(len(asked))} ask what a held-out row asks.",
            code="no_new_rows",
            where=source,
            remedy="Add rows that the champion was not trained on.",
        )
    return new


def _say(emit: Emit, code: str, message: str, left_out: Sequence[Example]) -> None:
    if left_out:
        emit(Finding("warning", code, str(left_out[0].origin), message, num_rows=len(left_out)))


def _mix(home: Home, name: str, known: DataSet, new: Sequence[Example]) -> Path:
    """The mixed data set as a published folder, in the form of `tunesmith data prepare`."""
    mixed = replace(known, train=(*known.train, *new), num_read=known.num_read + len(new))
    folder = home.path / "retrain"
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    with publishing(folder / f"{name}-{number}") as draft:
        for side in SIDES:
            rows = [row_of(example) for example in getattr(mixed, side)]
            if rows:
                (draft / f"{side}.jsonl").write_text(jsonl(rows), encoding="utf-8")
        card = {**mixed.card(), "format": FORMATS[type(mixed.train[0])], "read_as": mixed.format_name}
        (draft / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
    return folder / f"{name}-{number}"


def _with_data(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe on the mixed data; what was done to the old rows is not done to them again."""
    plain: dict[str, Any] = {"validation": "", "test": "", "format": "auto", "columns": {}, "limit": 0}
    return override_recipe(recipe, data={"source": str(folder), **plain})


def _sentence(version: Version, champion: Version, gates: Sequence[Gate], *, is_promoted: bool) -> str:
    quality = next((gate for gate in gates if {"champion", "difference"} <= set(gate.values)), None)
    numbers = f"{quality.name} {quality.text.replace('   ', ', ')}" if quality else "the scores could not be compared"
    if is_promoted:
        return f"{version.reference} was promoted over {champion.number}: {numbers}"
    failed = ", ".join(gate.name for gate in gates if not gate.passed)
    return f"{version.reference} was not promoted ({failed}): {numbers}; the champion is still {champion.number}"


def _next(result: Retrained) -> tuple[str, ...]:
    name = result.version.name
    return (f"tunesmith serve {name}",) if result.is_promoted else (f"tunesmith models list {name}",)
