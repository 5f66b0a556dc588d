"""What the check sees in rows without a model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tunesmith.core.events import Finding
from tunesmith.core.records import ChatExample, Example, LabelExample, Message, NumberExample, Origin, Role
from tunesmith.data.check import check_rows
from tunesmith.data.findings import Findings


def chat(line: int, *turns: str) -> ChatExample:
    """Turns as `u:words`: s system, u user, a assistant."""
    roles: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant"}
    messages = tuple(Message(roles[turn[0]], turn[2:]) for turn in turns)
    return ChatExample(origin=Origin("a", line), messages=messages)


def found(examples: Sequence[Example]) -> dict[str, Finding]:
    findings = Findings()
    check_rows(examples, findings)
    return {finding.code: finding for finding in findings.all()}


def test_good_rows_have_no_findings() -> None:
    assert found([chat(1, "u:What is it?", "a:A tank."), chat(2, "u:Where is it then?", "a:Behind the machine.")]) == {}


def test_a_last_turn_without_an_answer_is_a_warning() -> None:
    finding = found([chat(1, "u:a", "a:b", "u:c")])["trailing_turn"]
    assert (finding.level, finding.message) == ("warning", 'last message is "user": nothing follows it')


def test_an_answer_without_a_question_is_a_warning() -> None:
    assert found([chat(4, "s:be", "a:b")])["no_user"].where == "a:4"


def test_two_user_turns_in_a_row_are_a_warning() -> None:
    assert found([chat(1, "u:a", "u:b", "a:c")])["role_order"].message == 'messages 1 and 2 are both "user"'


def test_rows_without_the_system_message_of_the_others_are_named() -> None:
    rows = [chat(i, "s:be kind", f"u:question {i}", f"a:answer {i}") for i in range(1, 5)] + [chat(5, "u:x", "a:y")]
    finding = found(rows)["missing_system"]
    assert (finding.where, finding.message) == ("a:5", 'no "system" message, which 4 of 5 rows have')


def test_an_answer_that_repeats_itself_is_named_and_prose_is_not() -> None:
    assert "repetitive" in found([chat(1, "u:a", "a:" + "Eat a banana!" * 60)])
    prose = " ".join(
        f"In {year} the town of number {year * 7} grew by {year % 13} houses." for year in range(1900, 1960)
    )
    assert "repetitive" not in found([chat(1, "u:a", "a:" + prose)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Write to ann.b@mail.example.org", "1 e-mail address"),
        ("a@b.com and c@d.de", "2 e-mail addresses"),
        ("Pay to DE89 3704 0044 0532 0130 00 now", "1 IBAN"),
        ("Pay to GB82WEST12345698765432", "1 IBAN"),
    ],
)
def test_personal_data_are_counted(text: str, message: str) -> None:
    assert found([chat(1, f"u:{text}", "a:b")])["personal_data"].message == message


@pytest.mark.parametrize("text", ["DE89 3704 0044 0532 0130 01", "mail @ home", "E07 AB12 CD34"])
def test_what_only_looks_personal_is_left_alone(text: str) -> None:
    assert "personal_data" not in found([chat(1, f"u:{text}", "a:b")])


def test_labels_that_occur_once_or_contradict_each_other_are_named() -> None:
    def row(line: int, text: str, label: str) -> LabelExample:
        return LabelExample(origin=Origin("a", line), text=text, label=label)

    rows = [row(1, "one", "x"), row(2, "ONE ", "y"), row(3, "two", "x"), row(4, "three", "y"), row(5, "four", "z")]
    seen = found(rows)
    assert (seen["rare_label"].level, seen["rare_label"].where) == ("error", "a:5")
    assert seen["label_conflict"].num_rows == 2
    assert seen["label_conflict"].message == 'the same text has the labels "x" and "y"'


def test_a_row_whose_answers_all_have_weight_0_teaches_nothing() -> None:
    example = ChatExample(origin=Origin("a", 1), messages=(Message("user", "a"), Message("assistant", "b", weight=0)))
    assert found([example])["nothing_trained"].level == "error"


def numbers(*values: float) -> list[NumberExample]:
    words = ("a red cup", "the blue sky over it", "six long words stand in here", "milk")
    return [
        NumberExample(origin=Origin("a", line), text=words[line - 1], value=value)
        for line, value in enumerate(values, 1)
    ]


def test_numbers_of_any_unit_are_fine() -> None:
    assert found(numbers(1000.0, 2000.0, 3000.0)) == {}


def test_one_number_in_every_row_is_a_warning() -> None:
    assert "3.5" in found(numbers(3.5, 3.5, 3.5))["same_number"].message
    assert found(numbers(3.5)) == {}
