"""Evaluate: every answer, scores with intervals, the clock and the memory, for anything that answers.

Metrics that need the same pass (answers, likelihood, labels) share it, and the passes' outcomes are merged row by
row. Batched answers give the total time; seconds per answer are measured one by one, as a user would wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from tunesmith.core.entities import is_entity_tag
from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finished, Progress, Started, Warning, silent
from tunesmith.core.events import Metric as MetricEvent
from tunesmith.core.home import Home
from tunesmith.core.intervals import Difference, difference, score
from tunesmith.core.plugins import build
from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    MultiLabelExample,
    NumberExample,
    Outcome,
    PairExample,
    Score,
    TagExample,
    TextExample,
)
from tunesmith.metrics.base import Metric
from tunesmith.objectives.base import objective_for
from tunesmith.prompting.base import Ask
from tunesmith.recipe import GenerateSettings
from tunesmith.steps.opening import held_out, open_target

if TYPE_CHECKING:
    from tunesmith.models.predict import Predictor

NUM_TIMED = 12
"""Rows that are answered one by one for the latency; more would cost more time than they add certainty."""
LEAST_TIMED, SECONDS_TIMED = 3, 15.0
"""After so many seconds the clock stops early, but not before so many rows."""
OUTCOME_FIELDS = tuple(field.name for field in fields(Outcome))
"""Written as they are: `asdict` copies every probability of every row, which takes 70 times as long."""
PASSES = ("answers", "labels", "tags", "numbers", "likelihood")
"""What metrics can need, in the order in which it is computed."""
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "clm": ("perplexity",),
    "mlm": ("perplexity",),
    "sft": ("perplexity", "exact_match", "rouge"),
    "classification": ("accuracy", "f1"),
    "multi_label": ({"name": "f1", "average": "micro"}, "f1", "accuracy"),
    "regression": ("mean_absolute_error", "pearson", "spearman"),
    "token_classification": ("entity_f1", "tag_accuracy"),
    "seq2seq": ("perplexity", "bleu", "rouge"),
}


@dataclass(frozen=True)
class Evaluation:
    """What came of answering a set of rows."""

    scores: tuple[Score, ...]
    outcomes: tuple[Outcome, ...]
    seconds: float
    """Wall-clock seconds of all passes, batched."""
    seconds_per_answer: float | None
    """One row at a time, the mean of a few; None where nothing was answered or timed."""
    peak_bytes: int
    times_out_of_memory: int = 0
    """How often batches were halved because memory ran out; answers are those of smaller batches."""

    def score(self, name: str) -> Score:
        """The score of the metric with this name or key."""
        return next(score for score in self.scores if name in (score.metric, score.metric.partition(":")[0]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "scores": [asdict(score) for score in self.scores],
            "outcomes": [{name: getattr(outcome, name) for name in OUTCOME_FIELDS} for outcome in self.outcomes],
            "seconds": self.seconds,
            "seconds_per_answer": self.seconds_per_answer,
            "peak_bytes": self.peak_bytes,
            "times_out_of_memory": self.times_out_of_memory,
            "num_rows": len(self.outcomes),
        }


def evaluate(
    target: str,
    *,
    data: str = "",
    metrics: Sequence[str | Metric] = (),
    limit: int = 0,
    emit: Emit = silent,
    home: Home | None = None,
) -> Evaluation:
    """Score a run, a model, a registered version or an OpenAI-compatible URL on held-out rows.

    Without `data` a run is scored on its own held-out rows (test, else validation).

    Raises:
        UserError: The target or the data cannot be opened, or they do not fit each other or the metrics.
    """
    started = time.perf_counter()
    chosen = [build("metrics", _spec(metric)) for metric in metrics]  # wrong names before anything is loaded
    opened = open_target(target, home or Home.open())
    examples = held_out(data, opened, limit)
    objective = opened.objective or objective_for(type(examples[0]))
    chosen = chosen or list(default_metrics(objective, examples))
    names = ", ".join(metric.key() for metric in chosen)
    emit(Started("evaluate", opened.title, {"target": target, "rows": len(examples), "metrics": names}))
    evaluation = evaluate_predictor(
        opened.predictor,
        examples,
        chosen,
        generate=opened.recipe.generate if opened.recipe else GenerateSettings(),
        seed=opened.recipe.seed if opened.recipe else 1,
        emit=emit,
        step="evaluate",
    )
    emit(MetricEvent("evaluate", score_values(evaluation.scores), label=opened.title, seconds=evaluation.seconds))
    emit(Finished("evaluate", f"{len(examples)} rows scored", time.perf_counter() - started))
    return evaluation


def evaluate_predictor(  # noqa: PLR0913 - one call says everything about a measurement
    predictor: Predictor,
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    *,
    ask: Ask | None = None,
    generate: GenerateSettings | None = None,
    seed: int = 1,
    emit: Emit = silent,
    step: str = "evaluate",
    num_timed: int = NUM_TIMED,
) -> Evaluation:
    """Scores and answers of one predictor; `ask` puts the questions (the example's own prompt where left out).

    `num_timed` 0 leaves out the one-by-one clock.

    Raises:
        UserError: There are no rows, or a metric needs what the rows or the predictor do not have.
    """
    from tunesmith.models.machine import peak_memory_bytes

    needs = {metric.needs for metric in metrics}
    for metric in metrics:
        refuse_unfit(metric, examples)
    generate = generate or GenerateSettings()
    passes = _Passes(predictor, examples, ask or own_prompt, generate, emit, step)
    halved_before = getattr(predictor, "times_out_of_memory", 0)  # a model behind a URL has no memory of ours
    started = time.perf_counter()
    merged = _merge([passes.run(need) for need in PASSES if need in needs], examples)
    seconds = time.perf_counter() - started
    halved = getattr(predictor, "times_out_of_memory", 0) - halved_before
    if halved:
        text = "memory ran out while rows were scored: batches were halved, and answers are those of smaller batches"
        emit(Warning(step, "out_of_memory", text, {"times": halved}))
    return Evaluation(
        scores=tuple(score(metric, merged, seed) for metric in metrics),
        outcomes=tuple(merged),
        seconds=seconds,
        seconds_per_answer=passes.seconds_per_answer(needs, num_timed),
        peak_bytes=peak_memory_bytes(),
        times_out_of_memory=halved,
    )


def before_after(
    metrics: Sequence[Metric], before: Evaluation, after: Evaluation, *, seed: int = 1
) -> tuple[Difference, ...]:
    """After minus before of every metric, on the same rows, with intervals."""
    return tuple(difference(metric, after.outcomes, before.outcomes, seed) for metric in metrics)


def default_metrics(objective: str, examples: Sequence[Example] = ()) -> tuple[Metric, ...]:
    """The metrics an objective is judged by; facts first where every row names some, entities where tags mark any."""
    names = DEFAULTS.get(objective, ("perplexity",))
    if examples and objective in ("sft", "seq2seq") and all(example.fields.get("facts") for example in examples):
        names = ("fact_match", *names)
    if any(isinstance(example, TagExample) and not _marks_entities(example) for example in examples):
        names = ("tag_accuracy",)
    return tuple(build("metrics", name) for name in names)


def score_values(scores: Sequence[Score]) -> dict[str, float]:
    """Scores as the values of an event: `fact_match`, `fact_match_low`, `fact_match_high`."""
    values: dict[str, float] = {}
    for one in scores:
        values |= {one.metric: one.value, f"{one.metric}_low": one.low, f"{one.metric}_high": one.high}
    return values


def own_prompt(example: ChatExample) -> tuple[Any, ...]:
    """An `Ask` that puts the example's own prompt."""
    return example.prompt


def metric_of(text: str) -> Metric:
    """A metric from the form the command line and the scores use: `f1`, `f1:average=micro`.

    Raises:
        UserError: No such metric or setting.
    """
    metric: Metric = build("metrics", _spec(text))
    return metric


class _Passes:
    """The passes over the rows that metrics need."""

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Example],
        ask: Ask,
        generate: GenerateSettings,
        emit: Emit,
        step: str,
    ) -> None:
        self.predictor, self.examples, self.ask, self.generate = predictor, examples, ask, generate
        self.emit, self.step = emit, step

    def run(self, need: str) -> list[Outcome]:
        return self._pass(need, self.examples, self._on_progress(need))

    def seconds_per_answer(self, needs: set[Any], num_timed: int) -> float | None:
        need = next((need for need in PASSES if need in needs and need != "likelihood"), "")
        if not need or not num_timed:
            return None
        rows = spread(self.examples, num_timed)
        self._pass(need, rows[:1], _nothing)  # the first of a shape is slower
        started = time.perf_counter()
        for count, row in enumerate(rows, 1):
            self._pass(need, [row], _nothing)
            seconds = time.perf_counter() - started
            if count >= LEAST_TIMED and seconds > SECONDS_TIMED:
                break
        return seconds / count

    def _pass(self, need: str, examples: Sequence[Any], on_progress: Callable[[int, int], None]) -> list[Outcome]:
        if need == "answers":
            return list(self.predictor.answer(examples, self.ask, self.generate, on_progress))
        if need in ("labels", "tags", "numbers"):
            return list(self.predictor.classify(examples, on_progress))
        return list(self.predictor.likelihood([_as_asked(example, self.ask) for example in examples], on_progress))

    def _on_progress(self, label: str) -> Callable[[int, int], None]:
        return lambda done, total: self.emit(Progress(self.step, done, total, label=label, unit="rows"))


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most `count` rows, evenly spread, first included."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _as_asked(example: Example, ask: Ask) -> Example:
    """The example as this way of prompting puts it, with only its own answer scored."""
    if ask is own_prompt or not isinstance(example, ChatExample):
        return example
    asked = tuple(replace(message, weight=0.0) for message in ask(example))
    return replace(example, messages=(*asked, example.messages[len(example.prompt)]))


