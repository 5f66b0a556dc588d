"""Train: from a recipe to a run folder whose `model/` opens with transformers or peft alone.

Order of work: read data → check everything that can be checked without weights → load → score as it is →
train → publish → load what was published → score it → report.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, TunesmithError, UserError
from tunesmith.core.events import Emit, Sample, Saved
from tunesmith.core.plugins import build
from tunesmith.core.publish import publishing
from tunesmith.core.records import ChatExample, LabelExample, PairExample
from tunesmith.core.run import RunFolder, environment
from tunesmith.data.load import DataSet, load_data
from tunesmith.data.template import PLAIN_TEMPLATE
from tunesmith.models.load import Loaded, load_trained
from tunesmith.models.machine import describe
from tunesmith.models.parity import record
from tunesmith.models.predict import LocalPredictor
from tunesmith.models.source import CARD, base_record
from tunesmith.objectives.base import objective_for
from tunesmith.recipe import Recipe, override_recipe, read_recipe
from tunesmith.reports.curve import loss_curve
from tunesmith.steps.evaluate import default_metrics, own_prompt, spread
from tunesmith.steps.train_report import head, tail, write_report
from tunesmith.steps.train_work import STEP, Work, score_rows
from tunesmith.training.loop import Loop
from tunesmith.training.mixture import Mixture

NUM_PROBES = 12
_AS_CHAT = (
    ' To have the label written as an answer, set data.format={name: classification, as_chat: true, instruction: "…"}.'
)


def train(recipe: Recipe, *, emit: Emit, root: Path = Path("runs"), folder: str = "") -> RunFolder:
    """The finished run, in `root/folder`; in `root/NAME-N` where no folder is named.

    Raises:
        UserError: Anything in the recipe, the data or the model that the user can mend.
        Interrupted: The user stopped it; the run can be resumed.
    """
    data = load_data(recipe.data, seed=recipe.seed)
    recipe = resolve(recipe, data)
    work = Work.prepare(recipe, data, emit)
    run = RunFolder.make(root / folder) if folder else RunFolder.create(root, recipe.name or "run")
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
    return _carry_out(run, Work.prepare(recipe, data, emit))


def resolve(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe with every "auto" of its training replaced by what it stands for."""
    kind = type(data.train[0])
    objective = build("objectives", objective_for(kind)) if recipe.objective == "auto" else recipe.objective
    if not issubclass(kind, objective.accepts):
        wanted = " or ".join(one.__name__.removesuffix("Example").lower() for one in objective.accepts)
        raise UserError(
            f"the objective {objective.name} needs {wanted} rows, and these were read as {data.format_name}.",
            code="objective_unfit",
            where=str(data.train[0].origin),
            remedy=f"Set objective={objective_for(kind)}, or name the columns in data.columns."
            + (_AS_CHAT if kind is LabelExample and ChatExample in objective.accepts else ""),
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


def _carry_out(run: RunFolder, work: Work) -> RunFolder:
    with run.locked():
        try:
            run.set_state("running")
            work.recipe.launcher.launch(run.path, lambda: _train(run, work))
        except (Interrupted, KeyboardInterrupt) as stop:  # outside the loop Ctrl-C is Python's own
            run.set_state("stopped")
            message = str(stop) or "stopped; no step was under way"
            raise Interrupted(message, resume=f"tunesmith train --resume {run.path}") from None
        except TunesmithError as fault:
            run.set_state("failed", error=str(fault))
            raise
    return run


def _train(run: RunFolder, work: Work) -> None:
    started = time.perf_counter()
    recipe, emit = work.recipe, work.emit
    run.write("environment.json", environment(machine=describe().to_dict(), seed=recipe.seed))
    loop = make_loop(run, work)
    first = loop.restore()
    emit(head(run, work, loop.order.num_steps, first, loop.frozen))
    state = loop.fit(_Sampler(run, work))
    loss_curve(run.read_metrics(), run.path / "loss.png")
    if not run.model.exists():
        _publish_model(run, work)
    emit(Saved(STEP, str(run.model), "model"))
    after = score_rows(recipe, load_trained(run.model), work.held_out, emit, "scoring the result")
    write_report(run, work, state, after)
    run.set_state("finished")
    seconds = time.perf_counter() - started
    emit(tail(run, work, state, after, seconds))


def make_loop(run: RunFolder, work: Work) -> Loop:
    """The loop that trains this work into this folder."""
    return Loop(
        work.learner,
        work.rows,
        work.validation,
        settings=work.recipe.train,
        run=run,
        seed=work.recipe.seed,
        fingerprint=work.recipe.fingerprint(),
        emit=work.emit,
        mixture=Mixture(copies=work.data.copies),
    )


class _Sampler:
    """Shows after each validation what the model answers to one held-out question now."""

    def __init__(self, run: RunFolder, work: Work) -> None:
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


def _publish_model(run: RunFolder, work: Work) -> None:
    recipe, loaded = work.recipe, work.loaded
    assert recipe.objective != "auto", recipe.objective
    card = {
        "format": 1,
        "task": loaded.task,
        "base": base_record(recipe.model.name, recipe.model.revision),
        "method": recipe.method.spec(),
        "objective": recipe.objective.name,
        "problem": recipe.objective.problem if loaded.task == "classify" else None,
        "labels": list(loaded.labels),
        "max_length": work.max_length,
        "generate": recipe.generate.model_dump(mode="json"),
        "precision": work.learner.precision,
    }
    work.learner.model.eval()
    with publishing(run.model) as draft:
        recipe.method.save(work.learner.model, draft)
        _save_tokenizer(loaded, draft)
        (draft / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
        published = load_trained(draft)  # what is recorded is what the files answer, not what memory answers
        probes = record(published, spread(work.held_out, NUM_PROBES))
        (draft / "probes.json").write_text(json.dumps(probes, indent=1, ensure_ascii=False), encoding="utf-8")


def _save_tokenizer(loaded: Loaded, folder: Path) -> None:
    """The tokenizer with the chat template that was trained with, so that any other program uses it too."""
    if loaded.task == "causal" and not getattr(loaded.tokenizer, "chat_template", None):
        loaded.tokenizer.chat_template = PLAIN_TEMPLATE
    loaded.tokenizer.save_pretrained(folder)


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """The places where two data cards differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(set(before) | set(now))
        return [found for key in keys for found in _differences(before.get(key), now.get(key), f"{place}.{key}")]
    return [] if before == now else [place.lstrip(".")]


def _no_progress(done: int, total: int) -> None:
    """Say nothing."""
