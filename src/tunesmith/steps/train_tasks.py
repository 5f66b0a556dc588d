"""Train several tasks with heads of their own on one backbone.

Every task is a folder of the run, laid out as a run of its own: `RUN/TASK` holds its recipe, data card, model, probes
and report, so all that takes a run (evaluate, chat, serve, models register) takes `RUN/TASK`. The run itself holds the
whole recipe, the numbers of every step, the checkpoints and a report over all tasks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Event, Finished, Progress, Saved, Started, Value
from tunesmith.core.publish import is_whole
from tunesmith.core.quantities import count, gib, interval, millions
from tunesmith.core.records import Example
from tunesmith.core.run import RunFolder, environment
from tunesmith.data.load import DataSet
from tunesmith.data.tasks import TaskSets, load_tasks
from tunesmith.metrics.base import Metric
from tunesmith.models.load import load_trained
from tunesmith.models.machine import Precision, describe, peak_memory_bytes
from tunesmith.models.shared_backbone import share_backbone, shared_names, split_weights
from tunesmith.objectives.base import Objective
from tunesmith.recipe import Recipe, override_recipe
from tunesmith.reports.curve import loss_curve
from tunesmith.steps.evaluate import Evaluation, default_metrics, refuse_unfit
from tunesmith.steps.resuming import record_work
from tunesmith.steps.train import resolve
from tunesmith.steps.train_choices import machine_line, settle, settle_attention
from tunesmith.steps.train_model import Sampler, publish_model
from tunesmith.steps.train_report import training_values, write_report
from tunesmith.steps.train_work import STEP, Work, score_rows
from tunesmith.training.attention import packed
from tunesmith.training.encode import Rows
from tunesmith.training.loop import Loop
from tunesmith.training.mixture import Mixture


@dataclass(frozen=True)
class JointWork:
    """What is ready before the run folder exists: a work for each task, all on one backbone."""

    recipe: Recipe
    data: TaskSets
    works: Mapping[str, Work]
    emit: Emit

    @staticmethod
    def prepare(
        recipe: Recipe, emit: Emit, *, precision: Precision | None = None, attention: str | None = None
    ) -> JointWork:
        """Read all tasks' rows, check what can be checked, load, share the backbone.

        `precision` and `attention` are those of a run that goes on.

        Raises:
            UserError: As for one task; or the tasks' models do not have the same backbone.
        """
        data = load_tasks(recipe.data, seed=recipe.seed, emit=emit)
        recipes = {name: _recipe_of(recipe, data, name) for name in data.sets}
        for one in recipes.values():  # of every task before the first weight is read
            assert isinstance(one.objective, Objective), one.objective
            one.method.check_task(one.objective.task)
            recipe.train.optimizer.check_method(one.method.name, trains_base_weights=one.method.trains_base_weights)
        works: dict[str, Work] = {}
        for name, one in recipes.items():
            say = _named(emit, name)
            works[name] = Work.prepare(one, data.sets[name], say, precision=precision, attention=attention)
            first = next(iter(works.values()))
            if works[name] is not first:
                share_backbone(first.learner.model, works[name].learner.model)
        return JointWork(recipe, data, works, emit)

    def loop(self, run: RunFolder) -> Loop:
        """The loop that trains all tasks into this folder."""
        first = next(iter(self.works.values()))
        return Loop(
            first.learner,
            Rows.joined({name: work.rows for name, work in self.works.items()}),
            Rows.joined({name: work.validation for name, work in self.works.items()}),
            settings=first.recipe.train,
            run=run,
            seed=self.recipe.seed,
            fingerprint=self.recipe.fingerprint(),
            identity=self.recipe.model_dump(mode="json"),
            emit=self.emit,
            mixture=Mixture(
                self.data.copies,
                {name: work.learner for name, work in self.works.items()},
                {name: source.loss_weight for name, source in self.data.sources.items()},
            ),
        )


def train_joint(run: RunFolder, joint: JointWork, allowed: Sequence[str] = ()) -> None:
    """Train, publish every task's model, load what was published, score it, report."""
    started = time.perf_counter()
    emit, works = joint.emit, joint.works
    first_work = next(iter(works.values()))
    settle(run, first_work.learner.precision, joint.recipe.model.precision, joint.recipe.train.threads)
    for work in works.values():  # the first packed one decides: their backbone is one
        settle_attention(run, work.learner, joint.recipe.train.attention)
    record_work(run, first_work)
    loop = joint.loop(run)
    first = loop.restore(allowed)
    emit(_head(run, joint, loop, first))
    folders = {name: _folder(run, name, work) for name, work in works.items()}
    sampler = next(
        (one for name, work in works.items() if (one := Sampler(folders[name], work, after=first)).example is not None),
        None,
    )
    state = loop.fit(sampler or (lambda step: None))
    title = "Loss: each task's mean times its weight, summed; dashed: each task's mean on validation rows"
    loss_curve(run.read_metrics(), run.path / "loss.png", title=title)
    after: dict[str, Evaluation] = {}
    for name, work in works.items():
        if not is_whole(folders[name].model):
            publish_model(folders[name], work, finish=partial(_share_files, name=name, works=works, run=run))
        emit(Saved(STEP, str(folders[name].model), "model"))
    for name, work in works.items():
        label = f"scoring {name}"
        after[name] = score_rows(work.recipe, load_trained(folders[name].model), work.held_out, emit, label)
        write_report(folders[name], work, state, after[name])
        folders[name].set_state("finished")
    reports = {name: folder.read_json("report.json") for name, folder in folders.items()}
    report = {
        "format": 1,
        "run": run.name,
        "recipe_fingerprint": joint.recipe.fingerprint(),
        "training": training_values(next(iter(works.values())), state),
        "tasks": {
            name: {
                "held_out": one["held_out"],
                "parameters": one["parameters"],
                **{side: {"scores": one[side]["scores"]} for side in ("before", "after")},
                "difference": one["difference"],
            }
            for name, one in reports.items()
        },
    }
    run.write("report.json", report)
    run.set_state("finished")
    rows = _rows(works, after)
    text = (
        f"{count(state.step)} steps · {millions(state.num_tokens)} tokens · {len(works)} tasks · "
        f"peak {gib(peak_memory_bytes())} · best at step {state.best_step}"
    )
    values: dict[str, Value] = {
        "steps": state.step,
        "validation_loss": state.best_loss,
        "best": state.best_step,
        "path": str(run.path),
    }
    following = tuple(f"tunesmith evaluate {folder.path}" for folder in folders.values())[:2]
    emit(Finished(STEP, text, time.perf_counter() - started, values, next=following, table=rows))


