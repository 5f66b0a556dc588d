"""Train: from a recipe to a run folder whose `model/` opens with transformers or peft alone.

Order of work: read data → check everything that can be checked without weights → load → score as it is →
train → publish → load what was published → score it → report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import Interrupted, TunesmithError, UserError
from tunesmith.core.events import Emit, Event, Finished, Progress, Sample, Saved, Started, Value
from tunesmith.core.plugins import build
from tunesmith.core.publish import publishing
from tunesmith.core.quantities import count, duration, gib, interval, millions
from tunesmith.core.records import ChatExample, Example, LabelExample, PairExample, TextExample
from tunesmith.core.run import RunFolder, environment
from tunesmith.data.load import DataSet, load_data
from tunesmith.models.anatomy import num_parameters
from tunesmith.models.load import Loaded, load_base, load_trained
from tunesmith.models.machine import describe, device, peak_memory_bytes, preferred_precision
from tunesmith.models.parity import record
from tunesmith.models.predict import LocalPredictor
from tunesmith.models.source import CARD, base_record
from tunesmith.objectives.base import Objective
from tunesmith.recipe import Recipe, override_recipe, read_recipe
from tunesmith.reports.curve import loss_curve
from tunesmith.steps.evaluate import (
    Evaluation,
    before_after,
    default_metrics,
    evaluate_predictor,
    own_prompt,
    spread,
)
from tunesmith.training.checkpoint import TrainingState
from tunesmith.training.encode import Rows, encode_rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop

STEP = "train"
OBJECTIVES: dict[type[Example], str] = {
    TextExample: "clm",
    ChatExample: "sft",
    LabelExample: "classification",
    PairExample: "seq2seq",
}
NUM_PROBES = 12
MAX_VALIDATION_ANSWERS = 400
"""Validation rows that are answered before and after training; a test set is always answered whole."""


def train(recipe: Recipe, *, emit: Emit, root: Path = Path("runs")) -> RunFolder:
    """The finished run.

    Raises:
        UserError: Anything in the recipe, the data or the model that the user can mend.
        Interrupted: The user stopped it; the run can be resumed.
    """
    data = load_data(recipe.data, seed=recipe.seed)
    recipe = resolve(recipe, data)
    work = _Work.prepare(recipe, data, emit)
    run = RunFolder.create(root, recipe.name or "run")
    run.write("recipe.yaml", recipe.to_yaml())
    run.write("data.json", data.card())
    return _carry_out(run, work)


def resume(run: RunFolder, *, emit: Emit) -> RunFolder:
    """Go on with a stopped or killed run, bit for bit.

    Raises:
        UserError: It is finished, or its data are not what they were.
    """
    if run.state == "finished":
        raise UserError(
            "this run is finished.", code="finished", where=str(run.path), remedy=f"Try: tunesmith chat {run.path}"
        )
    recipe = read_recipe(run.recipe)
    data = load_data(recipe.data, seed=recipe.seed)
    if different := _differences(run.read_json("data.json"), json.loads(json.dumps(data.card()))):
        raise UserError(
            f"the data are not what this run began with: {', '.join(different[:5])}.",
            code="resume_mismatch",
            where=str(run.path),
            remedy="Restore them, or start a new run.",
        )
    return _carry_out(run, _Work.prepare(recipe, data, emit))


def resolve(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe with every "auto" of its training replaced by what it stands for."""
    objective = build("objectives", objective_for(data.train)) if recipe.objective == "auto" else recipe.objective
    if not isinstance(data.train[0], objective.accepts):
        wanted = " or ".join(kind.__name__.removesuffix("Example").lower() for kind in objective.accepts)
        fitting = OBJECTIVES.get(type(data.train[0]), "another")
        raise UserError(
            f"the objective {objective.name} needs {wanted} rows, and these were read as {data.format_name}.",
            code="objective_unfit",
            where=str(data.train[0].origin),
            remedy=f"Set objective={fitting}, or name the columns in data.columns.",
        )
    held_out = data.test or data.validation
    metrics = default_metrics(objective.name, held_out) if recipe.evaluate == "auto" else recipe.evaluate
    rate = recipe.method.learning_rate if recipe.train.lr == "auto" else recipe.train.lr
    return override_recipe(
        recipe,
        objective=objective.spec(),
        evaluate=[metric.spec() for metric in metrics],
        train={"lr": rate},
    )


def objective_for(examples: Sequence[Example]) -> str:
    """The objective that rows of this kind are for.

    Raises:
        UserError: They are judgements, which no objective trains on yet.
    """
    name = OBJECTIVES.get(type(examples[0]))
    if name is None:
        raise UserError(
            "these rows are preferences or ratings; training on them is not built yet.",
            code="objective_unfit",
            where=str(examples[0].origin),
            remedy="Train on chats, texts, labels or pairs.",
        )
    return name


