"""Rows of large files that are nearly an earlier one: the same as when all rows are held."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.core.events import Event, Progress, silent
from tunesmith.data import large, near, scan, sides
from tunesmith.data.findings import Findings
from tunesmith.data.load import DataSet, load_data, read_examples
from tunesmith.data.repeats import content_key, near_repeats
from tunesmith.data.stored import Reading, StoredExamples
from tunesmith.formats.text import Text
from tunesmith.recipe import DataSettings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_ROW_CACHE_GIB", "0")


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def edited(number: int, seed: int) -> list[str]:
    """Texts of which half are earlier ones with other words here and there, some with only other case."""
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(30 + seed % 3 * 400)]
    texts: list[str] = []
    for _ in range(number):
        if texts and draw.random() < 0.6:
            text = draw.choice(texts).split()
            for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
                text[draw.randrange(len(text))] = draw.choice(words)
            texts.append(" ".join(text).upper() if draw.random() < 0.1 else " ".join(text))
        else:
            texts.append(" ".join(draw.choices(words, k=draw.randint(1, 40))))
    return texts


def both(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[DataSet, DataSet]:
    chosen = DataSettings(dedup="near", **settings)
    held = load_data(chosen, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(large, "LARGE_BYTES", 1)
        stored = load_data(chosen, seed=1)
    assert isinstance(stored.train, StoredExamples), "it was held after all"
    return held, stored


def are_same(held: DataSet, stored: DataSet) -> bool:
    assert stored.findings == held.findings
    assert stored.num_left_out == held.num_left_out
    assert tuple(stored.train) == tuple(held.train)
    assert (stored.validation, stored.test) == (held.validation, held.test)
    return stored.card() == held.card()


def count(data: DataSet) -> int:
    return next((finding.num_rows for finding in data.findings if finding.code == "near_duplicate"), 0)


SMALL = {"AT_ONCE": 500, "TABLE_BYTES": 2**10, "_FEWEST_BITS": 4}
"""Many blocks, many turns, and tables in which most counters are shared."""


@pytest.mark.parametrize("sizes", [{}, SMALL, {"AT_ONCE": 200}])
def test_near_repetitions_are_those_of_rows_that_are_held(
    sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sizes.items():
        monkeypatch.setattr(near, name, value)
    for seed in range(3):
        monkeypatch.setattr(scan, "BLOCK", (2**17, 64)[seed % 2])
        monkeypatch.setattr(sides, "BLOCK", (2**17, 64)[seed % 2])
        texts = edited(200, seed)
        rows = [{"question": text, "answer": texts[i // 25]} for i, text in enumerate(texts)]
        held, stored = both(monkeypatch, source=write("rows.jsonl", rows), split={"validation": 0.1, "test": 0.1})
        assert are_same(held, stored)
        assert count(held) > 5


@pytest.mark.parametrize("sizes", [{}, SMALL])
def test_every_pair_and_similarity_is_the_same(sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in sizes.items():
        monkeypatch.setattr(near, name, value)
    for seed in range(3):
        rows = list(dict.fromkeys(text.lower() for text in edited(300, seed)))
        settings = DataSettings(source=write("rows.jsonl", [{"text": text} for text in rows]), dedup="near")
        reading = Reading(Text(), settings)
        with scan.Scan(Path(), (str(settings.source),), (reading,), scan.Wishes.of(settings, 1)) as read:
            scan.fill(read, Findings(), silent)
            found = list(near.near_repeats_on_disk(read, np.ones(len(rows), dtype=bool)))
        examples = read_examples(str(settings.source), settings).examples
        wanted = near_repeats(examples, [content_key(example) for example in examples])
        assert found == [(row, *nearest) for row, nearest in wanted.items()]
        assert len(found) > 10


KINDS: dict[str, Any] = {
    "label": lambda i: {"label": "abc"[i % 3]},
    "labels": lambda i: {"labels": ["a", "b", "c"][: i % 4]},
    "value": lambda i: {"label": (0.5, -1.25, -2.25)[i % 3]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_rows_of_one_class_are_near(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": text, **KINDS[kind](i)} for i, text in enumerate(edited(300, 4))]
    write("a.jsonl", rows[:200])
    write("b.jsonl", rows[150:])
    for source in ("a.jsonl", [{"path": "a.jsonl"}, {"path": "b.jsonl"}]):
        held, stored = both(monkeypatch, source=source)
        assert are_same(held, stored)
        assert count(held) > 3


def test_thumbs_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": text, "completion": text, "label": i % 2 == 0} for i, text in enumerate(edited(300, 1))]
    held, stored = both(monkeypatch, source=write("rows.jsonl", rows))
    assert are_same(held, stored)
    assert count(held) > 10


@pytest.mark.parametrize("at_once", [50, 10_000])
def test_a_row_that_is_left_out_is_none_that_others_are_near(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "AT_ONCE", at_once)
    words = [f"w{i}" for i in range(40)]
    chain = []
    for i in range(0, 40, 2):  # each is near the one before, few are near the first
        words[i] = f"x{i}"
        chain.append({"text": " ".join(words)})
    held, stored = both(monkeypatch, source=write("rows.jsonl", chain), split={"validation": 0.0})
    assert are_same(held, stored)
    assert 0 < count(held) < 15


def test_near_and_groups_go_together_and_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "AT_ONCE", 500)
    rows = [{"question": text, "answer": "yes", "who": i % 60} for i, text in enumerate(edited(300, 2))]
    source = write("rows.jsonl", rows)
    split = {"validation": 0.2, "test": 0.2, "group_by": "who"}
    assert are_same(*both(monkeypatch, source=source, split=split))
    told: list[Event] = []
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    load_data(DataSettings(source=source, dedup="near"), seed=1, emit=told.append)
    said = {event.label for event in told if isinstance(event, Progress)}
    assert {"looking for near repetitions", "comparing rows that are alike"} <= said


def test_no_row_and_rows_of_a_word_have_no_near_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    held, stored = both(monkeypatch, source=write("rows.jsonl", [{"text": f"word{i}"} for i in range(60)]))
    assert are_same(held, stored)
    assert count(held) == 0