def _merge(passes: Sequence[Sequence[Outcome]], examples: Sequence[Example]) -> list[Outcome]:
    for outcomes in passes:
        origins = [outcome.origin for outcome in outcomes]
        assert origins == [str(example.origin) for example in examples], origins[:3]
    merged = list(passes[0]) if passes else []
    for outcomes in passes[1:]:
        merged = [
            replace(kept, nll_nats=other.nll_nats, num_scored_tokens=other.num_scored_tokens)
            for kept, other in zip(merged, outcomes, strict=True)
        ]
    return merged


def refuse_unfit(metric: Metric, examples: Sequence[Example]) -> None:
    """Let pass only a metric that these rows can be scored by.

    Raises:
        UserError: There are no rows, or they are of another kind.
    """
    if not examples:
        raise UserError("there are no rows to score.", code="no_rows", remedy="Name a file that has some.")
    kinds: tuple[type[Example], ...] = {
        "answers": (ChatExample, PairExample),
        "labels": (LabelExample, MultiLabelExample),
        "tags": (TagExample,),
        "numbers": (NumberExample,),
        "likelihood": (TextExample, ChatExample, PairExample),
    }[metric.needs]
    unfit = next((example for example in examples if not isinstance(example, kinds)), None)
    if unfit:
        fitting = ", ".join(default.key() for default in default_metrics(objective_for(type(unfit))))
        raise UserError(
            f'the metric "{metric.key()}" cannot be used on rows of this kind ({_kind(unfit)}).',
            code="metric_unfit",
            where=str(unfit.origin),
            remedy=f"Fitting: {fitting}.",
        )


def _kind(example: Example) -> str:
    kinds: dict[type[Example], str] = {
        TextExample: "plain text",
        ChatExample: "chat",
        LabelExample: "text and label",
        MultiLabelExample: "text and labels",
        NumberExample: "text and number",
        TagExample: "words and tags",
    }
    return kinds.get(type(example), "source and target")


def _marks_entities(example: TagExample) -> bool:
    return all(is_entity_tag(tag) for tag in example.tags)


def _spec(metric: str | Metric) -> Any:
    if not isinstance(metric, str):
        return metric
    name, *settings = metric.split(":")
    pairs = [setting.partition("=") for setting in settings]
    return {"name": name, **{key: value for key, _, value in pairs}}


def _nothing(done: int, total: int) -> None:
    """Say nothing about progress."""
