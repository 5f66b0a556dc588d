"""Answers, likelihoods and classes where memory runs out: smaller batches, the same results."""

from __future__ import annotations

from typing import Any

import pytest

from narrow import Narrow
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning
from tunesmith.core.plugins import build
from tunesmith.core.records import ChatExample, LabelExample, Message, Origin, PairExample, TagExample
from tunesmith.models.load import Loaded
from tunesmith.models.predict import LocalPredictor
from tunesmith.models.tiny import task_of, tiny
from tunesmith.recipe import GenerateSettings
from tunesmith.steps.evaluate import evaluate_predictor

TEXTS = (
    "the light is on",
    "wait",
    "empty the water tank now",
    "press the green button",
    "it is",
    "empty the water tank now",
)
"""The longest comes twice, so that no batch of one row is the largest."""
LABELS = ("no", "yes", "maybe")


def _predictor(architecture: str, task: Any = None) -> LocalPredictor:
    kind = task or task_of(architecture)
    model, tokenizer = tiny(architecture, kind, labels=LABELS)
    return LocalPredictor(Loaded(model, tokenizer, kind, LABELS if kind in ("classify", "tag") else (), architecture))


def _rows(make: Any) -> list[Any]:
    return [make(Origin("rows.jsonl", line), text) for line, text in enumerate(TEXTS, 1)]


def _chat(origin: Origin, text: str) -> ChatExample:
    return ChatExample(origin=origin, messages=(Message("user", text), Message("assistant", "it is clean")))


def _label(origin: Origin, text: str) -> LabelExample:
    return LabelExample(origin=origin, text=text, label="no")


def _pair(origin: Origin, text: str) -> PairExample:
    return PairExample(origin=origin, source=text, target="it is clean")


def _tags(origin: Origin, text: str) -> TagExample:
    return TagExample(origin=origin, words=tuple(text.split()), tags=("no",) * len(text.split()))


@pytest.mark.parametrize(
    ("architecture", "task", "make", "metric"),
    [
        ("llama", None, _chat, "exact_match"),
        ("llama", None, _chat, "perplexity"),
        ("t5", None, _pair, "exact_match"),
        ("bart", None, _pair, "perplexity"),
        ("bert", None, _label, "accuracy"),
        ("bert", "tag", _tags, "tag_accuracy"),
    ],
)
def test_scoring_goes_on_with_smaller_batches(architecture, task, make, metric):
    rows, metrics, events = _rows(make), [build("metrics", metric)], list[Event]()
    settings = GenerateSettings(max_new_tokens=5)
    roomy, tight = (_predictor(architecture, task) for _ in range(2))
    with Narrow(roomy.loaded.model, 10**9) as wide:
        whole = evaluate_predictor(roomy, rows, metrics, generate=settings, num_timed=0)
    with Narrow(tight.loaded.model, max(wide.sizes) - 1) as narrow:
        found = evaluate_predictor(tight, rows, metrics, generate=settings, num_timed=0, emit=events.append)
        seen = len(narrow.sizes)
        again = evaluate_predictor(tight, rows, metrics, generate=settings, num_timed=0)
    assert whole.times_out_of_memory == 0 and found.times_out_of_memory > 0
    assert again.times_out_of_memory == 0 and len(narrow.sizes) == 2 * seen  # what did not fit is not tried again
    assert [one.origin for one in found.outcomes] == [one.origin for one in whole.outcomes]
    for one, other in zip(found.outcomes, whole.outcomes, strict=True):
        assert one.answer == other.answer and one.finish_reason == other.finish_reason
        assert (one.nll_nats or 0.0) == pytest.approx(other.nll_nats or 0.0, rel=1e-4)
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert warning.code == "out_of_memory" and warning.values["times"] == found.times_out_of_memory
    assert found.to_dict()["times_out_of_memory"] == found.times_out_of_memory


def test_a_row_that_does_not_fit_alone_is_an_error():
    predictor = _predictor("llama")
    with Narrow(predictor.loaded.model, 3), pytest.raises(UserError) as caught:
        evaluate_predictor(predictor, _rows(_chat), [build("metrics", "perplexity")])
    assert caught.value.code == "out_of_memory"
