"""Train: from a recipe to a run folder whose `model/` opens with transformers or peft alone.

Order of work: read data → check everything that can be checked without weights → load → score as it is →
train → publish → load what was published → score it → report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, TunesmithError, UserError
from tunesmith.core.events import Emit, Saved
from tunesmith.core.plugins import build
from tunesmith.core.records import ChatExample, LabelExample
from tunesmith.core.run import RunFolder, environment
from tunesmith.data.load import DataSet, load_data
from tunesmith.data.mix import has_tasks
from tunesmith.models.load import load_trained
from tunesmith.models.machine import describe
from tunesmith.objectives.base import objective_for
from tunesmith.recipe import Recipe, override_recipe, read_recipe
from tunesmith.reports.curve import loss_curve
from tunesmith.steps.evaluate import default_metrics
from tunesmith.steps.train_model import Sampler, publish_model
from tunesmith.steps.train_report import head, tail, write_report
from tunesmith.steps.train_work import STEP, Work, score_rows
from tunesmith.training.loop import Loop
from tunesmith.training.mixture import Mixture

_AS_CHAT = (
    ' To have the label written as an answer, set data.format={name: classification, as_chat: true, instruction: "…"}.'
)


def train(recipe: Recipe, *, emit: Emit, root: Path = Path("runs"), folder: str = "") -> RunFolder:
    """The finished run, in `root/folder`; in `root/NAME-N` where no folder is named.

    Raises:
        UserError: Anything in the recipe, the data or the model that the user can mend.
        Interrupted: The user stopped it; the run can be resumed.
    """
    if has_tasks(recipe.data):
        return _train_tasks(recipe, emit, lambda: _new_run(recipe, root, folder))
    data = load_data(recipe.data, seed=recipe.seed)
    recipe = resolve(recipe, data)
    work = Work.prepare(recipe, data, emit)
    run = _new_run(recipe, root, folder)
    run.write("recipe.yaml", recipe.to_yaml())
    run.write("data.json", data.card())
    return _carry_out(run, recipe, lambda: _train(run, work))


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
    if has_tasks(recipe.data):
        return _train_tasks(recipe, emit, lambda: run)
    data = load_data(recipe.data, seed=recipe.seed)
    _refuse_other_data(run, data.card())
    work = Work.prepare(recipe, data, emit)
    return _carry_out(run, recipe, lambda: _train(run, work))


def _train_tasks(recipe: Recipe, emit: Emit, open_run: Callable[[], RunFolder]) -> RunFolder:
    """Several tasks with heads of their own, in a new run or in a stopped one."""
    from tunesmith.steps.train_tasks import JointWork, train_joint

    if recipe.train.lr == "auto":
        recipe = override_recipe(recipe, train={"lr": recipe.method.learning_rate})
    joint = JointWork.prepare(recipe, emit)
    run = open_run()
    if run.recipe.is_file():
        _refuse_other_data(run, joint.data.card())
    else:
        run.write("recipe.yaml", recipe.to_yaml())
        run.write("data.json", joint.data.card())
    return _carry_out(run, recipe, lambda: train_joint(run, joint))


def _new_run(recipe: Recipe, root: Path, folder: str) -> RunFolder:
    return RunFolder.make(root / folder) if folder else RunFolder.create(root, recipe.name or "run")


def _refuse_other_data(run: RunFolder, card: dict[str, Any]) -> None:
    if different := _differences(run.read_json("data.json"), json.loads(json.dumps(card))):
        raise UserError(
            f"the data are not what this run began with: {', '.join(different[:5])}.",
            code="resume_mismatch",
            where=str(run.path),
            remedy="Restore them, or start a new run.",
        )


def resolve(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe with every "auto" of its training replaced by what it stands for."""
    kind = type(data.train[0])
    objective = build("objectives", objective_for(kind)) if recipe.objective == "auto" else recipe.objective
    if not issubclass(kind, objective.accepts):
        wanted = " or ".join(_words(one) for one in objective.accepts)
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


def _words(kind: type) -> str:
    """`MultiLabelExample` in words: `multi label`."""
    name = kind.__name__.removesuffix("Example")
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _carry_out(run: RunFolder, recipe: Recipe, work: Callable[[], None]) -> RunFolder:
    with run.locked():
        try:
            run.set_state("running")
            recipe.launcher.launch(run.path, work)
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
    state = loop.fit(Sampler(run, work))
    unit = work.learner.objective.loss_unit
    loss_curve(run.read_metrics(), run.path / "loss.png", title=f"Loss, {unit}")
    if not run.model.exists():
        publish_model(run, work)
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


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """The places where two data cards differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(set(before) | set(now))
        return [found for key in keys for found in _differences(before.get(key), now.get(key), f"{place}.{key}")]
    return [] if before == now else [place.lstrip(".")]
