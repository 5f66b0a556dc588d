"""The rows of a comparison: planned, trained where they have a method, answered and measured, one after the other."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Progress
from tunesmith.core.plugins import build
from tunesmith.core.records import ChatExample, Example, Message, Origin, Passage, TextExample
from tunesmith.core.run import RunFolder
from tunesmith.metrics.base import Metric
from tunesmith.objectives.base import objective_for
from tunesmith.prompting.base import Ask
from tunesmith.recipe import CompareRow, Recipe, override_recipe, read_recipe
from tunesmith.steps.evaluate import (
    Evaluation,
    default_metrics,
    evaluate_predictor,
    own_prompt,
    score_values,
)
from tunesmith.steps.verdict import Candidate

if TYPE_CHECKING:
    from tunesmith.data.load import DataSet
    from tunesmith.models.load import Loaded

STEP = "compare"
MEASURED = "measured.json"
"""What the meter said of a training, kept with its run."""


@dataclass(frozen=True)
class Work:
    """What every row shares."""

    recipe: Recipe
    data: DataSet
    out: Path
    emit: Emit
    rows: tuple[tuple[str, CompareRow], ...]
    examples: tuple[Example, ...]
    held_out: str
    metrics: tuple[Metric, ...]
    headline: Metric
    documents: tuple[Passage, ...]
    objective: str

    @property
    def noun(self) -> str:
        return "questions" if isinstance(self.examples[0], ChatExample) else "rows"

    @staticmethod
    def plan(recipe: Recipe, data: DataSet, out: Path, emit: Emit) -> Work:
        from tunesmith.data.documents import read_passages

        examples = data.test or data.validation
        if not examples:
            raise UserError(
                "there are no held-out rows to compare on.",
                code="no_rows",
                remedy="Set data.test to a file, or data.split.test to a share.",
            )
        examples = examples[: recipe.compare.limit] if recipe.compare.limit else examples
        objective = objective_for(type(data.train[0])) if recipe.objective == "auto" else recipe.objective.name
        metrics = default_metrics(objective, examples) if recipe.evaluate == "auto" else recipe.evaluate
        rows = recipe.compare.rows or _default_rows(recipe, objective)
        for row in rows:
            _refuse_unfit(row, recipe, examples)
        headline = next((metric for metric in metrics if metric.needs != "likelihood"), metrics[0])
        documents = read_passages(recipe.data.documents) if recipe.data.documents else ()
        held_out = "test" if data.test else "validation"
        names = _names(rows)
        return Work(
            recipe, data, out, emit, names, tuple(examples), held_out, tuple(metrics), headline, documents, objective
        )


@dataclass(frozen=True)
class Result:
    """One row, measured."""

    name: str
    row: CompareRow
    kind: str
    evaluation: Evaluation
    seconds: float
    answer_peak_bytes: int
    trainable_parameters: int = 0
    train_seconds: float | None = None
    train_peak_bytes: int | None = None
    run: RunFolder | None = None
    is_reused: bool = False
    general: tuple[float, float] | None = None
    """Perplexity of general text before and after."""

    @property
    def peak_bytes(self) -> int:
        return max(self.answer_peak_bytes, self.train_peak_bytes or 0)

    @property
    def forgets(self) -> float | None:
        """By how much perplexity on general text grew: 0.05 is five per cent."""
        return self.general[1] / self.general[0] - 1 if self.general else None

    def values(self, work: Work) -> dict[str, Any]:
        """The row as the values of an event: the headline metric first."""
        scores = sorted(self.evaluation.scores, key=lambda score: score.metric != work.headline.key())
        return {
            **score_values(scores),
            "seconds_per_answer": self.evaluation.seconds_per_answer,
            "train_seconds": self.train_seconds,
            "peak_memory_bytes": self.peak_bytes,
            "forgets": self.forgets,
        }

    def candidate(self, metric: Metric) -> Candidate:
        score = self.evaluation.score(metric.key())
        return Candidate(self.name, self.kind == "fine-tuning", score, self.evaluation.outcomes)


class Row:
    """Trains, loads, answers and measures one row."""

    def __init__(self, work: Work, name: str, row: CompareRow) -> None:
        self.work, self.name, self.row = work, name, row

    def run(self) -> Result:
        started = time.perf_counter()
        trained = self._opened() if self.row.run else self._train() if self.row.method else None
        evaluation, answer_peak_bytes, general = self._measure(trained.run if trained else None)
        kind = "fine-tuning" if trained else "retrieval" if self.row.prompting.needs_documents else "prompting"
        result = Result(
            name=self.name,
            row=self.row,
            kind=kind,
            evaluation=evaluation,
            seconds=time.perf_counter() - started,
            answer_peak_bytes=answer_peak_bytes,
        )
        if trained is None:
            return result
        report = trained.run.read_json("report.json")
        return replace(
            result,
            trainable_parameters=report["parameters"]["trainable"],
            train_seconds=report["training"]["seconds"],
            train_peak_bytes=trained.peak_bytes,
            run=trained.run,
            is_reused=trained.is_reused,
            general=(self._general_of_base(), general) if general else None,
        )

    def _train(self) -> Trained:
        from tunesmith.models.meter import MemoryMeter
        from tunesmith.steps.train import resolve, train

        if self.row.run:
            return _finished(RunFolder.open(self.row.run))
        recipe = self._recipe()
        root = self.work.out / "runs"
        wanted = resolve(recipe, self.work.data).fingerprint()
        for path in sorted(root.glob(f"{recipe.name}-*")):
            run = RunFolder(path)
            if _is_same(run, wanted, self.work.data):
                return _finished(run)
        with MemoryMeter() as meter:
            run = train(recipe, emit=self.work.emit, root=root)
        run.write(MEASURED, {"train_peak_bytes": meter.peak_bytes})
        return Trained(run, meter.peak_bytes)

    def _opened(self) -> Trained:
        """The run that the row names; one of other data may have been trained on the rows that are held out here."""
        run = RunFolder.open(self.row.run)
        sums = json.loads(json.dumps(self.work.data.card()))["contents_sha256"]
        has_same_data = (run.read_json("data.json") or {}).get("contents_sha256") == sums
        has_same_base = read_recipe(run.recipe).model.name == self.work.recipe.model.name
        if run.state != "finished" or not has_same_data or not has_same_base:
            raise UserError(
                "only a finished run of the same model and data, split the same way, can be compared.",
                code="run_unfit",
                where=str(run.path),
                remedy="Train it with this comparison: name its method in the row.",
            )
        measured = run.read_json(MEASURED) or {}
        peak = (run.read_json("report.json") or {}).get("training", {}).get("peak_bytes", 0)
        return Trained(run, int(measured.get("train_peak_bytes", peak)), is_reused=True)

    def _recipe(self) -> Recipe:
        assert self.row.method is not None
        return override_recipe(
            self.work.recipe,
            name=re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-"),
            method=self.row.method.spec(),
            train=self.row.train,
            evaluate=[metric.spec() for metric in self.work.metrics],
            compare={},
        )

    def _measure(self, run: RunFolder | None) -> tuple[Evaluation, int, float | None]:
        """Scores, the peak of loading and answering, and perplexity on general text where something was trained."""
        from tunesmith.models.load import load_trained
        from tunesmith.models.meter import MemoryMeter
        from tunesmith.models.predict import LocalPredictor

        with MemoryMeter() as meter:
            loaded = load_trained(run.path) if run else load_untrained(self.work)
            predictor = LocalPredictor(loaded)
            evaluation = evaluate_predictor(
                predictor,
                self.work.examples,
                self.work.metrics,
                ask=self._ask(loaded),
                generate=self.work.recipe.generate,
                seed=self.work.recipe.seed,
                emit=self._relabelled,
                step=STEP,
            )
        return evaluation, meter.peak_bytes, general_perplexity(predictor, loaded) if run else None

    def _ask(self, loaded: Loaded) -> Ask:
        prompting = self.row.prompting
        if prompting.name == "zero_shot":
            return own_prompt
        shots = [example for example in self.work.data.train if isinstance(example, ChatExample)]
        room = self.work.recipe.generate.max_new_tokens
        return prompting.prepare(shots, self.work.documents, fits=fits_into(loaded, room))

    def _general_of_base(self) -> float:
        from tunesmith.models.predict import LocalPredictor

        loaded = load_untrained(self.work)
        value = general_perplexity(LocalPredictor(loaded), loaded)
        assert value is not None
        return value

    def _relabelled(self, event: Any) -> None:
        self.work.emit(replace(event, label=self.name) if isinstance(event, Progress) else event)


@dataclass(frozen=True)
class Trained:
    """A finished run, and what the meter said of its training."""

    run: RunFolder
    peak_bytes: int
    is_reused: bool = False


def _finished(run: RunFolder) -> Trained:
    report = run.read_json("report.json")
    if run.state != "finished" or not report:
        raise UserError(
            "this run is not finished.",
            code="unfinished",
            where=str(run.path),
            remedy=f"Finish it: tunesmith train --resume {run.path}",
        )
    measured = run.read_json(MEASURED) or {}
    peak_bytes = measured.get("train_peak_bytes") or report["training"]["peak_bytes"]
    return Trained(run, int(peak_bytes), is_reused=True)


def fits_into(loaded: Loaded, room: int) -> Callable[[Sequence[Message]], bool]:
    """Whether a conversation leaves `room` tokens for the answer in the model's context."""
    from tunesmith.data.template import render_chat

    def fits(messages: Sequence[Message]) -> bool:
        text = render_chat(loaded.tokenizer, messages, add_generation_prompt=True)
        return len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) + room <= loaded.context

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


