"""What a training needs before its run folder exists: data encoded, model loaded, base scored, method attached.

So every fault that the user can mend comes before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Event, Progress, Warning
from tunesmith.core.records import Example
from tunesmith.data.load import DataSet
from tunesmith.models.load import Loaded, load_base
from tunesmith.models.machine import Precision, device, preferred_precision
from tunesmith.models.number_head import NUM_STATES, learn_in_unit
from tunesmith.models.predict import LocalPredictor
from tunesmith.objectives.base import Objective
from tunesmith.recipe import Recipe
from tunesmith.steps.evaluate import Evaluation, evaluate_predictor, spread
from tunesmith.training.attention import require_gpu
from tunesmith.training.compiling import require_compiler
from tunesmith.training.determinism import prepare_exact_products
from tunesmith.training.encode import Encoding, Rows
from tunesmith.training.learner import Learner
from tunesmith.training.recompute import refuse_recompute
from tunesmith.training.token_cache import tokenized

STEP = "train"
MAX_VALIDATION_ANSWERS = 400
"""Validation rows that are answered before and after training; a test set is always answered whole."""


@dataclass(frozen=True)
class Work:
    """What is ready before the run folder exists, so that a fault leaves nothing behind."""

    recipe: Recipe
    data: DataSet
    held_out: tuple[Example, ...]
    loaded: Loaded
    learner: Learner
    rows: Rows
    validation: Rows
    max_length: int
    before: Evaluation
    emit: Emit

    @staticmethod
    def prepare(
        recipe: Recipe,
        data: DataSet,
        emit: Emit,
        *,
        is_scored: bool = True,
        precision: Precision | None = None,
        attention: str | None = None,
    ) -> Work:
        """Everything ready; a trial of a search leaves out the scores of the base (`is_scored`).

        `precision` and `attention` are those of a run that goes on; otherwise the recipe's, which may ask the machine.
        """
        torch.manual_seed(recipe.seed)
        prepare_exact_products(device())
        if recipe.train.threads != "auto":
            torch.set_num_threads(recipe.train.threads)
        objective = recipe.objective
        assert isinstance(objective, Objective), objective
        recipe.method.check_task(objective.task)
        method = recipe.method
        recipe.train.optimizer.check_method(method.name, trains_base_weights=method.trains_base_weights)
        _require_trackers(recipe)
        require_compiler(recipe.train, device())
        require_gpu(recipe.train.attention, device())
        if not data.validation:
            raise UserError(
                "there are no validation rows, and the best weights are chosen by them.",
                code="no_validation",
                where=str(data.train[0].origin),
                remedy="Set data.split.validation above 0, or data.validation to a file.",
            )
        precision = precision or preferred_precision(recipe.model.precision)[0]
        loaded = load_base(
            recipe.model,
            objective.task,
            labels=data.labels,
            problem=objective.problem,
            trains_base_weights=recipe.method.trains_base_weights,
            precision=precision,
            seed=recipe.seed,
            check=recipe.method.check_model,
            method=recipe.method,
        )
        if objective.task == "mask" and loaded.has_new_head:
            text = "the checkpoint has no head for hidden words; a new one is trained, and begins by guessing"
            emit(Warning(STEP, "new_head", text))
        loaded.model.to(device())
        max_length = _max_length(recipe, loaded.context - recipe.method.num_positions())
        encoding = Encoding(objective, loaded.tokenizer, max_length, data.labels)
        rows, findings = tokenized(data.train, encoding, emit=emit)
        validation, _ = tokenized(data.validation, encoding, emit=emit)
        for finding in (*data.findings, *findings):
            emit(finding)
        if unit := objective.unit(rows.features):
            ids = [feature.input_ids for feature in rows.features[:NUM_STATES]]
            learn_in_unit(loaded.model, *unit, is_new=loaded.has_new_head or bool(recipe.model.config), rows=ids)
        held_out = tuple(data.test or spread(data.validation, MAX_VALIDATION_ANSWERS))
        before = Evaluation((), (), 0.0, None, 0)
        adapted = loaded.attach(recipe.method).eval() if loaded.adapter else None
        if unit and adapted is not None:  # the finished head took the new one's place
            learn_in_unit(adapted, *unit, is_new=False)
        if is_scored:
            start = loaded if adapted is None else replace(loaded, model=adapted)
            before = score_rows(recipe, start, held_out, emit, "scoring the base")
        model = loaded.attach(recipe.method) if adapted is None else adapted
        refuse_recompute(model, recipe.train.recompute)
        learner = Learner.make(
            loaded,
            model,
            method=recipe.method,
            objective=objective,
            precision=precision,
            packing=recipe.train.packing,
            attention=attention or recipe.train.attention,
            head_factor=1.0 if recipe.train.head_lr == "auto" else recipe.train.head_lr,
        )
        return Work(recipe, data, held_out, loaded, learner, rows, validation, max_length, before, emit)

    @property
    def held_out_name(self) -> str:
        """Which rows the scores are about."""
        if self.data.test:
            return "test"
        return "validation" if len(self.held_out) == len(self.data.validation) else "part of validation"


def _require_trackers(recipe: Recipe) -> None:
    for tracker in recipe.train.trackers:
        if find_spec(tracker) is None:
            raise UserError(
                f"{tracker} is not installed.",
                code="missing_package",
                where="train.trackers",
                remedy="pip install 'tunesmith[trackers]', or leave it out: metrics.jsonl is written anyway.",
            )


def _max_length(recipe: Recipe, context: int) -> int:
    wished = recipe.data.max_length
    if wished == "model":
        return context
    if wished > context:
        raise UserError(
            f"`data.max_length` is {wished} and the model reads at most {context} tokens.",
            code="context_too_short",
            where=recipe.model.name,
            remedy=f"Set data.max_length={context}, or choose a model with a longer context.",
        )
    return wished


def score_rows(recipe: Recipe, loaded: Loaded, held_out: Sequence[Example], emit: Emit, label: str) -> Evaluation:
    """The recipe's scores of a model on held-out rows; `label` names the progress."""
    assert recipe.evaluate != "auto", recipe.evaluate

    def relabel(event: Event) -> None:
        emit(replace(event, label=label) if isinstance(event, Progress) else event)

    return evaluate_predictor(
        LocalPredictor(loaded),
        held_out,
        recipe.evaluate,
        generate=recipe.generate,
        seed=recipe.seed,
        emit=relabel,
        step=STEP,
    )
