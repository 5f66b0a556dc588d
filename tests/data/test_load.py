"""From settings to a data set: nothing is lost in silence, and every side is decided by content."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.records import ChatExample, LabelExample
from tunesmith.data.load import DataSet, load_data, read_examples, recognise
from tunesmith.data.mix import repeated
from tunesmith.data.repeats import question_of
from tunesmith.recipe import DataSettings, SourceSettings, SplitSettings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: Sequence[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def questions(number: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"What is thing {i}?", "answer": f"It is {i}.", **more} for i in range(start, start + number)]


def load(seed: int = 1, **settings: Any) -> DataSet:
    return load_data(DataSettings(**settings), seed=seed)


def asked(examples: Sequence[Any]) -> set[str]:
    return {question_of(example) for example in examples}


def refusal(**settings: Any) -> UserError:
    with pytest.raises(UserError) as fault:
        load(**settings)
    return fault.value


def test_rows_are_split_by_share() -> None:
    data = load(source=write("a.jsonl", questions(1000)), split=SplitSettings(validation=0.1, test=0.2))
    assert len(data.train) + len(data.validation) + len(data.test) == data.num_read == 1000
    assert 70 <= len(data.validation) <= 130
    assert 160 <= len(data.test) <= 240
    assert data.format_name == "prompt_completion"


def test_a_tenth_validates_and_of_many_rows_about_as_many_as_say_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, other = DataSettings(source="a.jsonl"), DataSettings(source="a.jsonl", split=SplitSettings(validation=0.3))
    assert usual.validation_share(10_000) == 0.1
    assert usual.validation_share(1_000_000) == 0.001
    assert usual.model_copy(update={"limit": 900}).validation_share(10_000) == 0.01  # as of 1,000 rows
    assert usual.model_copy(update={"limit": 900}).validation_share(500) == 0.1
    assert other.model_copy(update={"limit": 900}).validation_share(1_000_000) == 0.3
    source = write("a.jsonl", questions(1000))
    assert 70 <= len(load(source=source).validation) <= 130
    monkeypatch.setattr("tunesmith.recipe.MOST_VALIDATION", 30)
    fewer = load(source=source, split=SplitSettings(test=0.1))
    assert 10 <= len(fewer.validation) <= 50
    assert 70 <= len(fewer.test) <= 130
    two = SourceSettings(path=source), SourceSettings(path=write("b.jsonl", questions(1000, start=1000)))
    assert 10 <= len(load(source=two).validation) <= 50  # of all sources together


def test_a_row_is_on_the_same_side_in_any_order_and_beside_other_rows() -> None:
    rows = questions(200)
    first = load(source=write("a.jsonl", rows))
    random.Random(0).shuffle(rows)
    second = load(source=write("b.jsonl", rows + questions(300, start=1000)))
    assert asked(first.validation) == asked(second.validation) & {
        question_of(e) for e in first.train + first.validation
    }


def test_another_seed_holds_out_other_rows() -> None:
    source = write("a.jsonl", questions(200))
    assert asked(load(1, source=source).validation) != asked(load(2, source=source).validation)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_few_rows_still_give_a_training_and_a_validation_row(number: int) -> None:
    for seed in range(20):
        data = load(seed, source=write("a.jsonl", questions(number)))
        assert data.train and data.validation


def test_one_row_is_for_training() -> None:
    data = load(source=write("a.jsonl", questions(1)))
    assert (len(data.train), len(data.validation)) == (1, 0)


def test_rows_of_a_group_stay_together() -> None:
    rows = [{**row, "customer": i % 20} for i, row in enumerate(questions(400))]
    data = load(source=write("a.jsonl", rows), split=SplitSettings(validation=0.3, group_by="customer"))
    sides = [{example.fields["customer"] for example in side} for side in (data.train, data.validation)]
    assert all(sides) and not sides[0] & sides[1]


def test_repetitions_stay_together_even_in_different_groups() -> None:
    rows = [{**row, "customer": i} for i in range(60) for row in questions(1, start=i // 2)]
    split = SplitSettings(validation=0.5, group_by="customer")
    data = load(source=write("a.jsonl", rows), split=split, dedup="none")
    assert not asked(data.train) & asked(data.validation)
    assert len(data.train) + len(data.validation) == 60


def test_answers_to_one_question_stay_together() -> None:
    rows = [{"question": f"Say {i}", "answer": f"{i} {j}"} for i in range(100) for j in range(3)]
    data = load(source=write("a.jsonl", rows), split=SplitSettings(validation=0.3))
    assert not asked(data.train) & asked(data.validation)


def test_a_question_that_all_rows_share_keeps_none_together() -> None:
    rows = [{"question": "Tell a story", "answer": f"Story {i}"} for i in range(300)]
    data = load(source=write("a.jsonl", rows), split=SplitSettings(validation=0.3))
    assert 60 < len(data.validation) < 120


def test_an_unknown_group_column_names_the_nearest() -> None:
    source = write("a.jsonl", questions(5, customer="x"))
    error = refusal(source=source, split=SplitSettings(group_by="custumer"))
    assert error.line() == (
        'no row has the column "custumer" of `data.split.group_by`; did you mean "customer"? [unknown_column]'
    )


def test_repetitions_are_left_out_and_counted() -> None:
    rows = [*questions(10), {"question": "what is  THING 3?", "answer": "it is 3."}]
    data = load(source=write("a.jsonl", rows))
    assert data.num_left_out == {"duplicates": 1}
    assert [(f.code, f.where) for f in data.findings] == [("duplicate", "a.jsonl:11")]


def test_rows_named_for_test_are_never_split_and_are_looked_for_in_training() -> None:
    test = write("t.jsonl", [{"question": "WHAT is thing 3?", "answer": "It is 3."}, *questions(2, start=90)])
    data = load(source=write("a.jsonl", questions(10)), test=test, split=SplitSettings(validation=0, test=0.5))
    assert len(data.test) == 3 and len(data.train) == 10
    (leak,) = data.findings
    assert (leak.code, leak.where) == ("leak", "a.jsonl:4")
    assert leak.message == "is t.jsonl:1 but for case, spacing or Unicode form"


def test_a_fault_stops_or_is_put_aside_and_counted() -> None:
    source = write("a.jsonl", [*questions(5), {"question": "x", "answer": " "}])
    assert refusal(source=source).line().startswith('a.jsonl:6: "answer" is empty. ')
    data = load(source=source, on_fault="skip")
    assert data.num_left_out == {"faults": 1}
    assert (data.findings[0].code, data.findings[0].where) == ("empty_content", "a.jsonl:6")


def test_nothing_left_is_an_error_before_any_training() -> None:
    error = refusal(source=write("a.jsonl", [{"question": "x", "answer": ""}]), on_fault="skip")
    assert (error.code, error.message) == ("no_rows", "no row is left to train on: 1 read, 1 with faults.")


def test_columns_are_renamed_before_recognising() -> None:
    source = write("a.jsonl", [{"mr": f"give({i})", "ref": f"gave {i}"} for i in range(4)])
    data = load(source=source, columns={"mr": "input", "ref": "output"})
    assert isinstance(data.train[0], ChatExample)


def test_a_column_that_is_not_there_is_named() -> None:
    error = refusal(source=write("a.jsonl", questions(3)), columns={"queston": "prompt"})
    assert error.line() == (
        'a.jsonl: there is no column "queston" (named in `data.columns`); did you mean "question"? [unknown_column]'
    )


def test_a_column_cannot_take_the_name_of_another() -> None:
    assert refusal(source=write("a.jsonl", questions(3)), columns={"answer": "question"}).code == "column_taken"


def test_columns_that_fit_no_format_are_listed_with_the_way_to_name_them() -> None:
    error = refusal(source=write("a.jsonl", [{"alpha": 1, "beta": 2}]))
    assert error.message == 'the columns "alpha", "beta" fit no format that Tunesmith knows.'
    assert "data.columns={alpha: prompt, beta: completion}" in error.remedy


def test_a_system_message_is_put_before_chats_that_have_none() -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    rows += [{"messages": [{"role": "system", "content": "own"}, *rows[0]["messages"]]}]
    examples = read_examples(write("a.jsonl", rows), DataSettings(source="a.jsonl", system="Be brief.")).examples
    assert [e.messages[0].content for e in examples if isinstance(e, ChatExample)] == ["Be brief.", "own"]


def test_a_label_that_occurs_once_is_an_error_with_its_place() -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)] + [{"text": "odd", "label": "lonely"}]
    error = refusal(source=write("a.jsonl", rows))
    assert error.line().startswith('a.jsonl:21: the label "lonely" occurs once;')


def test_a_test_label_that_is_not_learnt_is_an_error() -> None:
    train = write("a.jsonl", [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)])
    test = write("t.jsonl", [{"text": "x", "label": "B "}, {"text": "y", "label": "b"}, {"text": "z", "label": "B"}])
    error = refusal(source=train, test=test)
    assert (error.code, error.where) == ("unseen_label", "t.jsonl:1")


def test_every_label_is_among_the_training_rows_after_a_split() -> None:
    rows = [{"text": f"text {i}", "label": f"l{i // 2}"} for i in range(80)]
    for seed in range(5):
        data = load(seed, source=write("a.jsonl", rows), split=SplitSettings(validation=0.3, test=0.2))
        assert {e.label for e in data.train if isinstance(e, LabelExample)} == set(data.labels)
        assert len(data.labels) == 40


def test_numeric_labels_are_sorted_as_numbers() -> None:
    rows = [{"text": f"text {i}", "label": i % 11} for i in range(44)]
    assert load(source=write("a.jsonl", rows)).labels == tuple(map(str, range(11)))


def test_sources_are_mixed_by_weight_and_nothing_is_lost() -> None:
    a, b = write("a.jsonl", questions(100)), write("b.jsonl", questions(100, start=500))
    sources = (SourceSettings(path=a, weight=2.5), SourceSettings(path=b, weight=1))
    data = load(source=sources, split=SplitSettings(validation=0))
    assert data.copies == {"a": 2.5, "b": 1.0}
    assert Counter(example.source_name for example in data.train) == {"a": 100, "b": 100}
    assert Counter(example.origin.file for example in repeated(data)) == {"a.jsonl": 250, "b.jsonl": 100}
    assert len(asked(repeated(data))) == 200
    assert data == load(source=sources, split=SplitSettings(validation=0))


def test_sources_of_different_kinds_are_refused() -> None:
    a = write("a.jsonl", questions(3))
    b = write("b.jsonl", [{"text": f"words {i}", "label": "x"} for i in range(3)])
    error = refusal(source=(SourceSettings(path=a), SourceSettings(path=b)))
    assert error.code == "mixed_kinds"
    assert "chat rows (a.jsonl) and classification rows (b.jsonl)" in error.message


def test_a_limit_takes_the_same_rows_each_time_and_is_counted() -> None:
    source = write("a.jsonl", questions(100))
    data = load(source=source, limit=10)
    assert len(data.train) == 10
    assert data.num_left_out["limit"] == 100 - len(data.validation) - 10
    assert data.train == load(source=source, limit=10).train
    assert [e.origin.line for e in data.train] != list(range(1, 11))


def test_equal_data_have_equal_cards_and_other_data_have_others() -> None:
    source = write("a.jsonl", questions(50))
    card = load(source=source).card()
    assert card == load(source=source).card()
    assert card["rows"] == {
        "read": 50,
        "train": card["rows"]["train"],
        "validation": card["rows"]["validation"],
        "test": 0,
    }
    assert card["files"][0]["name"] == "a.jsonl"
    write("a.jsonl", questions(49) + questions(1, start=99))
    other = load(source=source).card()
    assert other["contents_sha256"] != card["contents_sha256"]
    assert other["files"] != card["files"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("gsm8k/test.jsonl", "prompt_completion"),
        ("viggo/valid.csv", "pair"),
        ("banking77/test.csv", "classification"),
        ("banking77/categories.json", "text"),
        ("tinystories/wikitext_1000.json", "text"),
        ("wikitext2/valid.txt", "text"),
        ("format-zoo/wiki_demo.txt", "text"),
        ("format-zoo/dpo_en_demo.json", "preference"),
        ("format-zoo/kto_en_demo.json", "rated"),
        ("format-zoo/glaive_toolcall_en_demo.json", "sharegpt"),
        ("format-zoo/reason_tool_use_demo_50.jsonl", "chat"),
        ("instruct-and-preference/instruction-data.json", "alpaca"),
        ("openai-toy-chat/toy_chat_fine_tuning.jsonl", "chat"),
    ],
)
def test_real_files_are_recognised_and_read_whole(shared: Path, file: str, name: str) -> None:
    path = str(shared / "data" / file)
    loaded = read_examples(path, DataSettings(source=path))
    assert loaded.format_name == name
    assert loaded.num_faults == 0 and len(loaded.examples) == loaded.num_read > 4


def test_equal_answers_in_real_preference_rows_are_all_found(shared: Path) -> None:
    path = str(shared / "data" / "instruct-and-preference" / "instruction-data-with-preference.json")
    loaded = read_examples(path, DataSettings(source=path, on_fault="skip"))
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    assert loaded.format_name == "preference"
    assert [f.code for f in loaded.findings] == ["same_answers"]
    assert loaded.num_faults == sum(row["chosen"] == row["rejected"] for row in rows) > 0


def test_recognition_does_not_depend_on_the_order_of_columns() -> None:
    row = {"label": True, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert recognise([row]).name == recognise([dict(reversed(row.items()))]).name == "rated"