@dataclass(frozen=True)
class _Work:
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
    def prepare(recipe: Recipe, data: DataSet, emit: Emit) -> _Work:
        torch.manual_seed(recipe.seed)
        objective = recipe.objective
        assert isinstance(objective, Objective), objective
        precision, _ = preferred_precision(recipe.model.precision)
        loaded = load_base(
            recipe.model,
            objective.task,
            labels=data.labels,
            trains_base_weights=recipe.method.trains_base_weights,
            precision=precision,
            seed=recipe.seed,
        )
        loaded.model.to(device())
        max_length = _max_length(recipe, loaded.context)
        encode = partial(encode_rows, objective=objective, tokenizer=loaded.tokenizer, max_length=max_length)
        rows, findings = encode(data.train, labels=data.labels)
        validation, _ = encode(data.validation, labels=data.labels)
        for finding in (*data.findings, *findings):
            emit(finding)
        held_out = tuple(data.test or spread(data.validation, MAX_VALIDATION_ANSWERS))
        before = _score(recipe, loaded, held_out, emit, "scoring the base")
        model = recipe.method.attach(loaded.model)
        learner = Learner.make(
            loaded,
            model,
            method=recipe.method,
            objective=objective,
            precision=precision,
            packing=recipe.train.packing,
        )
        return _Work(recipe, data, held_out, loaded, learner, rows, validation, max_length, before, emit)


def _carry_out(run: RunFolder, work: _Work) -> RunFolder:
    with run.locked():
        run.set_state("running")
        try:
            work.recipe.launcher.launch(run.path, lambda: _train(run, work))
        except Interrupted:
            run.set_state("stopped")
            raise
        except TunesmithError as fault:
            run.set_state("failed", error=str(fault))
            raise
    return run


def _train(run: RunFolder, work: _Work) -> None:
    started = time.perf_counter()
    recipe, emit = work.recipe, work.emit
    run.write("environment.json", environment(machine=describe().to_dict(), seed=recipe.seed))
    loop = Loop(
        work.learner,
        work.rows,
        work.validation,
        settings=recipe.train,
        run=run,
        seed=recipe.seed,
        fingerprint=recipe.fingerprint(),
        emit=emit,
    )
    first = loop.restore()
    emit(_head(run, work, loop.order.num_steps, first))
    state = loop.fit(_Sampler(run, work))
    loss_curve(run.read_metrics(), run.path / "loss.png")
    if not run.model.exists():
        _publish_model(run, work)
    emit(Saved(STEP, str(run.model), "model"))
    after = _score_published(run, work)
    _report(run, work, state, after)
    run.set_state("finished")
    seconds = time.perf_counter() - started
    emit(_tail(run, work, state, after, seconds))


class _Sampler:
    """Shows after each validation what the model answers to one held-out question now."""

    def __init__(self, run: RunFolder, work: _Work) -> None:
        self.run, self.work = run, work
        answerable = [example for example in work.held_out if isinstance(example, ChatExample | PairExample)]
        self.example = answerable[0] if answerable else None

    def __call__(self, step: int) -> None:
        if self.example is None:
            return
        work = self.work
        work.learner.model.eval()
        predictor = LocalPredictor(replace(work.loaded, model=work.learner.model))
        (outcome,) = predictor.answer([self.example], own_prompt, work.recipe.generate, _no_progress)
        work.learner.method.set_training(work.learner.model)
        prompt = question_of(self.example)
        work.emit(Sample(STEP, prompt, outcome.answer, outcome.reference, at=step))
        with (self.run.path / "samples.md").open("a", encoding="utf-8") as file:
            file.write(f"## Step {step}\n\n**{prompt}**\n\n{outcome.answer}\n\n")


def question_of(example: ChatExample | PairExample) -> str:
    """What is asked: a pair's source, or the last user turn."""
    if isinstance(example, PairExample):
        return example.source
    return next((message.content for message in reversed(example.prompt) if message.role == "user"), "")


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


def _score(recipe: Recipe, loaded: Loaded, held_out: Sequence[Example], emit: Emit, label: str) -> Evaluation:
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


