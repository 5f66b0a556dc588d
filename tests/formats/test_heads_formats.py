"""Several labels, numbers and tags: what is recognised by itself, and what is ambiguous."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.plugins import build
from tunesmith.core.records import (
    ChatExample,
    LabelExample,
    MultiLabelExample,
    NumberExample,
    Origin,
    TagExample,
    TextExample,
)
from tunesmith.data.load import recognise
from tunesmith.data.read import read_examples
from tunesmith.data.rows import read_rows
from tunesmith.formats.base import RowFault
from tunesmith.recipe import DataSettings

AT = Origin("rows.csv", 1)


def read(row: dict[str, Any], name: str = "", **settings: Any) -> Any:
    return (build("formats", {"name": name, **settings}) if name else recognise([row])).read(row, AT)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["war", "love", "war"], ("love", "war")),
        ("war|love", ("love", "war")),
        ("war; love", ("love", "war")),
        ("war, love", ("love", "war")),
        ('["war", "love"]', ("love", "war")),
        ([3, 1], ("1", "3")),
        ([], ()),
    ],
)
def test_several_labels_are_a_set_however_they_are_written(given: Any, labels: tuple[str, ...]) -> None:
    example = read({"text": "A tale.", "labels": given})
    assert isinstance(example, MultiLabelExample)
    assert example.labels == labels


def test_a_separator_can_be_named() -> None:
    row = {"text": "A tale.", "labels": "war, cold|love"}
    assert read(row, "multi_label").labels == ("love", "war, cold")
    assert read(row, "multi_label", separator=",").labels == ("cold|love", "war")


def test_one_label_per_row_stays_a_class_also_under_a_plural_name() -> None:
    rows = [{"text": "x", "labels": "war"}, {"text": "y", "labels": "love"}]
    assert recognise(rows).name == "classification"
    assert recognise([*rows, {"text": "z", "labels": "war|love"}]).name == "multi_label"


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([{"sentence1": "a", "sentence2": "b", "score": 3}], "regression"),
        ([{"sentence1": "a", "sentence2": "b", "label": x} for x in (5.0, 3.8, 4.25)], "regression"),
        ([{"sentence1": "a", "sentence2": "b", "label": x} for x in ("5.000", "3.800", "0.250")], "regression"),
        ([{"sentence1": "a", "sentence2": "b", "label": x} for x in (0, 1, 2)], "classification"),
        ([{"text": "a", "label": x} for x in (1.0, 2.0, 5.0)], "classification"),
        ([{"text": "a", "label": x} for x in ("1", "2")], "classification"),
        ([{"text": "a", "rating": 4.5}, {"text": "b", "rating": 3.5}], "regression"),
        ([{"text": "a", "score": 0.7}], "regression"),
        ([{"text": "a", "label": "good", "score": 0.99}], "classification"),
        ([{"text": "web page", "id": "1", "url": "u", "dump": "d", "score": 2.7}], "text"),
        ([{"question": "who?", "sentence": "He.", "label": "entailment"}], "classification"),
    ],
)
def test_numbers_are_told_from_classes(rows: list[dict[str, Any]], name: str) -> None:
    assert recognise(rows).name == name


def test_whole_numbers_are_amounts_where_the_format_says_so() -> None:
    example = read({"text": "Nice.", "stars": 4}, "regression")
    assert example == NumberExample(origin=AT, text="Nice.", value=4.0)


@pytest.mark.parametrize("value", ["high", float("nan"), float("inf"), True, None])
def test_what_is_no_finite_number_is_a_fault(value: Any) -> None:
    with pytest.raises(RowFault, match="not a number"):
        read({"text": "x", "score": value}, "regression")


def test_tags_are_read_from_lists_from_json_text_and_by_number() -> None:
    wanted = TagExample(origin=AT, words=("In", "New", "York"), tags=("O", "B-LOC", "I-LOC"))
    words = list(wanted.words)
    assert read({"tokens": words, "ner_tags": list(wanted.tags)}) == wanted
    assert read({"words": '["In", "New", "York"]', "tags": '["O", "B-LOC", "I-LOC"]'}) == wanted
    numbered = {"tokens": words, "ner_tags": [0, 1, 2]}
    assert read(numbered).tags == ("0", "1", "2")
    assert read(numbered, "tags", names=["O", "B-LOC", "I-LOC"]) == wanted


def test_words_and_tags_must_match_and_numbers_must_have_names() -> None:
    with pytest.raises(RowFault, match=r"2 words and 1 tag$"):
        read({"tokens": ["a", "b"], "tags": ["O"]}, "tags")
    with pytest.raises(RowFault, match="there is no name for tag 9"):
        read({"tokens": ["a"], "tags": [9]}, "tags", names=["O"])


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

# newdoc
Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def test_a_conll_file_is_sentences_with_the_last_column_as_tags(tmp_path: Path) -> None:
    file = tmp_path / "train.conll"
    file.write_text(CONLL, encoding="utf-8")
    examples = read_examples(file, DataSettings(source=str(file))).examples
    assert [(e.words, e.tags, e.origin.line) for e in examples if isinstance(e, TagExample)] == [
        (("EU", "rejects"), ("B-ORG", "O"), 3),
        (("Peter", "Blackburn"), ("B-PER", "I-PER"), 7),
    ]


def test_a_word_without_a_tag_is_a_fault_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "train.conll"
    file.write_text("EU\tB-ORG\nrejects\n\nPeter\tB-PER\n", encoding="utf-8")
    items = list(read_rows(file, on_fault="skip"))
    assert [type(item).__name__ for item in items] == ["Fault", "RawRow"]
    assert (items[0].origin.line, items[0].message) == (2, 'the line has the word "rejects" and no tag')  # type: ignore[union-attr]


def test_a_class_can_be_asked_for_in_words() -> None:
    row = {"text": "Where is my card?", "label": "card_arrival"}
    example = read(row, "classification", as_chat=True, instruction="Name the intent.")
    assert isinstance(example, ChatExample)
    assert [message.content for message in example.messages] == [
        "Name the intent.\n\nWhere is my card?",
        "card_arrival",
    ]
    assert isinstance(read(row, "classification"), LabelExample)
    assert isinstance(read({"text": "x"}), TextExample)
