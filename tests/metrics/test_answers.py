"""Exact match and fact match, row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.intervals import score
from tunesmith.core.plugins import build
from tunesmith.core.records import Outcome


def exact(answer: str, reference: str, **settings: object) -> float:
    metric = build("metrics", {"name": "exact_match", **settings})
    return score(metric, [Outcome(origin="r:1", answer=answer, reference=reference)], 1).value


def facts(answer: str, groups: object) -> float:
    rows = [Outcome(origin="heldout.jsonl:7", answer=answer, fields={"facts": groups})]
    return score(build("metrics", "fact_match"), rows, 1).value


def test_exact_match_ignores_case_punctuation_and_spacing_only() -> None:
    assert exact("the water tank is empty", "The water tank is empty.") == 1
    assert exact("the tank is empty", "The water tank is empty.") == 0
    assert exact("3.5", "35") == 0


def test_stricter_normalising() -> None:
    assert exact("Yes ", "yes", normalise="spaces") == 0
    assert exact(" a  b ", "a b", normalise="spaces") == 1
    assert exact("a b ", "a b", normalise="none") == 0


def test_only_what_follows_the_last_marker_counts() -> None:
    reference = "He has 3 * 6 = 18 eggs. #### 18"
    assert exact("6 + 6 + 6\n#### 18", reference, marker="####") == 1
    assert exact("#### 17 no #### 1,8", reference, marker="####") == 0
    assert exact("It is 18", reference, marker="####") == 0  # without a mark the whole answer is compared
    assert exact("18", reference, marker="####") == 1


def test_the_marker_is_in_the_signature_and_the_key() -> None:
    metric = build("metrics", {"name": "exact_match", "marker": "####"})
    found = score(metric, [Outcome(origin="r:1", answer="1", reference="1")], 1)
    assert found.signature == "normalise:words|marker:####"
    assert found.metric == "exact_match:marker=####"


@pytest.mark.parametrize(
    ("answer", "groups", "value"),
    [
        ("Descale it every THREE months.", [["three months", "3 months"]], 1),
        ("every 3 months", [["three months", "3 months"]], 1),
        ("every 13 months", [["three months", "3 months"]], 0),
        ("E07: the tank is empty", [["E07"], ["empty", "no water"]], 1),
        ("E07", [["E07"], ["empty", "no water"]], 0),
        ("E071", [["E07"]], 0),
        ("", [["E07"]], 0),
        ("the red lamp", ["red", "lamp"], 1),
    ],
)
def test_every_group_is_met_by_an_alternative_as_whole_words(answer: str, groups: object, value: float) -> None:
    assert facts(answer, groups) == value


@pytest.mark.parametrize("groups", [None, [], ""])
def test_a_row_without_facts_is_named(groups: object) -> None:
    with pytest.raises(UserError) as fault:
        facts("x", groups)
    assert fault.value.code == "no_facts"
    assert fault.value.line().startswith('heldout.jsonl:7: the row has no "facts" to look for. Give it "facts": [[')


@pytest.mark.parametrize("groups", [[[]], [["..."]], [[3]], [{"a": 1}]])
def test_facts_of_another_shape_are_refused(groups: object) -> None:
    with pytest.raises(UserError, match="which is not a list of texts") as fault:
        facts("x", groups)
    assert fault.value.where == "heldout.jsonl:7"


def test_the_built_in_manuals_references_state_their_own_facts() -> None:
    from tunesmith import assets

    file = Path(assets.__file__).parent / "manual" / "heldout.jsonl"
    if not file.is_file():
        pytest.skip("the built-in manual is not here")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    unmet = [row["question"] for row in rows if not facts(row["answer"], row["facts"])]
    assert not unmet
