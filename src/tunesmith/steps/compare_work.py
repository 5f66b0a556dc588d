"""What the rows of a comparison share, planned and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError, unknown_name
from tunesmith.core.events import Emit
from tunesmith.core.plugins import build
from tunesmith.core.records import ChatExample, Example, LabelExample, Passage
from tunesmith.core.run import RunFolder
from tunesmith.metrics.base import Metric
from tunesmith.objectives.base import objective_for
from tunesmith.recipe import CompareRow, ModelSettings, Recipe
from tunesmith.steps.evaluate import default_metrics, spread

if TYPE_CHECKING:
    from tunesmith.data.load import DataSet
    from tunesmith.models.load import Loaded

STEP = "compare"
BASELINES = {"tfidf": "TF-IDF, logistic regression", "frozen_features": "frozen states, logistic regression"}


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

    @property
    def is_table(self) -> bool:
        """Whether methods are trained more than once: runs are then scored here only, and lose their checkpoints."""
        return self.recipe.compare.seeds > 1 or any(row.lr for _, row in self.rows)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every method, the recipe's first."""
        return tuple(range(self.recipe.seed, self.recipe.seed + self.recipe.compare.seeds))

    def row(self, name: str) -> CompareRow:
        return next(row for known, row in self.rows if known == name)

    def model(self, row: CompareRow) -> ModelSettings:
        """The base model of a row."""
        return row.model or self.recipe.model

    @staticmethod
    def plan(recipe: Recipe, data: DataSet, out: Path, emit: Emit) -> Work:
        """The comparison as a whole.

        Raises:
            UserError: There is nothing to score on, or a row does not fit the data or another of its settings.
        """
        from tunesmith.data.documents import read_passages

        examples = data.test or data.validation
        if not examples:
            raise UserError(
                "there are no held-out rows to compare on.",
                code="no_rows",
                remedy="Set data.test to a file, or data.split.test to a share.",
            )
        examples = tuple(spread(examples, recipe.compare.limit)) if recipe.compare.limit else examples
        objective = objective_for(type(data.train[0])) if recipe.objective == "auto" else recipe.objective.name
        metrics = default_metrics(objective, examples) if recipe.evaluate == "auto" else recipe.evaluate
        rows = recipe.compare.rows or _default_rows(recipe, objective)
        for row in rows:
            _refuse_unfit(row, recipe, objective, examples)
        headline = next((metric for metric in metrics if metric.needs != "likelihood"), metrics[0])
        documents = read_passages(recipe.data.documents) if recipe.data.documents else ()
        held_out = "test" if data.test else "validation"
        names = _names(rows)
        for row in rows:
            if row.against and row.against not in dict(names):
                raise unknown_name("row", row.against, dict(names))
        return Work(
            recipe, data, out, emit, names, tuple(examples), held_out, tuple(metrics), headline, documents, objective
        )


def load_untrained(work: Work, row: CompareRow) -> Loaded:
    """A row's base model as it comes, in the precision that training would use."""
    from tunesmith.models.load import load_base
    from tunesmith.models.machine import device, preferred_precision

    model = work.model(row)
    objective = build("objectives", work.objective)
    loaded = load_base(
        model,
        objective.task,
        labels=work.data.labels,
        problem=objective.problem,
        trains_base_weights=bool(model.config),
        precision=preferred_precision(model.precision)[0],
        seed=work.recipe.seed,
    )
    loaded.model.to(device())
    return loaded


def _default_rows(recipe: Recipe, objective: str) -> tuple[CompareRow, ...]:
    tuned = CompareRow(method=recipe.method)
    if build("objectives", objective).task not in ("causal", "seq2seq"):
        return (tuned,)
    rows = [CompareRow()]
    if objective == "sft":
        rows.append(CompareRow(prompting=build("prompting", "few_shot")))
        if recipe.data.documents:
            rows.append(CompareRow(prompting=build("prompting", "rag")))
    return (*rows, tuned)


def _refuse_unfit(row: CompareRow, recipe: Recipe, objective: str, examples: Sequence[Example]) -> None:
    name = row.prompting.name
    chosen = {"method": row.method, "run": row.run, "baseline": row.baseline}
    both = [f"`{key}`" for key, value in chosen.items() if value]
    if len(both) > 1:
        raise UserError(
            f'the row "{row.title or row.run or row.baseline}" has both {" and ".join(both)}.',
            code="bad_value",
            remedy="A run is trained already, and a baseline trains in its own way: keep one of them.",
        )
    if row.lr and not row.method:
        raise UserError(
            f'the row "{row.title or _title(row)}" has learning rates and nothing to train with them.',
            code="bad_value",
            remedy="Name its method, or leave `lr` out.",
        )
    if row.baseline and not all(isinstance(example, LabelExample) for example in examples):
        raise UserError(
            f"the baseline {row.baseline} is a classifier, and these rows have no labels.",
            code="baseline_unfit",
            where=str(examples[0].origin),
            remedy="Leave it out of compare.rows.",
        )
    if row.method:
        row.method.check_task(build("objectives", objective).task)
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
    if row.baseline:
        return BASELINES[row.baseline]
    of_model = f" of {Path(row.model.name).name}" if row.model else ""
    if row.method is None:
        return row.prompting.summary() + of_model
    return row.method.summary() + of_model + _prompted(row)


def _prompted(row: CompareRow) -> str:
    return f" + {row.prompting.summary()}" if row.prompting.name != "zero_shot" else ""
