"""Train: from a recipe to a run folder whose `model/` opens with transformers or peft alone.

Order of work: read data → check everything that can be checked without weights → load → score as it is →
train → publish → load what was published → score it → report.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, TunesmithError, UserError
from tunesmith.core.events import Emit, Saved
from tunesmith.core.plugins import build
from tunesmith.core.publish import is_whole
from tunesmith.core.records import ChatExample, LabelExample
from tunesmith.core.run import RunFolder
from tunesmith.data.load import DataSet, load_data
from tunesmith.data.mix import has_tasks
from tunesmith.models.load import load_trained
from tunesmith.models.memory import let_go
from tunesmith.objectives.base import objective_for
from tunesmith.recipe import Recipe, override_recipe
from tunesmith.reports.curve import loss_curve
from tunesmith.steps.evaluate import default_metrics
from tunesmith.steps.opening import with_named_run
from tunesmith.steps.resuming import Resumption, record_work
from tunesmith.steps.train_choices import kept_choices, settle, settle_attention
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
    recipe = with_named_run(recipe, root)
    if has_tasks(recipe.data):
        return _train_tasks(recipe, emit, lambda: _new_run(recipe, root, folder))
    data = load_data(recipe.data, seed=recipe.seed, emit=emit)
    recipe = resolve(recipe, data)
    work = Work.prepare(recipe, data, emit)
    run = _new_run(recipe, root, folder)
    run.write("recipe.yaml", recipe.to_yaml())
    run.write("data.json", data.card())
    with run.locked():
        return _carry_out(run, recipe, lambda: _train(run, work))


def resume(run: RunFolder, *, emit: Emit, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> RunFolder:
    """Go on with a stopped or killed run, bit for bit.

    `overrides` are `key=value` changes of its recipe; they, like other data or another base, must be allowed by name.

    Raises:
        UserError: It is finished, another process works on it, or something is not what it was and not in `allow`.
        Interrupted: The user stopped it again.
    """
    with run.locked():
        going_on = Resumption(run, overrides, allow)
        recipe = going_on.recipe
        if has_tasks(recipe.data):
            return _train_tasks(recipe, emit, lambda: run, going_on)
        data = load_data(recipe.data, seed=recipe.seed, emit=emit)
        going_on.check_data(data.card())
        work = Work.prepare(resolve(recipe, data), data, emit, **kept_choices(run))
        going_on.begin(work.recipe, emit)
        return _carry_out(run, work.recipe, lambda: _train(run, work, going_on.allowed))


def _train_tasks(
    recipe: Recipe, emit: Emit, open_run: Callable[[], RunFolder], going_on: Resumption | None = None
) -> RunFolder:
    """Several tasks with heads of their own, in a new run or in a stopped one."""
    from tunesmith.steps.train_tasks import JointWork, train_joint

    if recipe.train.lr == "auto":
        recipe = override_recipe(recipe, train={"lr": recipe.method.learning_rate})
    recipe = override_recipe(recipe, train={"head_lr": _head_factor(recipe)})
    joint = JointWork.prepare(recipe, emit, **kept_choices(None if going_on is None else going_on.run))
    run = open_run()
    if going_on is not None:
        going_on.check_data(joint.data.card())
        going_on.begin(recipe, emit)
        return _carry_out(run, recipe, lambda: train_joint(run, joint, going_on.allowed))
    run.write("recipe.yaml", recipe.to_yaml())
    run.write("data.json", joint.data.card())
    with run.locked():
        return _carry_out(run, recipe, lambda: train_joint(run, joint))


def _new_run(recipe: Recipe, root: Path, folder: str) -> RunFolder:
    return RunFolder.make(root / folder) if folder else RunFolder.create(root, recipe.name or "run")


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
        train={"lr": rate, "head_lr": _head_factor(recipe)},
    )


def _head_factor(recipe: Recipe) -> float:
    return recipe.method.new_head_factor if recipe.train.head_lr == "auto" else recipe.train.head_lr


def _words(kind: type) -> str:
    """`MultiLabelExample` in words: `multi label`."""
    name = kind.__name__.removesuffix("Example")
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _carry_out(run: RunFolder, recipe: Recipe, work: Callable[[], None]) -> RunFolder:
    """Do the work in a run that is locked; the run's state says how it ended."""
    try:
        run.set_state("running")
        recipe.launcher.launch(run.path, work)
    except (Interrupted, KeyboardInterrupt) as stop:  # outside the loop Ctrl-C is Python's own
        message = str(stop) or "stopped; no step was under way"
        _say_state(run, "stopped")
        raise Interrupted(message, resume=f"tunesmith train --resume {run.path}") from None
    except TunesmithError as fault:
        _say_state(run, "failed", error=str(fault))
        raise
    return run


def _say_state(run: RunFolder, state: str, **values: Any) -> None:
    """Record how it ended where the disk takes it; what it ended with is what the user is to hear of."""
    with contextlib.suppress(UserError):
        run.set_state(state, **values)


def _train(run: RunFolder, work: Work, allowed: Sequence[str] = ()) -> None:
    started = time.perf_counter()
    recipe, emit = work.recipe, work.emit
    settle(run, work.learner.precision, recipe.model.precision, recipe.train.threads)
    settle_attention(run, work.learner, recipe.train.attention)
    record_work(run, work)
    loop = make_loop(run, work)
    first = loop.restore(allowed)
    emit(head(run, work, loop, first))
    state = loop.fit(Sampler(run, work, after=first))
    optimizer = weakref.ref(loop.optimizer)
    del loop  # with it the optimiser: the published model comes beside this one
    work.learner.model.zero_grad(set_to_none=True)
    let_go(optimizer)
    unit = work.learner.objective.loss_unit
    loss_curve(run.read_metrics(), run.path / "loss.png", title=f"Loss, {unit}")
    if not is_whole(run.model):
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
        identity=work.recipe.model_dump(mode="json"),
    )
