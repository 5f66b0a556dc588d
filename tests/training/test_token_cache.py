"""Rows that were tokenised once: the very rows of memory, made again when anything changed, verified, bounded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import made_training
from made_training import labels_of, loop_in, make_learner
from tunesmith.core.cache import LIMIT, Cache
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning
from tunesmith.core.plugins import build, names
from tunesmith.core.records import LabelExample, Origin, TextExample
from tunesmith.methods.feature_extraction import FeatureExtraction
from tunesmith.methods.full import Full
from tunesmith.models.tiny import tiny
from tunesmith.objectives.base import Objective
from tunesmith.objectives.classification import Classification
from tunesmith.objectives.clm import CLM
from tunesmith.objectives.mlm import MLM
from tunesmith.training import encode_workers, token_cache
from tunesmith.training.encode import Encoding, Rows, encode_rows
from tunesmith.training.token_cache import rows_key, tokenized

ARCHITECTURE = {"causal": "llama", "seq2seq": "t5", "classify": "bert", "tag": "bert", "mask": "bert"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache for rows however few they are."""
    monkeypatch.setattr(token_cache, "MIN_ROWS", 1)
    monkeypatch.setattr(token_cache, "CHUNK", 3)
    return Cache(tmp_path / "tokens", 2**20)


def _encoding(name: str = "clm", max_length: int = 64) -> Encoding:
    objective: Objective = build("objectives", name)
    return Encoding(objective, tiny(ARCHITECTURE[objective.task], objective.task)[1], max_length, labels_of(objective))


def _texts(count: int, start: int = 1) -> list[TextExample]:
    return [
        TextExample(origin=Origin("t.jsonl", line), text=f"row {line} of it") for line in range(start, start + count)
    ]


def _in_memory(examples, encoding: Encoding):
    return encode_rows(
        examples, encoding.objective, encoding.tokenizer, max_length=encoding.max_length, labels=encoding.labels
    )


def _are_same(one: Rows, other: Rows) -> bool:
    return (
        tuple(one.features) == tuple(other.features)
        and one.lengths.tolist() == other.lengths.tolist()
        and one.weights.tolist() == other.weights.tolist()
        and tuple(one.origins) == tuple(other.origins)
        and one.names == other.names
        and [one.source(row) for row in range(len(one))] == [other.source(row) for row in range(len(other))]
    )


@pytest.mark.parametrize("name", names("objectives"))
def test_mapped_rows_are_those_of_memory(name: str, cache: Cache) -> None:
    for max_length in (64, 6):  # short rows: some are cut, and some have nothing left to learn
        encoding = _encoding(name, max_length)
        examples = made_training.examples(encoding.objective) * 2
        examples = [replace(one, source_name="ab"[place > 4]) for place, one in enumerate(examples)]
        try:
            wanted, findings = _in_memory(examples, encoding)
        except UserError as fault:
            with pytest.raises(UserError, match="token to learn") as raised:
                tokenized(examples, encoding, cache=cache)
            assert raised.value.code == fault.code == "nothing_trained"
            continue
        for _ in range(2):  # made, and opened
            rows, found = tokenized(examples, encoding, cache=cache)
            assert _are_same(rows, wanted)
            assert found == findings
        assert tuple(rows.features[1:3]) == tuple(wanted.features[1:3])
        assert rows.features[-1] == wanted.features[-1]
        with pytest.raises(IndexError):
            rows.features[len(rows)]


def test_an_entry_is_made_once_and_again_when_anything_changed(cache: Cache) -> None:
    encoding, examples = _encoding(), _texts(5)
    other_template = tiny("llama", "causal", has_template=False)[1]
    with_date = tiny("llama", "causal")[1]
    with_date.chat_template = "{{ strftime_now('%d') }}"
    keys = [
        rows_key(examples, encoding),
        rows_key(examples, replace(encoding, max_length=63)),
        rows_key(examples, replace(encoding, labels=("a",))),
        rows_key(examples, replace(encoding, objective=MLM())),
        rows_key(examples, replace(encoding, objective=MLM(share=0.3))),
        rows_key(examples, replace(encoding, tokenizer=other_template)),
        rows_key(examples, replace(encoding, tokenizer=with_date)),
        rows_key(examples[:4], encoding),
        rows_key([*examples[:4], replace(examples[4], text="row")], encoding),
        rows_key([*examples[:4], replace(examples[4], origin=Origin("t.jsonl", 9))], encoding),
    ]
    assert len(set(keys)) == len(keys)
    encoding.tokenizer("row", truncation=True, max_length=3)  # leaves a mark in the tokenizer, which decides nothing
    assert rows_key(examples, encoding) == keys[0]
    tokenized(examples, encoding, cache=cache)

    def build_again(draft: Path) -> None:
        raise AssertionError("it is there")

    assert cache.open(f"tokens-{keys[0]}", build_again).name == f"tokens-{keys[0]}"


