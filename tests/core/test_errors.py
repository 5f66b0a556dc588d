"""Errors: one line that stands alone, and names that are nearly right."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import GateError, UserError, edit_distance, suggest, unknown_name


def test_the_line_has_where_what_remedy_and_code() -> None:
    fault = UserError("it is empty.", code="no_rows", where="a.jsonl", remedy="Add a row.")
    assert fault.line() == "a.jsonl: it is empty. Add a row. [no_rows]"
    assert UserError("it is empty.").line() == "it is empty. [invalid]"
    assert fault.to_dict() == {
        "code": "no_rows",
        "message": "it is empty.",
        "where": "a.jsonl",
        "remedy": "Add a row.",
    }


def test_a_gate_error_carries_its_gates_to_scripts() -> None:
    class Known:
        def to_dict(self) -> dict[str, object]:
            return {"name": "files", "passed": False}

    fault = GateError("no.", gates=(Known(),))
    assert fault.code == "gate.failed"
    assert fault.to_dict()["gates"] == [{"name": "files", "passed": False}]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("epoch", "epochs", 1),
        ("kitten", "sitting", 3),
        ("ab", "ba", 1),  # a transposition counts once
        ("ca", "abc", 3),  # optimal string alignment, not the unrestricted distance (2)
        ("LoRA", "lora", 0),
        ("", "abc", 3),
    ],
)
def test_distances_are_those_of_optimal_string_alignment(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_suggestions_are_near_or_share_a_beginning_nearest_first() -> None:
    assert suggest("epoch", ["epochs", "steps", "epoch_size"]).here == ("epochs", "epoch_size")
    assert suggest("xyz", ["epochs", "steps"]).here == ()
    assert len(suggest("aa", ["ab", "ac", "ad", "ae"]).here) == 3
    assert suggest("", ["a"]).here == ()


def test_a_name_from_elsewhere_is_sent_there() -> None:
    found = suggest("rank", ["epochs", "lr"], {"method": ["rank", "alpha"]})
    assert found.sentence() == '"rank" is a setting of `method`.'
    assert suggest("epoch", ["epochs"], {"method": ["rank"]}).sentence() == 'did you mean "epochs"?'
    assert suggest("zzz", ["epochs"]).sentence() == ""


def test_an_unknown_name_says_the_nearest_or_all() -> None:
    near = unknown_name("method", "lroa", ["lora", "full"], listing="tunesmith plugins methods")
    assert near.line() == (
        'there is no method "lroa"; did you mean "lora"? All: tunesmith plugins methods [unknown_method]'
    )
    far = unknown_name("kind of plug-in", "zebra", ["lora", "full"])
    assert far.code == "unknown_kind_of_plug-in"
    assert far.remedy == "Known: full, lora."
