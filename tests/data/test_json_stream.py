"""JSON arrays that are read element by element give what they give when they are read at once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.data import json_stream
from tunesmith.data import rows as readers
from tunesmith.data.lines import Item

TEXTS = [
    "[]",
    " \n[ ]\n",
    '[{"a": 1}]',
    '[{"a": 1}, {"a": "é\\n\\u00e9"},\n\n "words", [1], 12,\n null, {"b": {"c": [1, 2, "]"]}}]  \n',
    '\ufeff[{"a": 1}\n,{"a": 2}]',
    '[{"a": 1},]',
    '[{"a": 1} {"a": 2}]',
    '[{"a": 1}, {"a": 2}] more',
    '[{"a": 1}, {"a": 2}',
    '[{"a": 1}, {"a": tru}, {"a": 2}]',
    '[{"a": 1},\n {"a": 1, "a": 2}]',
    '[{"a": 1},\n {"a": "\\ud800"}]',
    '[{"a": 1},\n {"a": NaN}]',
    "[1234567",
    "[",
    "",
    '{"data": [{"a": 1}, {"a": 2}]}',
    '{"a": 1}\n{"a": 2}\n',
    '{"a":\n 1} {"a": 2}\n',
    ' \n{"a":\n 1}\n\n {"a": 2}\n{"a"',
    '{"a": 1}\n',
    '{"a": 1}\n[1]',
    '[{"a": ' + "[" * 120 + "]" * 120 + "}]",
]


def items(path: Path) -> list[Item] | dict[str, object]:
    try:
        return list(readers.file_rows(path, path.name))
    except UserError as fault:
        return fault.to_dict()


@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_gives_what_the_whole_gives(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    at_once = items(path)
    monkeypatch.setattr(readers, "STREAM_BYTES", 0)
    for size in range(1, 40):
        monkeypatch.setattr(json_stream, "CHUNK_BYTES", size)
        assert items(path) == at_once, size


@pytest.mark.parametrize(
    "raw",
    [
        b'[{"a": "\xff"}]',
        gzip.compress(b'[{"a": 1}]', mtime=0)[:-9],  # of one time: each worker collects the same names
        b"\xff\xfe[\0{\0}\0]\0",
    ],
)
def test_bytes_that_are_no_text_are_told_alike(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("rows.json.gz" if raw[:2] == b"\x1f\x8b" else "rows.json")
    path.write_bytes(raw)
    at_once = items(path)
    monkeypatch.setattr(readers, "STREAM_BYTES", 0)
    assert items(path) == at_once


@pytest.mark.parametrize("is_array", [True, False])
def test_what_is_sound_is_never_read_at_once(is_array: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": "x" * (i % 50), "n": i} for i in range(200)]
    path = tmp_path / "rows.json"
    text = json.dumps(rows, indent=1) if is_array else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    at_once = items(path)
    monkeypatch.setattr(readers, "STREAM_BYTES", 0)
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 64)
    monkeypatch.delattr(readers, "read_whole")
    assert items(path) == at_once and len(at_once) == 200
