from __future__ import annotations

from tunesmith.core.describe import describe
from tunesmith.recipe import DataSettings, ModelSettings, Recipe, TrainSettings


def described(cls: type, name: str) -> tuple[str, str]:
    field = next(field for field in describe(cls) if field.name == name)
    return field.takes, field.default


def test_bounds_choices_and_unions_are_said_in_words() -> None:
    assert described(TrainSettings, "epochs") == ("number, > 0", "3.0")
    assert described(TrainSettings, "warmup") == ("number, ≥ 0 and < 1", "0.05")
    assert described(DataSettings, "max_length") == ("whole number > 0 or `model`", "model")
    assert described(DataSettings, "dedup") == ("`none`, `exact`, `near`", "exact")
    assert described(DataSettings, "columns") == ("mapping from text to text", "{}")
    assert described(ModelSettings, "trust_remote_code") == ("true or false", "false")


def test_what_must_be_given_and_what_is_empty_are_told_apart() -> None:
    assert described(ModelSettings, "name") == ("text", "needed")
    assert described(DataSettings, "test") == ("text", "empty")


def test_a_plugin_is_named_by_its_kind_and_a_group_leads_to_its_class() -> None:
    assert described(Recipe, "objective") == ("an objective or `auto`", "auto")
    groups = {field.name: field.group for field in describe(Recipe) if field.group}
    assert groups["train"] is TrainSettings
    assert "method" not in groups
