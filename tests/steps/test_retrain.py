"""Retraining: really trained on the champion's recipe and new rows, promoted only if it beats what is served."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from finished_runs import NUM_TEST_ROWS, QUESTIONS, answered, make_run, recipe_for, write_data
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Finding, Finished, silent
from tunesmith.core.events import Warning as WarningEvent
from tunesmith.core.home import Home
from tunesmith.core.publish import verify
from tunesmith.core.store import FeedbackRow, RequestRow, Store
from tunesmith.data.load import DataSet, load_data
from tunesmith.recipe import read_recipe
from tunesmith.steps.models import promote, register
from tunesmith.steps.retrain import Retrained, retrain

NEW = [{"question": f"What is new part {n}?", "answer": f"New part {n}."} for n in range(6)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder)
    return folder


@dataclass(frozen=True)
class Done:
    """One retraining on new, known and held-out rows; two random models answer nothing right."""

    home: Home
    old: DataSet
    said: list[Event]
    result: Retrained


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("retrain")
    home, data = Home(folder / "home"), folder / "data"
    data.mkdir()
    write_data(data)
    serve(home, data, NUM_TEST_ROWS)
    old = load_data(recipe_for(data, seed=5).data, seed=5)
    with (data / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question": "An added row?", "answer": "Yes."}\n')
    known = {"question": "what is   part 3?", "answer": "PART 3."}
    asked = {"question": QUESTIONS[3].upper(), "answer": "Another answer."}
    said: list[Event] = []
    result = retrain(home, "manual", data=write_rows(data, [*NEW, *NEW[:1], asked, known]), emit=said.append)
    return Done(home, old, said, result)


def serve(home: Home, data: Path, num_right: int, metric: str = "exact_match") -> None:
    """A champion with random weights, whatever its report claims."""
    recipe = recipe_for(data, evaluate=list(dict.fromkeys((metric, "exact_match"))), seed=5)
    run = make_run(home, data, answered(num_right), recipe=recipe, seed=5, seconds=5.0, peak_bytes=2**34)
    promote(home, register(home, run.path, "manual", emit=silent).reference, emit=silent)


def write_rows(folder: Path, rows: list[dict[str, str]]) -> str:
    file = folder / "new.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_a_better_version_is_promoted_with_its_numbers(home: Home, data: Path) -> None:
    serve(home, data, 0, "perplexity")
    said: list[Event] = []
    result = retrain(home, "manual", data=write_rows(data, NEW), emit=said.append)
    assert result.is_promoted and result.version.reference == "manual:2"
    assert result.version.lineage["parent"] == "manual:1"
    assert result.num_new_rows == 6
    assert result.sentence.startswith("manual:2 was promoted over 1: perplexity ")
    with Store.open(home) as store:
        assert store.aliases("manual") == {"champion": 2}
    quality = next(gate for gate in result.gates if gate.name == "perplexity")
    assert quality.values["difference"]["value"] < 0 and "anew" in quality.text
    assert [event.text for event in said if isinstance(event, Finished)][-1] == result.sentence


def test_what_is_not_better_stays_a_version_and_the_champion_stays(done: Done) -> None:
    """0 against 0 is not better, and no error."""
    result = done.result
    assert not result.is_promoted
    assert [gate.name for gate in result.gates if not gate.passed] == ["improvement"]
    assert result.sentence.startswith("manual:2 was not promoted (improvement): exact match 0.0")
    assert result.sentence.endswith("; the champion is still 1")
    assert result.to_dict()["champion"] == "manual:1"
    with Store.open(done.home) as store:
        assert store.aliases("manual") == {"champion": 1}
        assert len(store.versions("manual")) == 2


def test_the_held_out_rows_stay_the_champions(done: Done) -> None:
    verify(done.result.data)
    recipe = read_recipe(done.result.run / "recipe.yaml")
    new = load_data(recipe.data, seed=recipe.seed)
    old_sums, new_sums = done.old.card()["contents_sha256"], new.card()["contents_sha256"]
    assert new_sums["test"] == old_sums["test"]
    assert {example.answer for example in done.old.validation} <= {example.answer for example in new.validation}  # type: ignore[attr-defined]
    assert done.result.num_new_rows == len(NEW)
    assert {row["answer"] for row in NEW} <= {example.answer for example in new.train}  # type: ignore[attr-defined]


def test_rows_that_are_known_or_held_out_are_left_out_and_said(done: Done) -> None:
    findings = {event.code: event.num_rows for event in done.said if isinstance(event, Finding)}
    assert findings["held_out_question"] == 1
    assert findings["duplicate"] == 2
    assert "Another answer." not in (done.result.data / "train.jsonl").read_text(encoding="utf-8")


def test_changed_data_of_the_champion_are_said(done: Done) -> None:
    warnings = [event for event in done.said if isinstance(event, WarningEvent)]
    assert warnings[0].code == "data_changed" and "manual:1" in warnings[0].message


def test_nothing_new_is_an_error_before_any_training(home: Home, data: Path) -> None:
    serve(home, data, NUM_TEST_ROWS)
    with pytest.raises(UserError) as fault:
        retrain(home, "manual", data=str(data / "test.jsonl"), emit=silent)
    assert fault.value.code == "no_new_rows"
    assert fault.value.message == "no row is new: 0 are known, 40 ask what a held-out row asks."
    assert not (home.path / "retrain").exists()


def test_without_a_file_the_corrections_are_learnt(home: Home, data: Path) -> None:
    serve(home, data, NUM_TEST_ROWS)
    talk = ({"role": "user", "content": "How hot is it?"},)
    with Store.open(home) as store:
        store.add_request(RequestRow(id="r1", model="manual", version=1, messages=talk, answers=("Cold.",)))
        store.give_feedback(FeedbackRow(request="r1", value=False, correction="It is at 92 degrees."))
    result = retrain(home, "manual", emit=silent)
    assert result.num_new_rows == 1
    assert "It is at 92 degrees." in (result.data / "train.jsonl").read_text(encoding="utf-8")


def test_a_name_without_a_champion_says_what_to_do(home: Home, data: Path) -> None:
    register(home, make_run(home, data, answered(10)).path, "manual", emit=silent)
    with pytest.raises(UserError) as fault:
        retrain(home, "manual", data="x.jsonl", emit=silent)
    assert fault.value.code == "no_champion" and "tunesmith models promote manual:1" in fault.value.remedy


def test_rows_of_another_kind_are_refused(home: Home, data: Path) -> None:
    serve(home, data, NUM_TEST_ROWS)
    with pytest.raises(UserError) as fault:
        retrain(home, "manual", data=write_rows(data, [{"text": "a", "label": "b"}]), emit=silent)
    assert fault.value.code == "mixed_kinds"