def test_a_damaged_entry_is_made_again_and_that_is_said(cache: Cache) -> None:
    encoding, examples, events = _encoding(), _texts(5), list[Event]()
    rows, _ = tokenized(examples, encoding, cache=cache)
    wanted = tuple(rows.features)
    file = cache.folder / f"tokens-{rows_key(examples, encoding)}" / "input_ids.values"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.unlink()  # the mapped one stays as it is
    file.write_bytes(content)
    again, _ = tokenized(examples, encoding, cache=cache, emit=events.append)
    assert tuple(again.features) == wanted
    assert [event.code for event in events if isinstance(event, Warning)] == ["cache_damaged"]
    assert len(list(cache.folder.iterdir())) == 1


def test_the_cache_keeps_its_limit_and_the_rows_in_use(cache: Cache) -> None:
    encoding = _encoding()
    sets = [_texts(40, start) for start in (1, 100, 200)]
    first, _ = tokenized(sets[0], encoding, cache=cache)
    wanted = tuple(first.features)
    size = sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())
    small = Cache(cache.folder, int(2.5 * size))
    stale = cache.folder / ".x.tmp-1"
    stale.mkdir()
    os.utime(cache.folder / f"tokens-{rows_key(sets[0], encoding)}", (1, 1))
    os.utime(stale, (1, 1))
    tokenized(sets[1], encoding, cache=small)
    assert len(list(cache.folder.iterdir())) == 2
    tokenized(sets[2], encoding, cache=small)
    left = {path.name for path in cache.folder.iterdir()}
    assert left == {f"tokens-{rows_key(examples, encoding)}" for examples in sets[1:]}
    assert tuple(first.features) == wanted  # what is mapped outlives its entry
    tokenized(sets[0], encoding, cache=Cache(cache.folder, 1))
    assert [path.name for path in cache.folder.iterdir()] == [f"tokens-{rows_key(sets[0], encoding)}"]


def test_nothing_is_kept_where_the_limit_is_0_or_the_folder_cannot_be_written(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, examples, events = _encoding(), _texts(5), list[Event]()
    wanted, _ = _in_memory(examples, encoding)
    rows, _ = tokenized(examples, encoding, cache=Cache(cache.folder, 0), emit=events.append)
    assert _are_same(rows, wanted) and not cache.folder.exists() and not events
    (tmp_path / "file").write_text("")
    rows, _ = tokenized(examples, encoding, cache=Cache(tmp_path / "file" / "tokens", 9), emit=events.append)
    assert _are_same(rows, wanted)
    assert [event.code for event in events if isinstance(event, Warning)] == ["cache_unusable"]
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(UserError, match="'much' is not a number of GiB") as fault:
        Cache.of_rows()
    assert fault.value.where == LIMIT
    monkeypatch.setenv(LIMIT, "0.5")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.of_rows() == Cache(tmp_path / "tunesmith" / "rows", 2**29)


def test_processes_give_the_same_rows_in_the_same_order_and_name_the_row_at_fault() -> None:
    objective = Classification()
    encoding = Encoding(objective, tiny("bert", "classify")[1], 16, ("no", "yes"))
    examples = [
        LabelExample(origin=Origin("t.jsonl", line), text=f"row {line} " * (line % 5 + 1), label="yes")
        for line in range(1, 60)
    ]
    parts = [examples[start : start + 7] for start in range(0, len(examples), 7)]
    assert encode_workers.can_travel(encoding)
    assert list(encode_workers.encoded(parts, encoding, 2)) == [encoding.chunk(part) for part in parts]
    parts[3][2] = replace(parts[3][2], label="perhaps")
    with pytest.raises(UserError, match='"perhaps" is not among the 2') as fault:
        list(encode_workers.encoded(parts, encoding, 2))
    assert (fault.value.code, fault.value.where) == ("unknown_label", "t.jsonl:24")


def test_a_training_from_mapped_rows_is_the_same_bit_for_bit(cache: Cache, tmp_path: Path) -> None:
    settings = {"steps": 6, "tokens_per_step": 60, "lr": 1e-2, "validations": 2, "patience": 0, "keep": "last"}
    for method, architecture, objective in (
        (Full(), "llama", CLM()),
        (Full(), "bert", MLM()),
        (FeatureExtraction(), "bert", Classification()),  # whose frozen states are found by the row itself
    ):
        examples = made_training.examples(objective) * 4
        found = []
        for where in ("memory", "disk"):
            learner = make_learner(method, architecture, objective)
            encoding = Encoding(objective, tiny(architecture, objective.task)[1], 64, labels_of(objective))
            rows, held_out = (
                (_in_memory(part, encoding) if where == "memory" else tokenized(part, encoding, cache=cache))[0]
                for part in (examples, examples[:3])
            )
            torch.manual_seed(1)
            loop = loop_in(tmp_path / f"{architecture}-{objective.name}-{where}", learner, rows, held_out, settings)
            assert (loop.frozen.place is not None) == isinstance(method, FeatureExtraction)
            loop.fit(lambda step: None)
            losses = [record.get("train_loss") or record["validation_loss"] for record in loop.run.read_metrics()]
            found.append((losses, {name: tensor.detach().numpy().tobytes() for name, tensor in loop.tensors.items()}))
        assert found[0] == found[1]
        assert np.isfinite(found[0][0]).all()
