"""What every format promises, whichever they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build, names, summary
from tunesmith.core.records import Example, Origin
from tunesmith.data.load import recognise
from tunesmith.data.write import FORMATS, row_of
from tunesmith.formats.base import Format, RowFault

ORIGIN = Origin("rows.jsonl", 7)
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "Once upon a time."},
    "chat": {"messages": TURNS},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    "alpaca": {"instruction": "Add", "input": "1 and 2", "output": "3"},
    "prompt_completion": {"question": "Why?", "answer": "So."},
    "classification": {"text": "Where is my card?", "label": "card"},
    "multi_label": {"text": "A tale of love and war.", "labels": ["love", "war"]},
    "regression": {"sentence1": "It rains.", "sentence2": "Rain falls.", "score": 4.5},
    "tags": {"tokens": ["In", "Paris"], "ner_tags": ["O", "B-LOC"]},
    "pair": {"source": "in", "target": "out"},
    "preference": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "rated": {"prompt": "Why?", "completion": "So.", "label": True},
}
JUNK: list[dict[str, Any]] = [
    {},
    {"": ""},
    {"text": None},
    {"text": 3.5, "label": []},
    {"messages": "none"},
    {"messages": [[]]},
    {"messages": [{"role": 1, "content": {}}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": TURNS, "tools": "[{]"},
    {"messages": TURNS, "tools": [{"function": 3}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [3]}]},
    {"conversations": [{"from": "robot", "value": "x"}]},
    {"conversations": [{"from": "function_call", "value": "not json"}]},
    {"instruction": "x", "output": {"y": 1}, "history": "z"},
    {"question": [], "answer": None},
    {"source": "x", "target": ""},
    {"prompt": "x", "chosen": [], "rejected": [3]},
    {"prompt": 3, "completion": True, "label": "perhaps"},
    {"text": "x", "labels": [[]]},
    {"text": "x", "labels": {"a": 1}},
    {"text": "x", "score": "high"},
    {"text": "x", "score": float("nan")},
    {"tokens": ["a", "b"], "tags": ["O"]},
    {"tokens": ["a", " "], "tags": ["O", "O"]},
    {"tokens": "a b", "tags": "O O"},
    {"tokens": [], "tags": []},
]


@pytest.fixture(params=names("formats"))
def form(request: pytest.FixtureRequest) -> Format:
    built: Format = build("formats", request.param)
    return built


def test_every_format_has_a_row_here(form: Format) -> None:
    assert form.name in ROWS, "give the new format a row that is typical of it"


def test_a_typical_row_is_recognised_as_its_own_format(form: Format) -> None:
    assert recognise([ROWS[form.name]]).name == form.name


def test_it_is_recognised_with_other_columns_and_in_other_cases(form: Format) -> None:
    row = {name.title(): value for name, value in ROWS[form.name].items()} | {"Id": 3, "Note": "x"}
    assert recognise([row]).name == form.name


def test_scores_are_shares_and_only_own_rows_are_sure(form: Format) -> None:
    scores = {name: form.matches(row) for name, row in ROWS.items()}
    assert all(0 <= score <= 1 for score in scores.values())
    assert all(form.matches(row) <= 1 for row in JUNK)
    assert scores[form.name] == max(scores.values())


def test_a_row_keeps_its_origin_and_its_other_columns(form: Format) -> None:
    example = form.read({**ROWS[form.name], "customer": "c1"}, ORIGIN)
    assert example.origin == ORIGIN
    assert example.fields == {"customer": "c1"}


def test_an_example_written_as_a_row_reads_back_equal(form: Format) -> None:
    example = form.read({**ROWS[form.name], "customer": "c1"}, ORIGIN)
    row = json.loads(json.dumps(row_of(example)))
    again: Example = build("formats", FORMATS[type(example)]).read(row, ORIGIN)
    assert again == example


def test_what_it_cannot_read_is_a_fault_in_words_and_never_a_crash(form: Format) -> None:
    for row in [*JUNK, *(other for name, other in ROWS.items() if name != form.name)]:
        try:
            example = form.read(row, ORIGIN)
        except RowFault as fault:
            assert fault.code.isidentifier() and fault.message and fault.remedy
        else:
            assert isinstance(example, Example)


def test_it_has_a_summary_and_describes_its_keys(form: Format) -> None:
    assert len(summary("formats", form.name)) > 20
    assert "{" in form.describe()


def test_rows_that_fit_nothing_are_refused() -> None:
    with pytest.raises(UserError) as fault:
        recognise([{"alpha": 1, "beta": "x"}], where="rows.jsonl")
    assert (fault.value.code, fault.value.where) == ("unknown_format", "rows.jsonl")
