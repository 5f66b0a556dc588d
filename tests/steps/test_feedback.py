"""Feedback as training data: thumbs, corrections and pairs that the data layer reads back, with their ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.events import silent
from tunesmith.core.home import Home
from tunesmith.core.publish import verify
from tunesmith.core.records import ChatExample, PreferenceExample, RatedExample
from tunesmith.core.store import FeedbackRow, RequestRow, Store
from tunesmith.data.load import read_examples
from tunesmith.recipe import DataSettings
from tunesmith.steps.feedback import Exported, export, list_feedback, thumb

TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does E07 mean?"},
    {"role": "assistant", "content": "A fault."},
    {"role": "user", "content": "Which?"},
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Four judged requests: thumbs, a correction, one whose text was not kept, and a judgement that is no thumb."""
    home = Home(tmp_path / "home")
    with Store.open(home) as store:
        answers = ("The tank is full.", "The tank is empty.")
        store.add_request(RequestRow(id="r1", model="manual", version=3, messages=TALK, answers=answers, num_choices=2))
        store.add_request(RequestRow(id="r2", model="manual", version=4))
        store.add_request(RequestRow(id="r3", model="other", messages=TALK[:2], answers=("Ja.",)))
        store.give_feedback(
            FeedbackRow(request="r1", value=False, choice=0, correction="The tank is empty.", rater="ann")
        )
        store.give_feedback(FeedbackRow(request="r1", value="up", choice=1, rater="bob"))
        store.give_feedback(FeedbackRow(request="r1", name="style", value=4, rater="bob"))
        store.give_feedback(FeedbackRow(request="r2", value=True, correction="Right.", rater="ann"))
        store.give_feedback(FeedbackRow(request="r3", value=True, rater="ann"))
    return home


def rows(exported: Exported, kind: str) -> list[object]:
    file = str(exported.file(kind))
    return list(read_examples(file, DataSettings(source=file)).examples)


def test_each_judgement_becomes_the_rows_it_can_be(home: Home) -> None:
    exported = export(home, "manual", emit=silent)
    assert dict(exported.num_rows) == {"sft": 1, "preference": 1, "rated": 2}
    assert (exported.num_judgements, exported.num_without_text) == (4, 1)
    assert str(exported.path) == str(home.path / "feedback" / "manual-1")
    assert sorted(verify(exported.path)["files"]) == ["preference.jsonl", "rated.jsonl", "sft.jsonl"]


def test_a_correction_is_learnt_and_preferred(home: Home) -> None:
    exported = export(home, "manual", emit=silent)
    (learnt,) = rows(exported, "sft")
    assert isinstance(learnt, ChatExample) and learnt.answer == "The tank is empty."
    assert [message.content for message in learnt.prompt] == [message["content"] for message in TALK]
    assert dict(learnt.fields)["request_id"] == "r1" and dict(learnt.fields)["model_version"] == "manual:3"
    (pair,) = rows(exported, "preference")
    assert isinstance(pair, PreferenceExample)
    assert (pair.chosen, pair.rejected) == ("The tank is empty.", "The tank is full.")
    assert pair.prompt[-1].content == "Which?"


def test_the_models_own_earlier_turns_are_not_learnt(home: Home) -> None:
    (learnt,) = rows(export(home, "manual", emit=silent), "sft")
    assert isinstance(learnt, ChatExample)
    assert [message.weight for message in learnt.messages if message.role == "assistant"] == [0, 1]


def test_thumbs_rate_the_choice_they_were_given_to(home: Home) -> None:
    rated = rows(export(home, "manual", emit=silent), "rated")
    assert all(isinstance(row, RatedExample) for row in rated)
    verdicts = {row.answer: row.is_good for row in rated if isinstance(row, RatedExample)}
    assert verdicts == {"The tank is full.": False, "The tank is empty.": True}


def test_a_correction_equal_to_the_answer_makes_no_pair(home: Home) -> None:
    with Store.open(home) as store:
        store.give_feedback(FeedbackRow(request="r3", value=True, correction="Ja.", rater="ann"))
    exported = export(home, "other", emit=silent)
    assert dict(exported.num_rows) == {"sft": 1, "rated": 1}
    assert not exported.file("preference").exists()


def test_only_the_wished_kinds_go_where_the_user_says(home: Home, tmp_path: Path) -> None:
    exported = export(home, "manual@champion", out=tmp_path / "mine", kinds=("sft",), emit=silent)
    assert sorted(path.name for path in exported.path.iterdir()) == ["manifest.json", "sft.jsonl"]
    assert exported.to_dict()["files"] == {"sft": str(tmp_path / "mine" / "sft.jsonl")}
    with pytest.raises(UserError) as fault:
        export(home, "manual", out=tmp_path / "mine", emit=silent)
    assert fault.value.code == "exists"
    assert export(home, "manual", emit=silent).path.name == "manual-1"
    assert export(home, "manual", emit=silent).path.name == "manual-2"


def test_nothing_to_export_says_why_and_writes_nothing(home: Home) -> None:
    with pytest.raises(UserError, match='there is no feedback on "nobody"'):
        export(home, "nobody", emit=silent)
    with pytest.raises(UserError) as fault:
        export(home, "manual", kinds=("sfd",), emit=silent)
    assert 'did you mean "sft"?' in fault.value.line()
    with Store.open(home) as store:
        store.add_request(RequestRow(id="r9", model="silent"))
        store.give_feedback(FeedbackRow(request="r9", value=True))
        store.add_request(RequestRow(id="r8", model="odd", messages=TALK[:2], answers=("x",)))
        store.give_feedback(FeedbackRow(request="r8", name="style", value=3))
    with pytest.raises(UserError) as fault:
        export(home, "silent", emit=silent)
    assert fault.value.code == "no_text" and "tunesmith serve silent --keep-text" in fault.value.remedy
    with pytest.raises(UserError, match="neither a thumb nor a correction"):
        export(home, "odd", emit=silent)
    assert not (home.path / "feedback").exists()


def test_the_list_says_which_version_answered_and_whether_text_was_kept(home: Home) -> None:
    listed = {(one.feedback.request, one.feedback.rater, one.feedback.name): one for one in list_feedback(home)}
    assert listed["r1", "ann", "thumbs"].version == "manual:3"
    assert listed["r3", "ann", "thumbs"].version == "other"
    assert listed["r2", "ann", "thumbs"].to_dict()["is_text_kept"] is False
    assert len(list_feedback(home, "manual")) == 4


UPS, DOWNS, NEITHER = (True, "up", 1), (False, -1, 0, "down"), (4, 0.5, "corrected", "", 1.0)


def test_what_is_a_thumb_and_what_is_not() -> None:
    assert [thumb(FeedbackRow(request="r", value=value)) for value in UPS] == [True] * 3
    assert [thumb(FeedbackRow(request="r", value=value)) for value in DOWNS] == [False] * 4
    assert [thumb(FeedbackRow(request="r", value=value)) for value in NEITHER] == [None] * 5


def test_the_number_1_is_a_thumb_only_where_thumbs_are_asked_for() -> None:
    assert thumb(FeedbackRow(request="r", name="stars", value=1)) is None
    assert thumb(FeedbackRow(request="r", name="helpful", value=True)) is True
