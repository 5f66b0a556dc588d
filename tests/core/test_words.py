"""What counts as the same words."""

from __future__ import annotations

import pytest

from tunesmith.core.words import contains, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The tank is EMPTY.", "the tank is empty"),
        ("  three\n months ", "three months"),
        ("a three-month wait", "a three month wait"),
        ("1,234 cups", "1234 cups"),
        ("84%", "84 %"),
        ("5°C", "5 °C"),
        ("Don\u2019t", "don't"),
        ("\u22125 bar", "-5 bar"),
        ("ﬁlter", "filter"),
        ("**Hold** _Steam_", "hold steam"),
    ],
)
def test_texts_with_the_same_words(one: str, other: str) -> None:
    assert words(one) == words(other)


@pytest.mark.parametrize(
    ("one", "other"), [("3.5", "35"), ("-5", "5"), ("E07", "E70"), ("the tank", "tank"), ("1,23", "123"), ("3", "3rd")]
)
def test_texts_with_other_words(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_numbers_and_ranges_are_cut_as_read() -> None:
    assert words("3-5 bar at 1.5 l, i.e. E07.") == ["3", "5", "bar", "at", "1.5", "l", "i", "e", "e07"]


def test_part_is_found_as_whole_words_in_order() -> None:
    text = words("The filter lasts three months.")
    assert contains(text, ["three", "months"])
    assert not contains(text, ["months", "three"])
    assert not contains(text, ["month"])
    assert not contains(["a"], ["a", "b"])
