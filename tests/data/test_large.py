"""Large files, whose training rows stay on disk: the same data set, row for row, as when they are held."""

from __future__ import annotations

import csv
import gzip
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning
from tunesmith.data import json_stream, large, near, scan, sides
from tunesmith.data import rows as readers
from tunesmith.data import stored as on_disk
from tunesmith.data.labels import labels_in
from tunesmith.data.load import DataSet, load_data
from tunesmith.data.stored import StoredExamples
from tunesmith.recipe import DataSettings
from tunesmith.steps.data import prepare


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNESMITH_ROW_CACHE_GIB", "1")


def write(name: str, rows: Sequence[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return name


def write_csv(name: str, rows: Sequence[Any], delimiter: str = ",") -> str:
    """The rows as cells, some with line breaks in them, some of the wrong number; a byte that is no UTF-8."""
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["question", "answer", "n"])
        for i, row in enumerate(row for row in rows if isinstance(row, dict) and "n" in row):
            more = "\nTell me." if i % 13 == 0 else ""
            writer.writerow([row["question"] + more, row["answer"], row["n"]])
            if i == 30:
                writer.writerow(["one cell"])
    Path(name).write_bytes(Path(name).read_bytes() + b'"a \xff byte","b",1\n')
    return name


def write_parquet(name: str, rows: Sequence[Any]) -> str:
    """The rows in several row groups, with kinds of values that JSON does not know."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    day = datetime(2026, 2, 28, 23, 59, 59, 123456)
    made = [
        {
            **row,
            "when": day + timedelta(days=i),
            "there": (day + timedelta(days=i)).replace(tzinfo=UTC),
            "day": date(2024, 1, 1 + i % 28),
            "hour": time(i % 24, 30),
            "took": timedelta(seconds=i, microseconds=7),
            "price": Decimal(i) / 8,
            "raw": bytes([i % 256, 0]),
            "nested": {"at": [day], "of": {"deep": [None, "é", str(i / 3)], "x": i / 3}},
        }
        for i, row in enumerate(row for row in rows if isinstance(row, dict) and "n" in row)
    ]
    parquet.write_table(arrow.Table.from_pylist(made), name, row_group_size=50)
    return name


def write_array(name: str, rows: Sequence[Any]) -> str:
    whole = [row for row in rows if not isinstance(row, str)]
    Path(name).write_text("\n " + json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8-sig")
    return name


def packed(name: str) -> str:
    Path(f"{name}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
    Path(name).unlink()
    return f"{name}.gz"


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
        {"shots": 25, "limit": 20},
        {"shots": 900, "split": {"validation": 0.1, "test": 0.1}},
        {"dedup": "near", "limit": 90},
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


KINDS: dict[str, Callable[[], str]] = {
    "csv": lambda: write_csv("rows.csv", chats(300)),
    "tsv, gzip": lambda: packed(write_csv("rows.tsv", chats(300), "\t")),
    "parquet": lambda: write_parquet("rows.parquet", chats(300)),
    "array": lambda: write_array("rows.json", chats(300)),
    "array, gzip": lambda: packed(write_array("rows.json", chats(300))),
    "lines, gzip": lambda: packed(write("rows.jsonl", chats(300))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "STREAM_BYTES", 1)
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 100)
    source = KINDS[kind]()
    split = {"validation": 0.1, "test": 0.1}
    held, stored = both(monkeypatch, source=source, on_fault="skip", split=split)
    assert are_same(held, stored)
    assert stored.train[3].origin.file == source
    held, stored = both(monkeypatch, source=source, on_fault="skip", split=split, limit=20)  # the rows of the cache
    assert are_same(held, stored)


def test_a_folder_of_files_of_many_kinds_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("set").mkdir()
    write("set/b.jsonl", chats(120)[:100])
    write_csv("set/a.csv", chats(80))
    packed(write("set/c.jsonl", chats(200)[90:]))
    monkeypatch.setenv("TUNESMITH_ROW_CACHE_GIB", "0")
    held, stored = both(monkeypatch, source="set", on_fault="skip")
    assert are_same(held, stored)
    assert [stored.train[i] for i in (-1, 0, -2, 1)] == [held.train[i] for i in (-1, 0, -2, 1)]


@pytest.mark.parametrize("text", ["sentences.txt", "tags.conll"])
def test_text_and_tags_are_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if text == "tags.conll":
        lines = [f"word{i}\t{'OB'[i % 5 == 0]}-x\n" + "\n" * (i % 4 == 3) for i in range(400)]
    else:
        words = "is longer than it would have to be, for a piece."
        lines = [f"Sentence {i} {words}\n" + "\n" * (i % 9 == 8) for i in range(900)]
    Path(text).write_text("".join(lines))
    assert are_same(*both(monkeypatch, source=text))


@pytest.mark.parametrize("mixing", ["proportional", "equal"])
def test_several_sources_are_the_same(mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [row for row in chats(90) if isinstance(row, dict) and "n" in row]
    renamed = [{"ask": row["question"], "say": f"Second: {row['answer']}"} for row in mine]
    write("v.jsonl", [*renamed[:9], {"ask": "New?", "say": "Yes."}])
    sources = [
        {"path": write("a.jsonl", chats(200)), "weight": 2.0},
        {"path": write("b.jsonl", renamed), "columns": {"ask": "question", "say": "answer"}, "validation": "v.jsonl"},
        {"path": write_csv("c.csv", chats(60)), "name": "cells"},
    ]
    split = {"validation": 0.2, "test": 0.2}
    for more in ({}, {"dedup": "none", "limit": 150}):
        held, stored = both(monkeypatch, source=sources, on_fault="skip", split=split, mixing=mixing, **more)
        assert are_same(held, stored)
        assert stored.copies and {example.source_name for example in stored.train} == {"a", "b", "cells"}


def test_classes_of_several_sources_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [{"text": f"rare {i}", "label": f"r{i // 2}"} for i in range(20)]
    many = [{"text": f"text {i} of it", "label": f"c{i % 5}"} for i in range(90)]
    some = [{"text": f"other {i} of it", "label": f"r{i % 10}"} for i in range(60)]
    sources = [{"path": write("a.jsonl", [*many, *few])}, {"path": write("b.jsonl", some), "test": "t.jsonl"}]
    write("t.jsonl", some[:3])
    for seed in range(4):
        held, stored = both(monkeypatch, seed, source=sources, split={"validation": 0.3, "test": 0.3})
        assert are_same(held, stored)


@pytest.mark.parametrize("shots", [2, 3, 7, 10])
def test_shots_of_classes_and_sets_of_classes_are_the_same(shots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(shots)
    several = [{"text": f"text {i}", "labels": draw.sample("abcdef", draw.randint(0, 3))} for i in range(90)]
    classes = [{"text": f"other {i} of it", "label": f"c{i * i % 11}"} for i in range(90)]
    for block in (scan.BLOCK, 16):
        monkeypatch.setattr(scan, "BLOCK", block)
        monkeypatch.setattr(sides, "BLOCK", block)
        for rows in (several, classes):
            paths = [{"path": write("a.jsonl", rows[:60])}, {"path": write("b.jsonl", rows[60:])}]
            for source in (paths[0]["path"], paths):
                held, stored = both(monkeypatch, source=source, shots=shots, split={"validation": 0.1})
                assert are_same(held, stored)
                assert len(held.train) < len(rows)


def test_blocks_and_buckets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "BLOCK", 16)
    monkeypatch.setattr(sides, "BLOCK", 16)
    monkeypatch.setattr(scan, "BUCKET", 20)
    source = write("rows.jsonl", chats(300))
    for more in ({}, {"limit": 40}, {"shots": 30}):
        held, stored = both(monkeypatch, source=source, on_fault="skip", split={"validation": 0.1, "test": 0.1}, **more)
        assert are_same(held, stored)
    rare = [{"text": f"rare {i}", "label": f"r{i // 2}"} for i in range(40)]
    more_rows = [{"text": f"text {i}", "label": f"c{i % 3}"} for i in range(60)]
    split = {"validation": 0.3, "test": 0.3}
    assert are_same(*both(monkeypatch, source=write("rare.jsonl", [*rare, *more_rows]), split=split))


def grouped(number: int, seed: int = 0) -> list[Any]:
    """Rows of groups, some joined by what they ask, some rows without a group or without the column."""
    draw = random.Random(seed)
    rows: list[Any] = []
    for i in range(number):
        row = {"question": f"What is thing {i}?", "answer": f"It is {i}.", "who": f"customer {draw.randrange(number)}"}
        if i % 5 == 0:
            row["question"] = f"what is  THING {draw.randrange(number)}?"  # joins groups
        if i % 7 == 0:
            row["question"] = "Say something."
        if i % 11 == 0:
            row["who"] = draw.choice([None, "", 7, 7.5, ["a"]])
        if i % 13 == 0 or i == 3:
            del row["who"]
        if i % 17 == 0 and rows:
            row = {**draw.choice(rows), "who": row.get("who")}
        rows.append(row)
    return rows


@pytest.mark.parametrize("more", [{}, {"dedup": "none"}, {"limit": 60, "shots": 90}])
def test_groups_are_the_same(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    split = {"validation": 0.2, "test": 0.2, "group_by": "who"}
    for seed, block, bucket in ((0, 16, 20), (1, 128, 64), (2, scan.BLOCK, scan.BUCKET), (3, 50, 400)):
        monkeypatch.setattr(scan, "BLOCK", block)
        monkeypatch.setattr(sides, "BLOCK", block)
        monkeypatch.setattr(scan, "BUCKET", bucket)
        source = write("rows.jsonl", grouped(300, seed))
        held, stored = both(monkeypatch, seed, source=source, split=split, **more)
        assert are_same(held, stored)
        if not more:
            assert len({str(row.fields.get("who")) for row in held.train}) > 20


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.45, 0.45), (0.1, 0.0), (0.0, 0.3)])
def test_a_side_that_would_be_empty_gets_the_same_group(
    validation: float, test: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "BLOCK", 3)
    monkeypatch.setattr(sides, "BLOCK", 3)
    monkeypatch.setattr(scan, "BUCKET", 2)
    monkeypatch.setenv("TUNESMITH_ROW_CACHE_GIB", "0")
    for number in (1, 2, 3, 5):
        rows = [{"question": f"q {i}", "answer": f"a {i}"} for i in range(number)]
        few = write("few.jsonl", rows)
        source = write("groups.jsonl", [{**row, "who": i % 3} for i, row in enumerate(rows * 3)])
        write("v.jsonl", [{"question": "new", "answer": "yes"}])
        sources = [{"path": few, "validation": "v.jsonl"}, {"path": source, "test": "v.jsonl"}]
        for seed in range(2):
            split = {"validation": validation, "test": test, "seed": seed}
            assert are_same(*both(monkeypatch, source=few, split=split))
            assert are_same(*both(monkeypatch, source=sources, split=split))
            grouped = {"dedup": "none", "split": {**split, "group_by": "who"}}
            assert are_same(*both(monkeypatch, source=source, **grouped))


def test_groups_of_several_sources_and_of_classes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = grouped(200, 4)
    write("v.jsonl", grouped(20, 5))
    sources = [
        {"path": write("a.jsonl", rows[:120])},
        {"path": write("b.jsonl", rows[90:]), "test": "v.jsonl"},
        {"path": write("c.jsonl", [row for row in rows if row.get("who")][::3]), "validation": "v.jsonl"},
    ]
    split = {"validation": 0.2, "test": 0.3, "group_by": "who"}
    for seed in range(3):
        assert are_same(*both(monkeypatch, seed, source=sources, split=split))
    for seed in range(9):  # some classes stand on held-out sides alone, and go to train with their groups
        draw = random.Random(seed)
        few = [
            {"text": f"rare {i // 3}{i % 2}", "label": f"r{i // 4}", "who": draw.choice(["", draw.randrange(30)])}
            for i in range(48)
        ]
        many = [{"text": f"text {i}", "label": f"c{i % 3}", "who": draw.randrange(90)} for i in range(90)]
        joined = [{"text": few[i]["text"], "label": "c1", "who": draw.randrange(30, 60)} for i in range(0, 48, 3)]
        source = write("rows.jsonl", [*few, *many, *joined])
        assert are_same(*both(monkeypatch, seed, source=source, split=split | {"validation": 0.5}, dedup="none"))


def test_sides_that_are_kept_are_not_those_of_another_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    source = write("rows.jsonl", [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(60)])
    usual = len(load_data(DataSettings(source=source), seed=1).validation)
    for module in (recipe, large):
        monkeypatch.setattr(module, "USUAL_VALIDATION", 0.5)
    assert len(load_data(DataSettings(source=source), seed=1).validation) > 2 * usual > 0


def peak(settings: DataSettings, seed: int) -> int:
    """The most bytes in use while rows are loaded."""
    tracemalloc.start()
    load_data(settings, seed=seed)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("wish", ["", "near", "group"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_row_more_takes_a_few_bytes(kind: str, wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "AT_ONCE", 1000)
    for name, module in (("BLOCK", scan), ("BLOCK", sides), ("BUCKET", scan)):
        monkeypatch.setattr(module, name, 128)
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    monkeypatch.setattr(on_disk, "BUFFER_BYTES", 4096)
    counts, peaks = (500, 3000), []
    for count in counts:
        made = [{"question": f"What is {i}?", "answer": f"It is {i}.", "n": i} for i in range(count)]
        source = write(f"{count}.jsonl", made) if kind == "jsonl" else write_csv(f"{count}.csv", made)
        del made
        split = {"validation": 20 / count, "group_by": "n" if wish == "group" else ""}
        dedup = "near" if wish == "near" else "exact"
        settings = DataSettings(source=source, on_fault="skip", dedup=dedup, split=split)
        peaks.append(min(peak(settings, seed) for seed in (1, 2)))  # Python's table of names may grow in one of them
    assert peaks[1] - peaks[0] < 12 * (counts[1] - counts[0]), "an example takes more than 1,000"


def test_rows_that_are_held_after_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    monkeypatch.setattr(scan, "MAX_LABEL_SETS", 1)
    write("rows.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(60)])
    told: list[Event] = []
    load_data(DataSettings(source="rows.jsonl"), seed=1, emit=told.append)
    (warning,) = [event for event in told if isinstance(event, Warning)]
    assert warning.code == "rows_held"
    assert "rows.jsonl are" in warning.message and "different sets of classes" in warning.message


@pytest.mark.parametrize("more", [{}, {"limit": 30}, {"shots": 9, "limit": 5}, {"test": "w.jsonl"}])
def test_prepared_folders_are_the_same(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(source=write("rows.jsonl", chats(300)), on_fault="skip", split={"test": 0.2})
    write("w.jsonl", [{"question": "New?", "answer": "Yes."}, {"question": "what is thing 3?", "answer": "it is 3 É."}])
    prepare(settings, Path("held"), seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(large, "LARGE_BYTES", 1)
        prepare(settings, Path("kept"), seed=1)
        prepare(settings, Path("kept"), seed=1)  # it is the same
    assert {f.name: f.read_bytes() for f in Path("held").iterdir()} == {
        f.name: f.read_bytes() for f in Path("kept").iterdir()
    }
    assert are_same(*both(monkeypatch, source="kept", **more))
    labelled = [{"text": f"text {i}", "label": f"c{i % 3}"} for i in range(60)]
    prepare(DataSettings(source=write("labels.jsonl", labelled)), Path("labelled"), seed=1)
    assert are_same(*both(monkeypatch, source="labelled"))


def test_values_that_could_not_come_back_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    texts = {"question": [f"q {i}" for i in range(60)], "answer": ["a"] * 60}
    maps = arrow.array([[("k", i)] for i in range(60)], arrow.map_(arrow.string(), arrow.int64()))
    parquet.write_table(arrow.table({**texts, "facts": maps}), "maps.parquet")
    held = load_data(DataSettings(source="maps.parquet"), seed=1)
    assert not isinstance(held.train, StoredExamples) and held.train[0].fields["facts"][0][0] == "k"


def test_as_many_rows_validate_as_of_rows_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.recipe.MOST_VALIDATION", 20)
    source, other = write("rows.jsonl", chats(500)), write("other.jsonl", chats(90))
    held, stored = both(monkeypatch, source=source, on_fault="skip")
    assert are_same(held, stored)
    assert 8 <= len(held.validation) <= 32  # of a tenth there would be 40
    sources = [{"path": source}, {"path": other}]
    assert are_same(*both(monkeypatch, source=sources, on_fault="skip", dedup="none", split={"test": 0.2}))
    assert are_same(*both(monkeypatch, source=source, on_fault="skip", limit=90))


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


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("more", [{"shots": 1}, {"limit": 4}])
def test_a_class_is_rare_by_its_rows_before_any_are_drawn(
    more: dict[str, Any], several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"t {i} of it", "label": "abc"[i % 3]} for i in range(60)]
    source: Any = write("rows.jsonl", rows[:50] if several else rows)
    if several:
        source = [{"path": source}, {"path": write("more.jsonl", rows[50:])}]
    held, stored = both(monkeypatch, source=source, split={"validation": 0.0}, **more)
    assert are_same(held, stored)
    fewest = min(Counter(label for example in held.train for label in labels_in(example)).values())
    assert fewest == (2 if several and "shots" in more else 1)
    write("rows.jsonl", [{"text": "odd", "label": "z"}, *rows])
    for smallest in (1, large.LARGE_BYTES):
        monkeypatch.setattr(large, "LARGE_BYTES", smallest)
        with pytest.raises(UserError, match='the label "z" occurs once'):
            load_data(DataSettings(source="rows.jsonl", shots=1, split={"validation": 0.0}), seed=1)


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
        ([{"question": f"q {i}", "answer": "a", "whom": 1} for i in range(50)], {"split": {"group_by": "who"}}),
        (
            [{"question": f"q {i // 2}", "answer": "a", **({"who": 1} if i % 2 else {})} for i in range(50)],
            {"split": {"group_by": "who"}},  # the rows with the column are repetitions
        ),
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
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    monkeypatch.setattr(scan, "MAX_LABEL_SETS", 1)
    labelled = write("labels.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(50)])
    assert not isinstance(load_data(DataSettings(source=labelled), seed=1).train, StoredExamples)


def test_the_second_start_reads_the_rows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    settings = DataSettings(source=write("rows.jsonl", chats(300)), on_fault="skip")
    first = load_data(settings, seed=1)

    def read_again(*given: object) -> None:
        raise AssertionError("it was read before")

    monkeypatch.setattr(large, "fill", read_again)
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
