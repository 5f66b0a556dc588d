"""Mixing of sources: T5's rates by hand, names, sides of their own, and few shots."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.records import LabelExample, MultiLabelExample, Origin, PairExample, TagExample
from tunesmith.data.findings import Findings
from tunesmith.data.load import DataSet, load_data
from tunesmith.data.mix import copies_per_epoch
from tunesmith.data.shots import draw_shots
from tunesmith.recipe import DataSettings, SourceSettings, Temperature


def _shares(sizes, copies):
    reads = [size * times for size, times in zip(sizes, copies, strict=True)]
    return [read / sum(reads) for read in reads]


@pytest.mark.parametrize(
    ("mixing", "weights", "shares"),
    [
        ("proportional", (1, 1), (0.8, 0.2)),
        ("equal", (1, 1), (0.5, 0.5)),
        (Temperature(temperature=1), (1, 1), (0.8, 0.2)),
        # sqrt(400) = 20 and sqrt(100) = 10
        (Temperature(temperature=2), (1, 1), (2 / 3, 1 / 3)),
        # min(400, 144) = 144: sqrt 12 against 10
        (Temperature(temperature=2, size_limit=144), (1, 1), (12 / 22, 10 / 22)),
        ("proportional", (1, 4), (0.5, 0.5)),
        ("equal", (3, 1), (0.75, 0.25)),
    ],
)
def test_shares_are_those_of_t5(mixing, weights, shares) -> None:
    sizes = (400, 100)
    copies = copies_per_epoch(sizes, weights, mixing)
    assert _shares(sizes, copies) == pytest.approx(shares)
    assert min(copies) == 1


def test_a_source_without_rows_is_left_out() -> None:
    assert copies_per_epoch((10, 0), (1, 1), "equal") == (1.0, 0.0)


def _write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _classes(prefix: str, count: int) -> list[dict]:
    return [{"text": f"{prefix} {n} says {n * n}", "label": f"{prefix}{n % 3}"} for n in range(count)]


def _load(**settings) -> DataSet:
    return load_data(DataSettings(**settings), seed=settings.pop("seed", 1))


def test_each_source_may_hold_out_rows_its_own_way(tmp_path) -> None:
    a, b = _write(tmp_path / "a.jsonl", _classes("a", 60)), _write(tmp_path / "b.jsonl", _classes("b", 60))
    held = _write(tmp_path / "a_valid.jsonl", _classes("a", 90)[60:])
    data = _load(source=(SourceSettings(path=a, validation=held), SourceSettings(path=b)))
    assert Counter(Path(e.origin.file).name for e in data.validation if e.source_name == "a") == {"a_valid.jsonl": 30}
    assert {Path(e.origin.file).name for e in data.validation if e.source_name == "b"} == {"b.jsonl"}
    assert sum(e.source_name == "a" for e in data.train) == 60
    assert 0 < sum(e.source_name == "b" for e in data.validation) < 60


def test_two_sources_of_one_name_are_refused(tmp_path) -> None:
    (tmp_path / "x").mkdir()
    a, b = _write(tmp_path / "rows.jsonl", _classes("a", 6)), _write(tmp_path / "x" / "rows.jsonl", _classes("b", 6))
    with pytest.raises(UserError, match='2 sources are called "rows"') as caught:
        _load(source=(SourceSettings(path=a), SourceSettings(path=b)))
    assert caught.value.code == "repeated_name"


def test_shots_are_drawn_per_class_by_the_seed_and_the_held_out_rows_stay(tmp_path) -> None:
    source = _write(tmp_path / "a.jsonl", _classes("a", 90))
    settings = DataSettings(source=source, shots=4, split={"validation": 0.2, "test": 0.1, "seed": 1})
    one, again, other = (load_data(settings, seed=seed) for seed in (1, 1, 2))
    for data in (one, other):
        assert Counter(e.label for e in data.train if isinstance(e, LabelExample)) == {"a0": 4, "a1": 4, "a2": 4}
        assert data.num_left_out["shots"] == 90 - len(data.validation) - len(data.test) - 12
    assert one == again
    assert one.train != other.train
    assert (one.validation, one.test) == (other.validation, other.test)
    more = load_data(settings.model_copy(update={"shots": 5}), seed=1)
    assert set(map(str, (e.origin for e in one.train))) < set(map(str, (e.origin for e in more.train)))


def test_a_pairs_own_source_is_a_text_and_not_the_name_of_its_file(tmp_path) -> None:
    paths = {
        name: _write(tmp_path / f"{name}.jsonl", [{"source": f"{name} {n}", "target": str(n)} for n in range(20)])
        for name in "ab"
    }
    data = _load(source=tuple(SourceSettings(path=path) for path in paths.values()), split={"validation": 0.2})
    rows = [e for e in (*data.train, *data.validation) if isinstance(e, PairExample)]
    assert len(rows) == 40 and all(e.source.startswith(f"{e.source_name} ") for e in rows)
    assert len(_load(source=paths["a"], shots=7, split={"validation": 0}).train) == 7


def test_shots_of_rows_with_several_classes_are_drawn_for_each_of_them() -> None:
    """a stands in every row, b in every third, c in every fifth, none in two more."""
    sets = [("a", *(["b"] if n % 3 == 0 else []), *(["c"] if n % 5 == 0 else [])) for n in range(30)] + [(), ()]
    rows = [
        MultiLabelExample(origin=Origin("rows", n), text=f"row {n}", labels=labels) for n, labels in enumerate(sets)
    ]
    found = Findings()
    few, more = draw_shots(rows, 2, 1, found), draw_shots(rows, 3, 1, Findings())
    counts = Counter(label for row in few for label in (row.labels or ("none",)))
    assert counts["a"] >= 2 and counts["b"] >= 2 and counts["c"] >= 2 and counts["none"] == 2
    assert len(few) <= 8 and {row.text for row in few} < {row.text for row in more}
    assert not found.all()
    tagged = [TagExample(origin=Origin("rows", n), words=("x", str(n)), tags=("B-PER", "O")) for n in range(9)]
    assert len(draw_shots(tagged, 4, 1, Findings())) == 4


def test_a_class_with_fewer_rows_than_shots_is_told(tmp_path) -> None:
    rows = [*_classes("a", 30), {"text": "rare one", "label": "z"}, {"text": "rare two", "label": "z"}]
    data = _load(source=_write(tmp_path / "a.jsonl", rows), shots=5, split={"validation": 0})
    assert Counter(e.label for e in data.train if isinstance(e, LabelExample))["z"] == 2
    (found,) = [finding for finding in data.findings if finding.code == "few_shots"]
    assert found.message == 'the class "z" has 2 training rows, fewer than the 5 of data.shots'


def test_rows_without_classes_are_drawn_altogether(tmp_path) -> None:
    rows = [{"question": f"what is {n}?", "answer": f"it is {n}"} for n in range(40)]
    assert len(_load(source=_write(tmp_path / "a.jsonl", rows), shots=7).train) == 7