def _publish_model(run: RunFolder, work: _Work) -> None:
    recipe, loaded = work.recipe, work.loaded
    assert recipe.objective != "auto", recipe.objective
    card = {
        "format": 1,
        "task": loaded.task,
        "base": base_record(recipe.model.name, recipe.model.revision),
        "method": recipe.method.spec(),
        "objective": recipe.objective.name,
        "labels": list(loaded.labels),
        "max_length": work.max_length,
        "generate": recipe.generate.model_dump(mode="json"),
        "precision": work.learner.precision,
    }
    work.learner.model.eval()
    with publishing(run.model) as draft:
        recipe.method.save(work.learner.model, draft)
        loaded.tokenizer.save_pretrained(draft)
        (draft / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
        published = load_trained(draft)  # what is recorded is what the files answer, not what memory answers
        probes = record(published, spread(work.held_out, NUM_PROBES))
        (draft / "probes.json").write_text(json.dumps(probes, indent=1, ensure_ascii=False), encoding="utf-8")


def _score_published(run: RunFolder, work: _Work) -> Evaluation:
    recipe = work.recipe
    return _score(recipe, load_trained(run.model), work.held_out, work.emit, "scoring the result")


def _report(run: RunFolder, work: _Work, state: TrainingState, after: Evaluation) -> None:
    recipe = work.recipe
    assert recipe.evaluate != "auto", recipe.evaluate
    differences = before_after(recipe.evaluate, work.before, after, seed=recipe.seed)
    trainable, total = num_parameters(work.learner.model)
    report = {
        "format": 1,
        "run": run.name,
        "recipe_fingerprint": recipe.fingerprint(),
        "held_out": {"name": _held_out_name(work), "num_rows": len(work.held_out)},
        "parameters": {"trainable": trainable, "total": total},
        "training": {
            "steps": state.step,
            "best_step": state.best_step,
            "best_validation_loss": state.best_loss,
            "tokens": state.num_tokens,
            "trained_tokens": state.num_trained_tokens,
            "seconds": state.train_seconds,
            "tokens_per_second": state.num_tokens / max(state.train_seconds, 1e-9),
            "micro_tokens": state.micro_tokens,
            "is_packed": work.learner.layout.is_packed,
            "precision": work.learner.precision,
            "peak_bytes": peak_memory_bytes(),
        },
        "before": work.before.to_dict(),
        "after": after.to_dict(),
        "difference": [asdict(one) for one in differences],
    }
    run.write("report.json", report)


def _held_out_name(work: _Work) -> str:
    if work.data.test:
        return "test"
    return "validation" if len(work.held_out) == len(work.data.validation) else "part of validation"


def _head(run: RunFolder, work: _Work, num_steps: int, first: int) -> Started:
    recipe, learner = work.recipe, work.learner
    trainable, total = num_parameters(learner.model)
    tokens, trained = work.rows.num_tokens, round(work.rows.weight)
    unit = "rows" if work.loaded.task == "classify" else "tokens"
    learnt = f" · {count(trained)} of {count(tokens)} tokens are trained" if unit == "tokens" else ""
    num_rows = f"{count(len(work.data.train))} train, {count(len(work.data.validation))} validation"
    source = recipe.data.source if isinstance(recipe.data.source, str) else f"{len(recipe.data.source)} sources"
    test = f", {count(len(work.data.test))} test" if work.data.test else ""
    ratio = preferred_precision("auto")[1]
    speed = f" ({ratio:.1f} times fp32 on this machine)" if learner.precision == "bf16" and ratio else ""
    layout = "packed" if learner.layout.is_packed else "padded, in groups of like length"
    epochs = num_steps * recipe.train.tokens_per_step / max(tokens, 1)
    resumed = f" · goes on after step {first}" if first else ""
    steps = f"{count(num_steps)} steps of {count(recipe.train.tokens_per_step)} tokens ({epochs:.3g} epochs)"
    return Started(
        STEP,
        run.name,
        {"run": str(run.path), "steps": num_steps, "trainable": trainable, "resumed_at": first},
        (
            ("run", f"{run.path}{resumed}"),
            ("model", f"{recipe.model.name} · {millions(total)} parameters · {learner.precision}{speed}"),
            ("data", f"{Path(source).name} · {num_rows}{test} rows{learnt}"),
            ("method", f"{recipe.method.summary()} · {count(trainable)} trainable ({trainable / total:.1%})"),
            ("plan", f"{steps} · {layout}"),
        ),
        on_interrupt=f"finishes this step and saves; resume with: tunesmith train --resume {run.path}",
    )


def _tail(run: RunFolder, work: _Work, state: TrainingState, after: Evaluation, seconds: float) -> Finished:
    speed = state.num_tokens / max(state.train_seconds, 1e-9)
    text = (
        f"{duration(seconds)} · {count(state.step)} steps · {millions(state.num_tokens)} tokens · "
        f"{count(round(speed))} tokens/s · peak {gib(peak_memory_bytes())} · best at step {state.best_step}"
    )
    titles = (f"{count(len(work.held_out))} {_held_out_name(work)} rows", "before", "after")
    rows = [
        (one.metric.replace("_", " "), interval(old.value, old.low, old.high), interval(one.value, one.low, one.high))
        for old, one in zip(work.before.scores, after.scores, strict=True)
    ]
    values: dict[str, Value] = {
        "steps": state.step,
        "validation_loss": state.best_loss,
        "best": state.best_step,
        "path": str(run.path),
    }
    talk = (f"tunesmith chat {run.path}",) if work.loaded.task == "causal" else ()
    return Finished(
        STEP,
        text,
        seconds,
        values,
        next=(f"tunesmith models register {run.path}", *talk),
        table=(titles, *rows),
    )


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """The places where two data cards differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(set(before) | set(now))
        return [found for key in keys for found in _differences(before.get(key), now.get(key), f"{place}.{key}")]
    return [] if before == now else [place.lstrip(".")]


def _no_progress(done: int, total: int) -> None:
    """Say nothing."""
