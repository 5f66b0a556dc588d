"""Readers keep file and line, and say what is wrong with hostile files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.data.json_text import JsonFault, parse_json
from tunesmith.data.lines import MAX_LINE_BYTES, Fault
from tunesmith.data.pieces import PIECE_CHARACTERS, split_long
from tunesmith.data.rows import RawRow, read_rows

SUITE = Path(__file__).parents[2].parent / "shared" / "data" / "json-test-suite" / "test_parsing"
SUITE_FILES = sorted(SUITE.glob("*.json")) if SUITE.is_dir() else []

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        raw = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write_file


def rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return [(item.origin.line, dict(item.values)) for item in read_rows(path) if isinstance(item, RawRow)]


def faults(path: Path) -> list[tuple[int, str]]:
    return [(i.origin.line, i.code) for i in read_rows(path, on_fault="skip") if isinstance(i, Fault)]


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as fault:
        list(read_rows(path))
    return fault.value


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl_keeps_lines_over_blank_ones_and_any_line_end(write: Write, suffix: str) -> None:
    path = write("a.jsonl" + suffix, b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": "\xc3\xa4"}')
    assert rows(path) == [(1, {"a": 1}), (4, {"a": "ä"})]


def test_a_json_array_keeps_the_line_of_each_row(write: Write) -> None:
    assert rows(write("a.json", '[\n {"a": 1},\n\n {"a":\n 2}, "words"\n]')) == [
        (2, {"a": 1}),
        (4, {"a": 2}),
        (5, {"text": "words"}),
    ]


def test_a_json_object_around_one_list_gives_its_rows(write: Write) -> None:
    path = write("a.json", '{"version": 2, "ids": [1, 2],\n"data": [{"a": 1},\n{"a": 2}]}')
    assert rows(path) == [(2, {"a": 1}), (3, {"a": 2})]


def test_a_json_object_that_is_a_conversation_is_one_row(write: Write) -> None:
    path = write("a.json", '{"messages": [{"role": "user", "content": "x"}]}')
    assert rows(path) == [(1, {"messages": [{"role": "user", "content": "x"}]})]


def test_json_lines_in_a_json_file_are_read_as_lines(write: Write) -> None:
    assert rows(write("a.json", '{"a": 1}\n{"a": 2}\n')) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_json_file_that_holds_no_rows_is_refused(write: Write) -> None:
    assert refusal(write("a.json", '{"x": {"file": 1}, "y": {"file": 2}}')).code == "wrong_shape"
    assert refusal(write("b.json", "42")).code == "wrong_shape"


def test_csv_rows_have_the_line_where_they_start(write: Write) -> None:
    path = write("a.csv", 'text,label\n"two\nlines, ""quoted""",x\n\nlast,y\n')
    assert rows(path) == [(2, {"text": 'two\nlines, "quoted"', "label": "x"}), (5, {"text": "last", "label": "y"})]


def test_csv_with_semicolons_crlf_and_a_byte_order_mark_is_read(write: Write) -> None:
    assert rows(write("a.csv", b"\xef\xbb\xbfa;b\r\n1;2\r\n")) == [(2, {"a": "1", "b": "2"})]


def test_tsv_is_divided_at_tabs_only(write: Write) -> None:
    assert rows(write("a.tsv", "a\tb\n1,5\t2\n")) == [(2, {"a": "1,5", "b": "2"})]


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a", "b"], "tags": [["x"], []]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(1, {"text": "a", "tags": ["x"]}), (2, {"text": "b", "tags": []})]


def test_a_file_that_is_no_parquet_is_refused(write: Write) -> None:
    pytest.importorskip("pyarrow")
    assert refusal(write("a.parquet", "PAR1 but not really")).code == "bad_parquet"


def test_parquet_without_pyarrow_names_the_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    error = refusal(write("a.parquet", "x"))
    assert (error.code, error.remedy) == ("missing_extra", 'Run: pip install "tunesmith[parquet]"')