def load_untrained(work: Work) -> Loaded:
    """The recipe's base model as it comes, in the precision that training would use."""
    from tunesmith.models.load import load_base
    from tunesmith.models.machine import device, preferred_precision

    recipe = work.recipe
    loaded = load_base(
        recipe.model,
        build("objectives", work.objective).task,
        labels=work.data.labels,
        trains_base_weights=bool(recipe.model.config),
        precision=preferred_precision(recipe.model.precision)[0],
        seed=recipe.seed,
    )
    loaded.model.to(device())
    return loaded


def _default_rows(recipe: Recipe, objective: str) -> tuple[CompareRow, ...]:
    tuned = CompareRow(method=recipe.method)
    if objective == "classification":
        return (tuned,)
    rows = [CompareRow()]
    if objective == "sft":
        rows.append(CompareRow(prompting=build("prompting", "few_shot")))
        if recipe.data.documents:
            rows.append(CompareRow(prompting=build("prompting", "rag")))
    return (*rows, tuned)


def _refuse_unfit(row: CompareRow, recipe: Recipe, examples: Sequence[Example]) -> None:
    name = row.prompting.name
    if row.method and row.run:
        raise UserError(
            f'the row "{row.title or row.run}" has both `method` and `run`.',
            code="bad_value",
            remedy="A run is trained already: keep one of them.",
        )
    if row.prompting.needs_documents and not recipe.data.documents:
        raise UserError(
            f"{name} needs documents to search.",
            code="no_documents",
            remedy=f"Set data.documents to a folder of Markdown or text files, or leave {name} out of compare.rows.",
        )
    if name != "zero_shot" and not isinstance(examples[0], ChatExample):
        raise UserError(
            f"{name} puts questions in a conversation, and these rows are none.",
            code="prompting_unfit",
            where=str(examples[0].origin),
            remedy="Compare only zero_shot and methods on such rows.",
        )


def _names(rows: Sequence[CompareRow]) -> tuple[tuple[str, CompareRow], ...]:
    named: dict[str, CompareRow] = {}
    for row in rows:
        stem = row.title or _title(row)
        name, number = stem, 1
        while name in named:
            number += 1
            name = f"{stem} ({number})"
        named[name] = row
    return tuple(named.items())


def _title(row: CompareRow) -> str:
    if row.run:
        return RunFolder.open(row.run).name
    if row.method is None and not row.run:
        return row.prompting.summary()
    stem = row.method.summary() if row.method else Path(row.run).name
    return stem + (f" + {row.prompting.summary()}" if row.prompting.name != "zero_shot" else "")


def _is_same(run: RunFolder, fingerprint: str, data: DataSet) -> bool:
    report = run.read_json("report.json")
    if run.state != "finished" or not report or report.get("recipe_fingerprint") != fingerprint:
        return False
    return bool(run.read_json("data.json") == json.loads(json.dumps(data.card())))
