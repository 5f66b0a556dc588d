"""One unit of a comparison: a row trained with one seed (where it has a method), answered and measured.

Every unit loads its own model inside the meter, so what an earlier one left behind is not counted.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Progress
from tunesmith.core.plugins import build
from tunesmith.core.records import ChatExample, Message, Origin, TextExample
from tunesmith.core.run import RunFolder
from tunesmith.prompting.base import Ask
from tunesmith.recipe import CompareRow, Recipe, override_recipe, read_recipe
from tunesmith.steps.compare_cells import Cell, Training, Try, Unit, load_cell, load_try, save_cell, save_try, slug
from tunesmith.steps.compare_work import STEP, Work, load_untrained
from tunesmith.steps.evaluate import Evaluation, evaluate_predictor, own_prompt

if TYPE_CHECKING:
    from tunesmith.metrics.base import Metric
    from tunesmith.models.load import Loaded
    from tunesmith.steps.compare_baselines import FittedBaseline

MEASURED = "measured.json"
"""What the meter and the clocks said of a training, kept with its run."""


def do(work: Work, unit: Unit) -> Cell | Try:
    """The unit's result: read, where it was done before, otherwise worked for and written."""
    file = unit.file(work)
    if file.is_file():
        return load_try(file) if unit.is_try else load_cell(file)
    if unit.is_try:
        found = _try(work, unit)
        save_try(found, file)
        return found
    cell = _cell(work, unit)
    save_cell(cell, file)
    return cell


def _cell(work: Work, unit: Unit) -> Cell:
    started = time.perf_counter()
    row = work.row(unit.row)
    if row.baseline:
        return _baseline_cell(work, unit, row, started)
    trained = _opened(work, row) if row.run else _trained(work, unit) if row.method else None
    evaluation, answer_peak_bytes, general = _measure(work, row, trained.run if trained else None)
    before = _general_of_base(work, row) if general else None
    return Cell(
        row=unit.row,
        seed=unit.seed,
        outcomes=evaluation.outcomes,
        seconds=time.perf_counter() - started,
        seconds_per_answer=evaluation.seconds_per_answer,
        answer_peak_bytes=answer_peak_bytes,
        training=_training(work, trained) if trained else None,
        general=(before, general) if before and general else None,
        is_reused=bool(trained and trained.is_reused),
    )


def _try(work: Work, unit: Unit) -> Try:
    """One learning rate with the first seed; a rate at which the training diverges has no loss."""
    wall, processor = time.perf_counter(), time.process_time()
    try:
        trained = _trained(work, unit)
    except UserError as fault:
        if fault.code != "not_finite":
            raise
        loss = None
    else:
        loss = trained.run.read_json("report.json")["training"]["best_validation_loss"]
        shutil.rmtree(trained.run.model)
    assert unit.lr is not None
    return Try(unit.lr, loss, time.perf_counter() - wall, time.process_time() - processor)


@dataclass(frozen=True)
class Trained:
    """A finished run, and what the meter and the clocks said of its training."""

    run: RunFolder
    peak_bytes: int
    whole_seconds: float | None = None
    cpu_seconds: float | None = None
    is_reused: bool = False


