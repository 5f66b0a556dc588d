"""Settings: frozen, no unknown keys, faults in words with the right place."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import PositiveInt, ValidationError

from tunesmith.core.errors import UserError
from tunesmith.core.settings import Settings, validate


class Inner(Settings):
    """A group."""

    size: PositiveInt = 1
    """How big."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""


class Outer(Settings):
    """The whole."""

    name: str
    """What it is called."""
    inner: Inner = Inner()
    """A group in a group."""
    many: tuple[Inner, ...] = ()
    """A list of groups."""


def test_settings_are_frozen_and_show_only_what_was_changed() -> None:
    outer = validate(Outer, {"name": "x", "inner": {"size": 2}})
    assert outer.inner.changed() == {"size": 2}
    assert outer.inner == Inner(size=2) and Inner().changed() == {}
    with pytest.raises(ValidationError):
        outer.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "`name` is missing. Set `name`. [missing_setting]"),
        ({"name": "x", "nam": 1}, '"nam" is not a setting of the recipe; did you mean "name"? [unknown_setting]'),
        (
            {"name": "x", "inner": {"sise": 1}},
            '"sise" is not a setting of inner; did you mean "size"? [unknown_setting]',
        ),
        (
            {"name": "x", "inner": {"zzz": 1}},
            '"zzz" is not a setting of inner; Its settings: size, mode. [unknown_setting]',
        ),
        (
            {"name": "x", "many": [{"size": 1}, {"sise": 1}]},
            '"sise" is not a setting of many.1; did you mean "size"? [unknown_setting]',
        ),
        (
            {"name": "x", "inner": {"size": -1}},
            "`inner.size` cannot be -1: Input should be greater than 0. [bad_value]",
        ),
        (
            {"name": "x", "inner": {"mode": "slw"}},
            "`inner.mode` cannot be 'slw': Input should be 'fast' or 'slow'. [bad_value]",
        ),
        ({"name": 3}, "`name` cannot be 3: Input should be a valid string. [bad_value]"),
    ],
)
def test_each_fault_names_its_place_and_its_remedy(values: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as fault:
        validate(Outer, values)
    assert fault.value.line() == line


def test_a_group_inside_a_recipe_is_named_in_full() -> None:
    with pytest.raises(UserError) as fault:
        validate(Inner, {"sise": 1}, place="train", elsewhere={"method": ["rank"]})
    assert '"sise" is not a setting of train' in fault.value.message
    with pytest.raises(UserError) as fault:
        validate(Inner, {"rank": 1}, place="train", elsewhere={"method": ["rank"]})
    assert fault.value.remedy == '"rank" is a setting of `method`.'


def test_the_place_in_the_file_is_asked_for() -> None:
    asked = []

    def locate(keys: tuple[str | int, ...]) -> tuple[str, str]:
        asked.append(keys)
        return "r.yaml:7", "frame"

    with pytest.raises(UserError) as fault:
        validate(Outer, {"name": "x", "inner": {"sise": 1}}, locate=locate)
    assert asked == [("inner", "sise")]
    assert (fault.value.where, fault.value.frame) == ("r.yaml:7", "frame")


def test_a_long_value_is_not_repeated_in_full() -> None:
    with pytest.raises(UserError) as fault:
        validate(Inner, {"size": "x" * 10_000})
    assert len(fault.value.line()) < 250
