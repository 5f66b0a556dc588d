"""What a training says: its head, its report.json and its end."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.core.events import Finished, Started, Value
from tunesmith.core.intervals import score
from tunesmith.core.quantities import count, gib, interval, millions
from tunesmith.core.records import Outcome, Score
from tunesmith.core.run import RunFolder
from tunesmith.models.anatomy import num_parameters
from tunesmith.models.cost import cost_of
from tunesmith.models.machine import peak_memory_bytes
from tunesmith.models.number_head import unit_line
from tunesmith.steps.evaluate import Evaluation, before_after
from tunesmith.steps.train_choices import machine_line
from tunesmith.steps.train_work import STEP, Work
from tunesmith.training.attention import packed
from tunesmith.training.checkpoint import TrainingState
from tunesmith.training.loop import Loop


def write_report(run: RunFolder, work: Work, state: TrainingState, after: Evaluation) -> None:
    """report.json: what it took, and every answer before and after, on the same rows."""
    recipe = work.recipe
    assert recipe.evaluate != "auto", recipe.evaluate
    differences = before_after(recipe.evaluate, work.before, after, seed=recipe.seed)
    report = {
        "format": 1,
        "run": run.name,
        "recipe_fingerprint": recipe.fingerprint(),
        "held_out": {"name": work.held_out_name, "num_rows": len(work.held_out)},
        "parameters": cost_of(work.learner.model, recipe.method, recipe.train.optimizer).to_dict(),
        "training": training_values(work, state),
        "before": work.before.to_dict(),
        "after": after.to_dict(),
        "difference": [asdict(one) for one in differences],
    }
    if sources := _source_scores(work, after):
        report["sources"] = {name: [asdict(score) for score in scores] for name, scores in sources.items()}
    run.write("report.json", report)


def _source_scores(work: Work, evaluation: Evaluation) -> dict[str, list[Score]]:
    """Each source's own scores, where several share a head; empty where there is one."""
    assert work.recipe.evaluate != "auto", work.recipe.evaluate
    outcomes: dict[str, list[Outcome]] = {}
    for example, outcome in zip(work.held_out, evaluation.outcomes, strict=False):  # a trial answers nothing
        outcomes.setdefault(example.source_name, []).append(outcome)
    if len(outcomes) < 2:
        return {}
    return {
        name: [score(metric, mine, work.recipe.seed) for metric in work.recipe.evaluate]
        for name, mine in outcomes.items()
    }


def training_values(work: Work, state: TrainingState) -> dict[str, Any]:
    """What a training took, as report.json has it."""
    return {
        "steps": state.step,
        "best_step": state.best_step,
        "best_validation_loss": state.best_loss if state.best_step else None,
        "tokens": state.num_tokens,
        "trained_tokens": state.num_trained_tokens,
        "seconds": state.train_seconds,
        "wait_seconds": state.wait_seconds,
        "tokens_per_second": state.num_tokens / max(state.train_seconds, 1e-9),
        "micro_tokens": state.micro_tokens,
        "recomputed_blocks": state.num_recomputed,
        "times_out_of_memory": state.times_out_of_memory,
        "is_packed": work.learner.layout.is_packed,
        "padded_because": work.learner.padded_because,
        "precision": work.learner.precision,
        "peak_bytes": peak_memory_bytes(),
    }


def head(run: RunFolder, work: Work, loop: Loop, first: int) -> Started:
    """What is about to happen; `first` is the step a resumed run goes on after."""
    recipe, learner = work.recipe, work.learner
    trainable, total = num_parameters(learner.model)
    tokens, trained = work.rows.num_tokens, round(work.rows.weight)
    unit = {"classify": "rows", "tag": "words"}.get(work.loaded.task, "tokens")
    learnt = f" · {count(trained)} of {count(tokens)} tokens are trained" if unit == "tokens" else ""
    num_rows = f"{count(len(work.data.train))} train, {count(len(work.data.validation))} validation"
    source = recipe.data.source if isinstance(recipe.data.source, str) else f"{len(recipe.data.source)} sources"
    test = f", {count(len(work.data.test))} test" if work.data.test else ""
    why = learner.padded_because
    layout = f"padded, in groups of like length: {why}" if why else packed(learner.model)
    often = work.data.copies
    rows = work.rows
    read = sum(int(rows.lengths[rows.rows_of(name)].sum()) * often.get(name, 1.0) for name in rows.names)
    epochs = loop.order.num_steps * recipe.train.tokens_per_step / max(read, 1)
    resumed = f" · goes on after step {first}" if first else ""
    faster = next(iter(learner.head_factors.values()), 1.0)
    new_head = f" · its new head learns {faster:g} times as fast" if faster != 1 else ""
    cost = cost_of(learner.model, recipe.method, recipe.train.optimizer)
    steps = f"{count(loop.order.num_steps)} steps of {count(recipe.train.tokens_per_step)} tokens ({epochs:.3g} epochs)"
    return Started(
        STEP,
        run.name,
        {
            "run": str(run.path),
            "steps": loop.order.num_steps,
            "trainable": trainable,
            "resumed_at": first,
            "cache": loop.frozen.line(),
        },
        (
            ("run", f"{run.path}{resumed}"),
            ("model", f"{recipe.model.name} · {millions(total)} parameters"),
            ("machine", machine_line(run, learner.precision)),
            ("data", f"{Path(source).name} · {num_rows}{test} rows{learnt}"),
            *((("numbers", unit),) if (unit := unit_line(learner.model)) else ()),
            ("method", f"{recipe.method.summary()} · {cost.line()}{new_head}"),
            ("plan", f"{steps} · {layout}"),
            *((("cache", cache),) if (cache := loop.frozen.line()) else ()),
            *loop.lines(),
        ),
        on_interrupt=f"finishes this step and saves; resume with: tunesmith train --resume {run.path}",
    )


def tail(run: RunFolder, work: Work, state: TrainingState, after: Evaluation, seconds: float) -> Finished:
    """How it ended, with before and after side by side."""
    speed = state.num_tokens / max(state.train_seconds, 1e-9)
    text = (
        f"{count(state.step)} steps · {millions(state.num_tokens)} tokens · "
        f"{count(round(speed))} tokens/s · peak {gib(peak_memory_bytes())} · best at step {state.best_step}"
    )
    titles = (f"{count(len(work.held_out))} {work.held_out_name} rows", "before", "after")
    rows = [
        (one.metric.replace("_", " "), interval(old.value, old.low, old.high), interval(one.value, one.low, one.high))
        for old, one in zip(work.before.scores, after.scores, strict=True)
    ]
    before = _source_scores(work, work.before)
    rows += [
        (
            f"{name}: {one.metric.replace('_', ' ')}",
            interval(old.value, old.low, old.high),
            interval(one.value, one.low, one.high),
        )
        for name, scores in _source_scores(work, after).items()
        for old, one in zip(before[name], scores, strict=True)
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