def _trained(work: Work, unit: Unit) -> Trained:
    """The unit's training: an earlier one of the same recipe and data, gone on with where it was stopped."""
    from tunesmith.models.meter import MemoryMeter
    from tunesmith.steps.train import resolve, resume, train

    recipe = _recipe(work, unit)
    root = work.out / ("tries" if unit.is_try else "runs")
    wanted = resolve(recipe, work.data).fingerprint()
    wall, processor = time.perf_counter(), time.process_time()
    stopped = None
    for path in sorted(root.glob(f"{recipe.name}-*")):
        run = RunFolder(path)
        if run.recipe.is_file() and read_recipe(run.recipe).fingerprint() == wanted and _has_same_files(run, work):
            if run.state == "finished" and run.model.is_dir():
                return _finished(run)
            stopped = run if run.state in ("running", "stopped") else stopped
    with MemoryMeter() as meter:
        run = resume(stopped, emit=work.emit) if stopped else train(recipe, emit=work.emit, root=root)
    clocks: dict[str, Any] = {}
    if not stopped:
        clocks = {"whole_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}
    run.write(MEASURED, {"train_peak_bytes": meter.peak_bytes, **clocks})
    if work.is_table:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return Trained(run, meter.peak_bytes, **clocks)


def _recipe(work: Work, unit: Unit) -> Recipe:
    """The recipe of a unit's training; every seed has the split of the recipe's own."""
    row = work.row(unit.row)
    assert row.method is not None
    recipe = work.recipe
    train = {**row.train, **(recipe.compare.tries if unit.is_try else {})}
    sections: dict[str, Any] = {}
    if row.model:
        sections["model"] = row.model.model_dump(mode="json")
    if unit.seed != recipe.seed and recipe.data.split.seed == "recipe":
        split = {**recipe.data.split.model_dump(mode="json"), "seed": recipe.seed}
        sections["data"] = {"split": split}
    return override_recipe(
        recipe,
        name=slug(unit.row),
        method=row.method.spec(),
        train={**train, **({"lr": unit.lr} if unit.lr else {})},
        evaluate=[] if work.is_table else [metric.spec() for metric in work.metrics],
        compare={},
        seed=unit.seed,
        **sections,
    )


def _has_same_files(run: RunFolder, work: Work) -> bool:
    """Whether a run read the files, and holds out the rows, that this comparison does."""
    card, own = run.read_json("data.json"), json.loads(json.dumps(work.data.card()))
    if not card or card.get("files") != own["files"]:
        return False
    return bool(card["contents_sha256"]["test"] == own["contents_sha256"]["test"])


def _opened(work: Work, row: CompareRow) -> Trained:
    """The run that the row names; one of other data may have been trained on the rows that are held out here."""
    run = RunFolder.open(row.run)
    sums = json.loads(json.dumps(work.data.card()))["contents_sha256"]
    has_same_data = (run.read_json("data.json") or {}).get("contents_sha256") == sums
    has_same_base = read_recipe(run.recipe).model.name == work.model(row).name
    if run.state != "finished" or not has_same_data or not has_same_base:
        raise UserError(
            "only a finished run of the same model and data, split the same way, can be compared.",
            code="run_unfit",
            where=str(run.path),
            remedy="Train it with this comparison: name its method in the row.",
        )
    return _finished(run)


def _finished(run: RunFolder) -> Trained:
    measured = run.read_json(MEASURED) or {}
    peak = measured.get("train_peak_bytes") or (run.read_json("report.json") or {})["training"]["peak_bytes"]
    return Trained(run, int(peak), measured.get("whole_seconds"), measured.get("cpu_seconds"), is_reused=True)


def _training(work: Work, trained: Trained) -> Training:
    from tunesmith.models.virtual_tokens import PROMPT_ENCODER

    run = trained.run
    report = run.read_json("report.json")
    training, parameters = report["training"], report["parameters"]
    path = run.path.relative_to(work.out) if run.path.is_relative_to(work.out) else run.path
    weights = [file for file in run.model.rglob("*.safetensors") if file.name != PROMPT_ENCODER]
    return Training(
        run=str(path),
        seconds=training["seconds"],
        whole_seconds=trained.whole_seconds,
        cpu_seconds=trained.cpu_seconds,
        peak_bytes=trained.peak_bytes,
        trainable_parameters=parameters["trainable"],
        total_parameters=parameters["total"],
        disk_bytes=sum(file.stat().st_size for file in weights),
        steps=training["steps"],
        epochs=_epochs(run),
        best_validation_loss=training["best_validation_loss"],
    )


def _epochs(run: RunFolder) -> float:
    """How far the training came; less than the recipe's where it stopped early."""
    seen = [record["epoch"] for record in run.read_metrics() if "epoch" in record]
    return float(seen[-1]) if seen else 0.0


def _measure(work: Work, row: CompareRow, run: RunFolder | None) -> tuple[Evaluation, int, float | None]:
    """Answers, the peak of loading and answering, and perplexity on general text where something was trained."""
    from tunesmith.models.load import load_trained
    from tunesmith.models.meter import MemoryMeter
    from tunesmith.models.predict import LocalPredictor

    with MemoryMeter() as meter:
        loaded = load_trained(run.path) if run else load_untrained(work, row)
        predictor = LocalPredictor(loaded)
        evaluation = _evaluate(work, predictor, row, _ask(work, row, loaded))
    return evaluation, meter.peak_bytes, general_perplexity(predictor, loaded) if run else None


def _evaluate(work: Work, predictor: Any, row: CompareRow, ask: Ask = own_prompt) -> Evaluation:
    def relabelled(event: Event) -> None:
        name = next(name for name, known in work.rows if known is row)
        work.emit(replace(event, label=name) if isinstance(event, Progress) else event)

    return evaluate_predictor(
        predictor,
        work.examples,
        _one_of_each_need(work.metrics),  # the answers are what is kept; they are scored where all seeds are together
        ask=ask,
        generate=work.recipe.generate,
        seed=work.recipe.seed,
        emit=relabelled,
        step=STEP,
    )


def _one_of_each_need(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    cheapest = sorted(metrics, key=lambda metric: not metric.is_rate)
    return tuple({metric.needs: metric for metric in reversed(cheapest)}.values())


def _baseline_cell(work: Work, unit: Unit, row: CompareRow, started: float) -> Cell:
    from tunesmith.models.meter import MemoryMeter

    with MemoryMeter() as fitting:
        wall, processor = time.perf_counter(), time.process_time()
        fitted = _fitted(work, row)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - processor
    with MemoryMeter() as answering:
        evaluation = _evaluate(work, fitted, row)
    training = Training(
        run="",
        seconds=seconds,
        whole_seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=fitting.peak_bytes,
        trainable_parameters=fitted.num_parameters,
        total_parameters=fitted.num_parameters,
        disk_bytes=8 * fitted.num_parameters,
        best_validation_loss=fitted.notes["validation_loss"],
    )
    return Cell(
        row=unit.row,
        seed=unit.seed,
        outcomes=evaluation.outcomes,
        seconds=time.perf_counter() - started,
        seconds_per_answer=evaluation.seconds_per_answer,
        answer_peak_bytes=answering.peak_bytes,
        training=training,
        notes=fitted.notes,
    )


def _fitted(work: Work, row: CompareRow) -> FittedBaseline:
    from tunesmith.steps.compare_baselines import fit_frozen, fit_tfidf

    train: Any = work.data.train
    validation: Any = work.data.validation
    if row.baseline == "tfidf":
        return fit_tfidf(train, validation)
    return fit_frozen(load_untrained(work, row), train, validation)


def _ask(work: Work, row: CompareRow, loaded: Loaded) -> Ask:
    prompting = row.prompting
    if prompting.name == "zero_shot":
        return own_prompt
    shots = [example for example in work.data.train if isinstance(example, ChatExample)]
    room = work.recipe.generate.max_new_tokens
    return prompting.prepare(shots, work.documents, fits=fits_into(loaded, room))


def _general_of_base(work: Work, row: CompareRow) -> float | None:
    from tunesmith.models.predict import LocalPredictor

    loaded = load_untrained(work, row)
    return general_perplexity(LocalPredictor(loaded), loaded)


def fits_into(loaded: Loaded, room: int) -> Callable[[Sequence[Message]], bool]:
    """Whether a conversation leaves `room` tokens for the answer in the model's context."""
    from tunesmith.data.template import encode_prompt

    def fits(messages: Sequence[Message]) -> bool:
        return len(encode_prompt(loaded.tokenizer, messages)[1]) + room <= loaded.context

    return fits


def general_perplexity(predictor: Any, loaded: Loaded) -> float | None:
    """Perplexity of plain English that has nothing to do with the task; None for models that do not continue text."""
    if loaded.task != "causal":
        return None
    file = resources.files("tunesmith") / "assets" / "general.txt"
    paragraphs = [part.strip() for part in file.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    examples = [TextExample(origin=Origin("general.txt", i), text=text) for i, text in enumerate(paragraphs, 1)]
    outcomes = predictor.likelihood(examples, lambda done, total: None)
    metric = build("metrics", "perplexity")
    return float(metric.value(metric.statistics(outcomes).sum(axis=0)))


def run_folder(work: Work, name: str) -> RunFolder:
    """A training's run folder by the name that its cell has."""
    return RunFolder(work.out / name if not Path(name).is_absolute() and (work.out / name).exists() else Path(name))
