"""Evaluating: shared passes merged row by row, the clock, defaults, and what does not fit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Finished, Metric, Progress, Started, silent
from tunesmith.core.home import Home
from tunesmith.core.plugins import build
from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    Message,
    Origin,
    Outcome,
    PairExample,
    TextExample,
)
from tunesmith.objectives.base import objective_for
from tunesmith.prompting.base import Ask
from tunesmith.recipe import GenerateSettings
from tunesmith.steps.evaluate import (
    before_after,
    default_metrics,
    evaluate,
    evaluate_predictor,
    metric_of,
    own_prompt,
    spread,
)

QUESTIONS = [("What does E07 mean?", "The tank is empty."), ("How often?", "Every three months."), ("Who?", "Anna.")]


def chat(question: str, answer: str, line: int, **fields: object) -> ChatExample:
    messages = (Message("user", question), Message("assistant", answer))
    return ChatExample(messages=messages, origin=Origin("held.jsonl", line), fields=fields)


ROWS = [chat(question, answer, i) for i, (question, answer) in enumerate(QUESTIONS, 1)]


class Parrot:
    """A predictor that knows a few answers by heart; it counts what it is asked to do."""

    def __init__(self, known: dict[str, str], seconds: float = 0.0) -> None:
        self.known, self.seconds = known, seconds
        self.calls: list[tuple[str, int]] = []
        self.asked: list[tuple[Message, ...]] = []
        self.scored: list[Example] = []

    def answer(
        self,
        examples: Sequence[ChatExample],
        ask: Ask,
        settings: GenerateSettings,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Outcome]:
        self.calls.append(("answer", len(examples)))
        outcomes = []
        for i, example in enumerate(examples, 1):
            asked = ask(example)
            self.asked.append(asked)
            time.sleep(self.seconds)
            outcomes.append(
                Outcome(
                    origin=str(example.origin),
                    prompt=asked[-1].content,
                    answer=self.known.get(example.prompt[-1].content, "I do not know."),
                    reference=example.answer,
                    fields=example.fields,
                    seconds=0.01,
                )
            )
            if on_progress:
                on_progress(i, len(examples))
        return outcomes

    def likelihood(
        self, examples: Sequence[Example], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Outcome]:
        self.calls.append(("likelihood", len(examples)))
        self.scored += examples
        return [Outcome(origin=str(e.origin), nll_nats=6.0, num_scored_tokens=3) for e in examples]

    def classify(
        self, examples: Sequence[Example], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Outcome]:
        self.calls.append(("classify", len(examples)))
        return [
            Outcome(origin=str(e.origin), answer="yes", reference=e.label, probabilities={"yes": 0.9, "no": 0.1})
            for e in examples
            if isinstance(e, LabelExample)
        ]


def metrics(*names: str) -> list[object]:
    return [build("metrics", name) for name in names]


def test_metrics_share_passes_and_their_outcomes_are_merged_by_row() -> None:
    parrot = Parrot(dict(QUESTIONS[:2]))
    found = evaluate_predictor(
        parrot, ROWS, metrics("exact_match", "rouge", "loss", "perplexity"), num_timed=0, seed=1, emit=silent, step="x"
    )
    assert parrot.calls == [("answer", 3), ("likelihood", 3)]
    assert [score.metric for score in found.scores] == ["exact_match", "rouge", "loss", "perplexity"]
    assert found.score("exact_match").value == pytest.approx(2 / 3)
    assert found.score("perplexity").value == pytest.approx(math.exp(2))
    first = found.outcomes[0]
    assert (first.answer, first.reference, first.nll_nats, first.num_scored_tokens) == (
        "The tank is empty.",
        "The tank is empty.",
        6.0,
        3,
    )


def test_only_the_pass_that_is_needed_is_made() -> None:
    parrot = Parrot({})
    found = evaluate_predictor(parrot, ROWS, metrics("perplexity"), num_timed=3)
    assert parrot.calls == [("likelihood", 3)]
    assert found.seconds_per_answer is None


def test_seconds_per_answer_are_measured_one_by_one_after_a_warm_up() -> None:
    parrot = Parrot({}, seconds=0.02)
    found = evaluate_predictor(parrot, ROWS, metrics("exact_match"), num_timed=2)
    assert parrot.calls == [("answer", 3), ("answer", 1), ("answer", 1), ("answer", 1)]
    assert found.seconds_per_answer is not None
    assert 0.02 <= found.seconds_per_answer < 0.05
    assert found.seconds >= 0.06
    assert found.peak_bytes > 10_000_000


def test_the_way_of_asking_reaches_answers_and_likelihood() -> None:
    def ask(example: ChatExample) -> tuple[Message, ...]:
        return (Message("user", "1+1?"), Message("assistant", "2"), *example.prompt)

    parrot = Parrot({})
    evaluate_predictor(parrot, ROWS[:1], metrics("exact_match", "loss"), ask=ask, num_timed=0)
    assert parrot.asked == [ask(ROWS[0])]
    (scored,) = parrot.scored
    assert isinstance(scored, ChatExample)
    assert [m.content for m in scored.messages] == ["1+1?", "2", "What does E07 mean?", "The tank is empty."]
    assert [m.weight for m in scored.messages if m.role == "assistant"] == [0.0, 1.0]  # only its own answer counts


def test_without_a_way_of_asking_the_example_is_scored_as_it_is() -> None:
    parrot = Parrot({})
    evaluate_predictor(parrot, ROWS, metrics("loss"))
    assert parrot.scored == ROWS
    assert own_prompt(ROWS[0]) == ROWS[0].prompt


def test_progress_names_the_pass() -> None:
    events: list[Event] = []
    evaluate_predictor(Parrot({}), ROWS, metrics("exact_match"), emit=events.append, step="compare", num_timed=0)
    assert events == [Progress("compare", i, 3, label="answers", unit="rows") for i in (1, 2, 3)]


def test_the_dict_is_json_and_complete() -> None:
    found = evaluate_predictor(Parrot({}), ROWS, metrics("exact_match", "loss"), num_timed=1).to_dict()
    keys = ["scores", "outcomes", "seconds", "seconds_per_answer", "peak_bytes", "times_out_of_memory", "num_rows"]
    assert list(found) == keys
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["num_rows"] == 3
    assert again["scores"][0]["metric"] == "exact_match"
    assert again["outcomes"][1]["answer"] == "I do not know."


def test_before_and_after_are_paired() -> None:
    chosen = metrics("exact_match")
    before = evaluate_predictor(Parrot({}), ROWS, chosen, num_timed=0)
    after = evaluate_predictor(Parrot(dict(QUESTIONS)), ROWS, chosen, num_timed=0)
    (found,) = before_after(chosen, before, after)
    assert (found.value, found.num_rows) == (1.0, 3)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("clm", ["perplexity"]),
        ("sft", ["perplexity", "exact_match", "rouge"]),
        ("classification", ["accuracy", "f1"]),
        ("seq2seq", ["perplexity", "bleu", "rouge"]),
    ],
)
def test_each_objective_has_its_metrics(objective: str, expected: list[str]) -> None:
    assert [metric.name for metric in default_metrics(objective)] == expected


def test_facts_come_first_where_every_row_names_some() -> None:
    facts = [chat("a?", "b", i, facts=[["b"]]) for i in (1, 2)]
    assert default_metrics("sft", facts)[0].name == "fact_match"
    assert default_metrics("sft", [*facts, ROWS[0]])[0].name == "perplexity"


def test_rows_decide_the_objective() -> None:
    assert objective_for(TextExample) == "clm"
    assert objective_for(LabelExample) == "classification"
    assert objective_for(PairExample) == "seq2seq"


def test_metrics_are_named_with_their_settings() -> None:
    metric = metric_of("f1:average=micro")
    assert (metric.name, metric.key()) == ("f1", "f1:average=micro")
    assert metric_of("bleu:lowercase=true:tokenize=char").key() == "bleu:tokenize=char:lowercase=True"
    with pytest.raises(UserError, match='there is no metric "rogue";') as fault:
        metric_of("rogue")
    assert fault.value.remedy.startswith('did you mean "rouge"')


def test_a_metric_that_does_not_fit_the_rows_names_those_that_do() -> None:
    with pytest.raises(UserError) as fault:
        evaluate_predictor(Parrot({}), ROWS, metrics("accuracy"))
    assert fault.value.line() == (
        'held.jsonl:1: the metric "accuracy" cannot be used on rows of this kind (chat). '
        "Fitting: perplexity, exact_match, rouge. [metric_unfit]"
    )


def test_no_rows_is_an_error_before_anything_is_asked() -> None:
    parrot = Parrot({})
    with pytest.raises(UserError, match="no rows to score"):
        evaluate_predictor(parrot, [], metrics("exact_match"))
    assert parrot.calls == []


def test_a_spread_is_even_and_starts_at_the_first() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 12) == [0, 1, 2]


# --- with real models ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tunesmith.models.tiny import write_tiny

    folder = tmp_path_factory.mktemp("model")
    write_tiny(folder, "llama", "causal")
    return folder


def write_rows(folder: Path) -> Path:
    file = folder / "held.jsonl"
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in QUESTIONS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_model_folder_is_scored_on_a_file(model: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    found = evaluate(str(model), data=str(write_rows(tmp_path)), emit=events.append, home=Home(tmp_path))
    assert [score.metric for score in found.scores] == ["perplexity", "exact_match", "rouge"]
    assert [outcome.reference for outcome in found.outcomes] == [answer for _, answer in QUESTIONS]
    assert found.score("perplexity").value > 1
    assert found.seconds_per_answer is not None
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    values = next(event.values for event in events if isinstance(event, Metric))
    assert values["perplexity_low"] <= values["perplexity"] <= values["perplexity_high"]


def test_limit_takes_the_first_rows(model: Path, tmp_path: Path) -> None:
    found = evaluate(str(model), data=str(write_rows(tmp_path)), metrics=["loss"], limit=2, home=Home(tmp_path))
    assert [outcome.origin.rpartition(":")[2] for outcome in found.outcomes] == ["1", "2"]


def test_wrong_names_stop_before_the_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='there is no metric "perplexty"'):
        evaluate("no/such/model", data="nothing.jsonl", metrics=["perplexty"], home=Home(tmp_path))


def test_a_model_without_rows_of_its_own_asks_for_a_file(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out rows of its own") as fault:
        evaluate(str(model), home=Home(tmp_path))
    assert "--data" in fault.value.remedy


def test_an_unreachable_server_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no list of models could be read") as fault:
        evaluate("http://127.0.0.1:9/v1", data=str(write_rows(tmp_path)), home=Home(tmp_path))
    assert "/v1#name" in fault.value.remedy


def test_an_unknown_registered_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as fault:
        evaluate("manual@champion", data=str(write_rows(tmp_path)), home=Home(tmp_path))
    assert fault.value.code.startswith("unknown_registered_model")
