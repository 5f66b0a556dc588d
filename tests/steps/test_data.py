"""The steps check, show and prepare on real rows with the built-in model's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Finding
from tunesmith.core.publish import verify
from tunesmith.data.load import load_data
from tunesmith.recipe import DataSettings, SplitSettings
from tunesmith.steps.data import check, prepare, show
from tunesmith.steps.data_report import CheckReport

LONG = " ".join(f"word{i}" for i in range(600))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(name: str, rows: Sequence[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def places(report: CheckReport) -> dict[str, list[str]]:
    return {code: list(where) for code, where in report.places.items()}


ROWS = [
    chat("What does E07 mean?", "The tank is empty."),
    {"messages": [{"role": "user", "content": "Hello?"}]},
    '{"messages": [}',
    chat(LONG.replace("word", "thing"), "It is."),
    chat("Tell me all.", LONG),
    chat("what does  e07 MEAN?", "the tank is empty."),
    chat("Where is the switch?", "At the rear."),
]


def test_every_fault_is_found_with_its_line(tmp_path: Path) -> None:
    test = write("t.jsonl", [chat("WHERE is the switch?", "At the rear.")])
    report = check(DataSettings(source=write("a.jsonl", ROWS), test=test))
    assert places(report) == {
        "no_assistant": ["a.jsonl:2"],
        "invalid_json": ["a.jsonl:3"],
        "nothing_trained": ["a.jsonl:4"],
        "truncated": ["a.jsonl:5"],
        "duplicate": ["a.jsonl:6"],
        "leak": ["a.jsonl:7"],
    }
    assert (report.num_rows, report.num_usable, report.num_with_end) == (7, 4, 3)
    assert all(finding.remedy for finding in report.findings)


def test_the_counts_of_tokens_are_those_of_the_template() -> None:
    from transformers import AutoTokenizer

    from tunesmith.models.source import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("tunesmith/base"))
    report = check(DataSettings(source=write("a.jsonl", ROWS[:1])), tokenizer=tokenizer)
    whole = "<|im_start|>user\nWhat does E07 mean?<|im_end|>\n<|im_start|>assistant\nThe tank is empty.<|im_end|>\n"
    assert report.num_tokens == len(tokenizer(whole)["input_ids"])
    assert report.num_trained == len(tokenizer("The tank is empty.<|im_end|>")["input_ids"])
    assert "".join(piece.text for piece in report.preview) == whole
    assert [piece.text for piece in report.preview if piece.part == "trained"] == ["The tank is empty.<|im_end|>"]


def test_the_length_that_would_do_is_the_remedy_where_the_model_can_read_it() -> None:
    report = check(
        DataSettings(source=write("a.jsonl", [chat("Why?", "So it is, and so it was. " * 8)]), max_length=32)
    )
    (finding,) = [one for one in report.findings if one.code == "truncated"]
    assert finding.remedy == "data.max_length=128"


def test_repair_writes_the_rows_that_are_fine_as_they_were() -> None:
    report = check(DataSettings(source=write("a.jsonl", ROWS)), repair="clean.jsonl")
    kept = [json.loads(line) for line in Path("clean.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept == [ROWS[0], ROWS[4], ROWS[6]]
    assert report.num_repaired == 3
    assert check(DataSettings(source="clean.jsonl")).num_usable == 3


@pytest.mark.parametrize(("name", "code"), [("a.jsonl", "exists"), ("clean.csv", "bad_name")])
def test_repair_never_overwrites_and_writes_only_jsonl(name: str, code: str) -> None:
    source = write("a.jsonl", ROWS)
    before = Path(source).read_bytes()
    with pytest.raises(UserError) as fault:
        check(DataSettings(source=source), repair=name)
    assert fault.value.code == code
    assert Path(source).read_bytes() == before


def test_a_report_is_json_with_the_same_numbers() -> None:
    report = check(DataSettings(source=write("a.jsonl", ROWS)))
    value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (value["rows"], value["errors"], value["usable_rows"]) == (7, 3, 4)
    assert value["findings"][0].keys() >= {"code", "where", "message", "remedy", "rows", "places"}


def test_the_deliberate_faults_of_openais_toy_chats_are_found(shared: Path) -> None:
    path = str(shared / "data" / "openai-toy-chat" / "toy_chat_fine_tuning.jsonl")
    report = check(DataSettings(source=path))
    lines = {code: [int(place.rpartition(":")[2]) for place in where] for code, where in report.places.items()}
    assert lines == {"missing_system": [3], "no_user": [4], "repetitive": [5], "truncated": [5]}


def test_many_rows_are_measured_by_a_sample_and_the_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.steps.data_tokens.MEASURED_ROWS", 10)
    rows = [chat(f"Question {i}?", f"Answer {i}.") for i in range(100)]
    rows[57] = chat("Tell me all.", LONG)
    report = check(DataSettings(source=write("a.jsonl", rows)))
    assert report.lengths is not None and report.lengths.num_measured == 11
    assert places(report)["truncated"] == ["a.jsonl:58"]


def test_each_kind_of_row_shows_what_is_learnt_of_it() -> None:
    shown = {
        "text": ({"text": "Once."}, ["Once."]),
        "classification": ({"text": "Where?", "label": "card"}, ["card"]),
        "pair": ({"source": "in", "target": "out"}, ["out"]),
        "preference": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, ["So.<|im_end|>"]),
        "rated": ({"prompt": "Why?", "completion": "So.", "label": True}, ["So.<|im_end|>"]),
    }
    for kind, (row, learnt) in shown.items():
        report = show(DataSettings(source=write(f"{kind}.jsonl", [row])))
        (only,) = report.rows
        assert only.kind == kind and only.learnt is not None
        assert [piece.text for piece in only.learnt.pieces if piece.part == "trained"] == learnt


def test_one_line_is_shown_and_a_faulty_one_says_why() -> None:
    source = write("a.jsonl", ROWS)
    (row,) = show(DataSettings(source=source), line=7).rows
    assert row.origin == "a.jsonl:7" and row.columns == ROWS[6]
    (row,) = show(DataSettings(source=source), line=3).rows
    assert row.learnt is None and "[invalid_json]" in row.fault


def test_a_line_without_a_row_names_the_nearest() -> None:
    with pytest.raises(UserError) as fault:
        show(DataSettings(source=write("a.jsonl", ROWS)), line=99)
    assert fault.value.remedy == "The nearest starts at 7."


def test_what_is_cut_off_is_shown_as_cut() -> None:
    (row,) = show(DataSettings(source=write("a.jsonl", ROWS[4:5])), line=1).rows
    assert row.learnt is not None
    assert row.learnt.num_cut == row.learnt.num_tokens - 512
    assert row.learnt.pieces[-1].part == "cut"
    assert "".join(piece.text for piece in row.learnt.pieces).count("word") == 600


def rows_of(number: int) -> list[dict[str, Any]]:
    return [chat(f"Question {i}?", f"Answer {i}.") for i in range(number)]


def test_a_prepared_data_set_is_verified_and_trains_as_its_source_would() -> None:
    source = write("a.jsonl", [*rows_of(60), rows_of(1)[0]])
    settings = DataSettings(source=source, split=SplitSettings(validation=0.2, test=0.2))
    events: list[Event] = []
    prepared = prepare(settings, Path("out/set"), seed=3, emit=events.append)
    verify(prepared.path)
    whole, again = load_data(settings, seed=3), load_data(DataSettings(source="out/set"), seed=9)
    for side in ("train", "validation", "test"):
        assert [e.messages for e in getattr(again, side)] == [e.messages for e in getattr(whole, side)]
    assert prepared.card["left_out"] == {"duplicates": 1}
    assert [event.code for event in events if isinstance(event, Finding)] == ["duplicate"]


def test_preparing_again_gives_the_same_bytes_and_other_settings_are_refused() -> None:
    source = write("a.jsonl", rows_of(40))
    prepare(DataSettings(source=source), Path("one"), seed=1)
    prepare(DataSettings(source=source), Path("two"), seed=1)
    prepare(DataSettings(source=source), Path("one"), seed=1)
    for file in Path("one").iterdir():
        assert file.read_bytes() == (Path("two") / file.name).read_bytes()
    with pytest.raises(UserError) as fault:
        prepare(DataSettings(source=source), Path("one"), seed=2)
    assert fault.value.code == "exists"


def test_a_card_has_no_absolute_path(tmp_path: Path) -> None:
    write("t.jsonl", rows_of(2))
    source = write("a.jsonl", rows_of(30))
    settings = DataSettings(source=str(tmp_path / source), test=str(tmp_path / "t.jsonl"))
    prepare(settings, Path("set"), seed=1)
    written = "".join(path.read_text(encoding="utf-8") for path in Path("set").iterdir())
    assert str(tmp_path) not in written


def test_a_damaged_data_set_is_refused() -> None:
    prepare(DataSettings(source=write("a.jsonl", rows_of(30))), Path("set"), seed=1)
    file = Path("set/train.jsonl")
    file.write_text(file.read_text(encoding="utf-8").replace("Answer", "answer", 1), encoding="utf-8")
    with pytest.raises(UserError) as fault:
        load_data(DataSettings(source="set"), seed=1)
    assert fault.value.code == "damaged"


def test_a_folder_that_is_no_data_set_is_never_touched() -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError) as fault:
        prepare(DataSettings(source=write("a.jsonl", rows_of(5))), Path("mine"), seed=1)
    assert fault.value.code == "exists"
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