def test_text_is_read_in_pieces_that_lose_nothing(write: Write) -> None:
    text = "\n\n".join(f"Paragraph {i}. " + "word " * 60 for i in range(40))
    found = rows(write("a.txt", text))
    assert all(len(row["text"]) <= PIECE_CHARACTERS for _, row in found)
    assert " ".join(" ".join(row["text"] for _, row in found).split()) == " ".join(text.split())
    assert [line for line, _ in found] == sorted({line for line, _ in found})
    assert all(row["text"].startswith("Paragraph") for _, row in found)


def test_a_long_line_of_text_is_cut_at_sentences() -> None:
    text = " ".join(f"Sentence number {i} is here." for i in range(200))
    pieces = split_long(text, 300)
    assert all(len(piece) <= 300 and piece.endswith(".") for piece in pieces)
    assert " ".join(pieces) == text


def test_a_word_longer_than_a_piece_is_cut() -> None:
    assert split_long("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_a_folder_is_read_in_order_without_hidden_files(write: Write, tmp_path: Path) -> None:
    write("set/b.jsonl", '{"n": 2}\n')
    write("set/a.csv", "n\n1\n")
    write("set/sub/c.jsonl.gz", '{"n": 3}\n')
    write("set/.hidden.jsonl", "nonsense")
    write("set/README.md", "about")
    assert [row["n"] for _, row in rows(tmp_path / "set")] == ["1", 2, 3]


def test_a_link_out_of_its_folder_is_refused(write: Write, tmp_path: Path) -> None:
    write("set/a.jsonl", '{"n": 1}\n')
    (tmp_path / "set" / "b.jsonl").symlink_to(write("secret.jsonl", '{"n": 2}\n'))
    assert refusal(tmp_path / "set").code == "link_out"


def test_a_missing_file_names_the_nearest(write: Write, tmp_path: Path) -> None:
    write("tickets.jsonl", "{}")
    error = refusal(tmp_path / "tickest.jsonl")
    assert error.code == "no_file"
    assert "tickets.jsonl?" in error.remedy


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz"])
def test_an_empty_file_is_refused(write: Write, name: str) -> None:
    assert refusal(write(name, "\n  \n")).code == "empty_file"


def test_an_unknown_type_names_the_known_ones(write: Write) -> None:
    error = refusal(write("a.xlsx", "x"))
    assert error.code == "unknown_type"
    assert ".jsonl" in error.remedy


def test_latin_1_is_named_with_offset_and_remedy(write: Write) -> None:
    error = refusal(write("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n'))
    assert error.where.endswith("a.jsonl:2")
    assert error.message == "byte 0xE9 at offset 19 is not UTF-8."
    assert "iconv -f LATIN1" in error.remedy


def test_utf_16_is_named(write: Write) -> None:
    error = refusal(write("a.csv", "a,b\n1,2\n".encode("utf-16")))
    assert (error.code, error.message) == ("not_utf8", "the file is UTF-16, not UTF-8.")


def test_faults_are_put_aside_with_their_lines_when_asked(write: Write) -> None:
    lines = ['{"a": 1}'] * 5000 + ['{"a": 1 "b": 2}', "[1]", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": "\\ud800"}']
    path = write("a.jsonl", "\n".join([*lines, '{"a": 3}']))
    assert faults(path) == [
        (5001, "invalid_json"),
        (5002, "not_an_object"),
        (5003, "invalid_json"),
        (5004, "repeated_key"),
        (5005, "lone_surrogate"),
    ]
    assert sum(isinstance(item, RawRow) for item in read_rows(path, on_fault="skip")) == 5001


def test_the_first_fault_stops_with_file_line_and_column(write: Write) -> None:
    error = refusal(write("a.jsonl", '{"a": 1}\n{"a": 1 "b": 2}\n'))
    assert error.line().endswith('a.jsonl:2: expected "," at column 9. Mend the line. [invalid_json]')


def test_a_line_of_50_mb_is_put_aside_and_the_next_is_read(write: Write) -> None:
    path = write("a.jsonl", b'{"a": "' + b"x" * 50_000_000 + b'"}\n{"a": 1}\n')
    found = list(read_rows(path, on_fault="skip"))
    assert [item.code if isinstance(item, Fault) else item.origin.line for item in found] == ["line_too_long", 2]
    assert MAX_LINE_BYTES < 50_000_000


def test_a_truncated_gzip_says_so_and_keeps_what_came_before(write: Write) -> None:
    whole = write("a.jsonl.gz", "".join(f'{{"n": {i}, "x": "{i * 7919}"}}\n' for i in range(20000)))
    whole.write_bytes(whole.read_bytes()[:-2000])
    assert refusal(whole).code == "broken_gzip"
    found = list(read_rows(whole, on_fault="skip"))
    assert isinstance(found[-1], Fault) and found[-1].code == "broken_gzip"
    assert len(found) > 1000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_a_gzip_bomb_is_refused(write: Write, name: str) -> None:
    line = b'{"a": "' + b"0" * 1_000_000 + b'"}\n'
    assert refusal(write(name, line * 200)).code == "gzip_bomb"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 101 + "]" * 101])
def test_deep_nesting_is_a_fault_and_not_a_crash(write: Write, text: str) -> None:
    assert refusal(write("a.jsonl", text)).code == "too_deep"


def test_brackets_inside_strings_are_no_nesting(write: Write) -> None:
    text = json.dumps({"a": "[" * 500 + '\\"' + "{" * 500})
    assert len(rows(write("a.jsonl", text))) == 1


def test_nul_bytes_are_faults(write: Write) -> None:
    assert faults(write("a.csv", "a,b\n1,\0\n3,4\n")) == [(2, "nul_byte")]
    assert faults(write("a.txt", "one\ntw\0o\nthree\n")) == [(2, "nul_byte")]
    assert faults(write("a.jsonl", '{"a": "\0"}')) == [(1, "invalid_json")]


def test_rows_with_the_wrong_number_of_cells_are_faults(write: Write) -> None:
    assert faults(write("a.csv", "a,b\n1,2,3\n4,5\n6\n")) == [(2, "wrong_columns"), (4, "wrong_columns")]


def test_a_quote_that_is_never_closed_is_named_where_it_opens(write: Write) -> None:
    assert faults(write("a.csv", 'a,b\n1,2\n3,"open\n5,6\n')) == [(3, "open_quote")]


@pytest.mark.parametrize("header", ["a,a", "a,"])
def test_a_header_without_distinct_names_is_refused(write: Write, header: str) -> None:
    assert refusal(write("a.csv", f"{header}\n1,2\n")).code == "bad_header"


def test_bad_json_in_an_array_says_that_the_rest_was_not_read(write: Write) -> None:
    error = refusal(write("a.json", '[{"a": 1},\n{"a": 2}\n{"a": 3}]'))
    assert error.message == 'expected "," at column 1; what follows was not read.'
    assert error.where.endswith(":3")


def test_integers_of_thousands_of_digits_are_a_fault(write: Write) -> None:
    assert refusal(write("a.jsonl", '{"a": ' + "9" * 5000 + "}")).code == "invalid_json"


@pytest.mark.skipif(not SUITE_FILES, reason="needs ../shared/data/json-test-suite")
@pytest.mark.parametrize("path", SUITE_FILES, ids=lambda path: path.stem)
def test_the_json_test_suite_is_decided_as_it_says(path: Path) -> None:
    try:
        found = list(read_rows(path, on_fault="skip"))
        codes = {item.code for item in found if isinstance(item, Fault)}
    except UserError as fault:
        codes = {fault.code}
    if path.name.startswith("n_"):
        assert codes & {"invalid_json", "not_utf8", "too_deep", "empty_file"}
    elif path.name.startswith("y_"):
        text = path.read_text(encoding="utf-8")
        try:
            assert parse_json(text) == json.loads(text)
        except JsonFault as fault:
            assert fault.code == "repeated_key"  # JSON allows it; a row would lose a value