def _recipe_of(recipe: Recipe, data: TaskSets, name: str) -> Recipe:
    """The recipe that would train this task alone."""
    objective = data.sources[name].objective
    assert objective != "auto", name
    alone = override_recipe(
        recipe,
        name=name,
        data=data.settings[name].model_dump(mode="json"),
        objective=objective.spec(),
        evaluate=[metric.spec() for metric in _metrics(recipe, objective, data.sets[name])],
    )
    return resolve(alone, data.sets[name])


def _metrics(recipe: Recipe, objective: Objective, data: DataSet) -> tuple[Metric, ...]:
    """The recipe's metrics that can be used on a task's rows; the defaults where none can."""
    held_out = data.test or data.validation
    chosen = () if recipe.evaluate == "auto" else tuple(one for one in recipe.evaluate if _fits(one, held_out))
    return chosen or default_metrics(objective.name, held_out)


def _fits(metric: Metric, examples: Sequence[Example]) -> bool:
    try:
        refuse_unfit(metric, examples)
    except UserError:
        return False
    return True


def _folder(run: RunFolder, name: str, work: Work) -> RunFolder:
    """A task's folder with what is known before its training."""
    folder = RunFolder(run.path / name)
    folder.path.mkdir(exist_ok=True)
    folder.write("recipe.yaml", work.recipe.to_yaml())
    folder.write("data.json", work.data.card())
    folder.write("environment.json", environment(machine=describe().to_dict(), seed=work.recipe.seed))
    folder.write("trained_with.json", {"run": run.name})
    folder.set_state("running")
    return folder


def _share_files(draft: Path, *, name: str, works: Mapping[str, Work], run: RunFolder) -> None:
    """Keep the backbone's weights on disk once."""
    if works[name].recipe.method.is_adapter:
        return
    models = [work.learner.model for work in works.values()]
    twins = [run.path / other / "model" for other in works if (run.path / other / "model").is_dir()]
    split_weights(draft, shared_names(works[name].learner.model, models), twins)


def _head(run: RunFolder, joint: JointWork, loop: Loop, first: int) -> Started:
    recipe, works = joint.recipe, joint.works
    model = {id(p): p.numel() for work in works.values() for p in work.learner.model.parameters()}
    total, trainable = sum(model.values()), sum(parameter.numel() for parameter in loop.tensors.values())
    resumed = f" · goes on after step {first}" if first else ""
    lines = [("run", f"{run.path}{resumed}")]
    lines.append(("model", f"{recipe.model.name} · {millions(total)} parameters, {len(works)} heads"))
    lines.append(("machine", machine_line(run, next(iter(works.values())).learner.precision)))
    for name, work in works.items():
        assert isinstance(work.recipe.objective, Objective)
        layout = f"padded: {why}" if (why := work.learner.padded_because) else packed(work.learner.model)
        rows = f"{count(len(work.data.train))} train, {count(len(work.data.validation))} validation"
        test = f", {count(len(work.data.test))} test" if work.data.test else ""
        often = f" · each read {joint.data.copies[name]:.3g} times an epoch" if joint.data.copies[name] != 1 else ""
        lines.append((name, f"{work.recipe.objective.name} · {rows}{test} rows · {layout}{often}"))
    lines.append(("method", f"{recipe.method.summary()} · {count(trainable)} trainable ({trainable / total:.1%})"))
    lines.append(("plan", f"{count(loop.order.num_steps)} steps of {count(recipe.train.tokens_per_step)} tokens"))
    lines += loop.lines()
    return Started(
        STEP,
        run.name,
        {"run": str(run.path), "steps": loop.order.num_steps, "trainable": trainable, "resumed_at": first},
        tuple(lines),
        on_interrupt=f"finishes this step and saves; resume with: tunesmith train --resume {run.path}",
    )


def _rows(works: Mapping[str, Work], after: Mapping[str, Evaluation]) -> tuple[tuple[str, ...], ...]:
    rows = [
        (
            f"{name}: {one.metric.replace('_', ' ')} of {count(len(work.held_out))} {work.held_out_name} rows",
            interval(old.value, old.low, old.high),
            interval(one.value, one.low, one.high),
        )
        for name, work in works.items()
        for old, one in zip(work.before.scores, after[name].scores, strict=True)
    ]
    return (("task", "before", "after"), *rows)


def _named(emit: Emit, name: str) -> Emit:
    """Says of progress which task it is about."""

    def say(event: Event) -> None:
        emit(replace(event, label=f"{name}: {event.label}") if isinstance(event, Progress) else event)

    return say
