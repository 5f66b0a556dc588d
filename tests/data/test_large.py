"""Large files, whose training rows stay on disk: the same data set, row for row, as when they are held."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.data import large, scan
from tunesmith.data.load import DataSet, load_data
from tunesmith.data.stored import StoredExamples
from tunesmith.recipe import DataSettings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNESMITH_ROW_CACHE_GIB", "1")


def write(name: str, rows: Sequence[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return name


def both(monkeypatch: pytest.MonkeyPatch, seed: int = 1, **settings: Any) -> tuple[DataSet, DataSet]:
    """The data set with all rows held, and with the training rows in their file."""
    held = load_data(DataSettings(**settings), seed=seed)
    assert not isinstance(held.train, StoredExamples)
    with monkeypatch.context() as patch:
        patch.setattr(large, "LARGE_BYTES", 1)
        stored = load_data(DataSettings(**settings), seed=seed)
    assert isinstance(stored.train, StoredExamples), "it was held after all"
    return held, stored


def are_same(held: DataSet, stored: DataSet) -> bool:
    for name in ("findings", "labels", "format_name", "num_read", "num_left_out", "files", "seed", "copies"):
        assert getattr(stored, name) == getattr(held, name), name
    assert tuple(stored.train) == tuple(held.train)
    assert (stored.validation, stored.test) == (held.validation, held.test)
    assert stored.card() == held.card()
    return True


def chats(number: int) -> list[Any]:
    """Rows with repetitions, a common question, faults, odd spacing and other letters."""
    draw = random.Random(number)
    rows: list[Any] = []
    for i in range(number):
        row = {"question": f"What is thing {i}?", "answer": f"It is {i} é.", "n": i}
        if i % 7 == 0:
            row["question"] = "Say something."
        if i % 9 == 0 and rows:
            row = dict(draw.choice([one for one in rows if isinstance(one, dict)]))
        if i % 11 == 0:
            row = {**row, "question": row["question"].upper() + "  "}
        rows.append(row)
    rows[20:20] = ["{broken", "", json.dumps({"question": "no answer"}), json.dumps([1])]
    return rows


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dedup": "none", "split": {"validation": 0.2, "test": 0.2}},
        {"limit": 40, "split": {"validation": 0.1, "seed": 9}},
        {"system": "Be short.", "columns": {"question": "prompt", "answer": "completion"}},
        {"validation": "v.jsonl", "split": {"validation": 0.1, "test": 0.1}},
        {"validation": "v.jsonl", "test": "w.jsonl"},
    ],
)
def test_every_row_count_and_finding_is_the_same(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("rows.jsonl", chats(300))
    write("v.jsonl", [*chats(40)[:15], {"question": "Say  SOMETHING.", "answer": "No."}, "{"])
    write("w.jsonl", [{"question": "New?", "answer": "Yes."}, {"question": "what is thing 3?", "answer": "it is 3 É."}])
    held, stored = both(monkeypatch, source=source, on_fault="skip", **settings)
    assert are_same(held, stored)


@pytest.mark.parametrize("split", [{"validation": 0.1}, {"validation": 0.3, "test": 0.3}])
def test_classes_are_kept_and_counted(split: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"text {i} of it", "label": f"c{i % 5}"} for i in range(90)]
    rare = [{"text": f"rare {i}", "label": f"r{i // 2}"} for i in range(16)]  # some stand on held-out sides alone
    source = write("rows.jsonl", [*rows, *rare])
    for seed in range(4):
        held, stored = both(monkeypatch, seed, source=source, split=split)
        assert are_same(held, stored)
        monkeypatch.setenv("TUNESMITH_ROW_CACHE_GIB", "0")
    many = [{"text": f"text {i}", "labels": [f"c{i % 3}", f"d{i % 2}"][: i % 3]} for i in range(60)]
    assert are_same(*both(monkeypatch, source=write("many.jsonl", many), split=split))


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ([*({"text": f"t {i}", "label": "ab"[i % 2]} for i in range(50)), {"text": "odd", "label": "z"}], {}),
        ([{"text": f"t {i}", "label": "a"} for i in range(50)], {}),
        ([*({"text": f"t {i}", "label": "ab"[i % 2]} for i in range(50))], {"test": "other.jsonl"}),
        ([*({"question": f"q {i}", "answer": "a"} for i in range(50)), {"question": "no answer"}], {}),
        ([*({"question": f"q {i}", "answer": "a"} for i in range(50)), "{"], {}),
        ([{"question": f"q {i}", "answer": "a"} for i in range(50)], {"test": "other.jsonl"}),
        ([{"apple": 1}] * 50, {}),
        ([{"question": f"q {i}", "answer": "a"} for i in range(50)], {"columns": {"qestion": "prompt"}}),
    ],
)
def test_every_error_is_the_same(rows: list[Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = DataSettings(source=write("rows.jsonl", rows), **settings)
    write("other.jsonl", [{"text": "t", "label": "q"}, {"text": "u", "label": "q"}])
    found = []
    for smallest in (large.LARGE_BYTES, 1):
        monkeypatch.setattr(large, "LARGE_BYTES", smallest)
        with pytest.raises(UserError) as fault:
            load_data(chosen, seed=1)
        found.append(fault.value.to_dict())
    assert found[0] == found[1]


def test_what_needs_all_rows_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("rows.jsonl", [{"question": f"q {i}", "answer": f"a {i}", "who": i % 4} for i in range(60)])
    few = write("few.jsonl", [{"question": f"q {i}", "answer": "a"} for i in range(4)])
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    for settings in (
        {"source": source, "dedup": "near"},
        {"source": source, "shots": 3},
        {"source": source, "split": {"validation": 0.1, "group_by": "who"}},
        {"source": [{"path": source}, {"path": few}]},
        {"source": few},  # a side would be empty
    ):
        assert not isinstance(load_data(DataSettings(**settings), seed=1).train, StoredExamples)
    monkeypatch.setattr(scan, "MAX_LABEL_SETS", 1)
    labelled = write("labels.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(50)])
    assert not isinstance(load_data(DataSettings(source=labelled), seed=1).train, StoredExamples)


def test_the_second_start_reads_the_rows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    settings = DataSettings(source=write("rows.jsonl", chats(300)), on_fault="skip")
    first = load_data(settings, seed=1)

    def read_again(*given: object) -> None:
        raise AssertionError("it was read before")

    monkeypatch.setattr(large, "scan", read_again)
    assert are_same(first, load_data(settings, seed=1))
    with pytest.raises(AssertionError, match="it was read before"):
        load_data(settings, seed=3)
    write("rows.jsonl", chats(301))
    with pytest.raises(AssertionError, match="it was read before"):
        load_data(settings, seed=1)


def test_rows_of_several_files_begin_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("set").mkdir()
    write("set/b.jsonl", chats(150)[:60])
    text = Path(write("set/a.jsonl", [{"question": f"Wo ist {i} ü?", "answer": f"{i}"} for i in range(60)])).read_text()
    Path("set/a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    held, stored = both(monkeypatch, source="set", on_fault="skip")
    assert are_same(held, stored)
    assert stored.train[-1] == held.train[-1] and stored.train[2:5] == tuple(held.train[2:5])
    with pytest.raises(IndexError):
        stored.train[len(stored.train)]
    write("set/a.jsonl", [{"question": "gone"}])
    with pytest.raises(UserError, match="no longer what it was") as fault:
        list(stored.train)
    assert fault.value.code == "file_changed"


@pytest.mark.parametrize("name", ["banking77/train.csv", "viggo/train.csv"])
def test_public_data_are_the_same(name: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (shared / "data" / name).open(encoding="utf-8", newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    columns = {"viggo": {"mr": "input", "ref": "output"}}.get(name.partition("/")[0], {})
    known = {new: old for old, new in columns.items()}
    settings = {"source": write("rows.jsonl", rows[:4000]), "split": {"validation": 0.1, "test": 0.1}}
    if set(known.values()) <= set(rows[0]):
        settings["columns"] = columns
    assert are_same(*both(monkeypatch, **settings))
