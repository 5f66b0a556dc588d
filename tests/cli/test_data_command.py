"""`tunesmith data`: what stands on stdout, in colour and without, and what is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def rows() -> str:
    given = [chat(f"Question {i}?", f"Answer {i}.") for i in range(20)]
    lines = [*map(json.dumps, given), '{"messages": [}', json.dumps({"messages": [{"role": "user", "content": "x"}]})]
    Path("rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "rows.jsonl"


def test_check_names_lines_and_remedies_and_fails_for_errors(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "check", rows, "--quiet")
    assert code == 1
    assert out.startswith("rows.jsonl   22 rows · ") and "OpenAI chat · UTF-8" in out.splitlines()[0]
    assert "✗ 2 errors, in rows that cannot be trained on" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "rows.jsonl:21 invalid_json expected a value at column 15 mend the line" in lines
    assert any(line.startswith('rows.jsonl:22 no_assistant last message is "user"') for line in lines)
    assert "[Answer 0.<|im_end|>]⏎" in out
    assert "20 of 22 rows can be trained on." in out
    assert "next    tunesmith data check rows.jsonl --repair rows.clean.jsonl" in out


def test_no_line_is_wider_than_the_terminal(
    rows: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (80, 100, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        _, out, _ = run(capsys, "data", "check", rows, "--quiet")
        assert max(map(len, out.splitlines())) <= width


def test_the_next_commands_work_as_printed(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "data", "check", rows, "--quiet")
    commands = [line.removeprefix("next").split()[1:] for line in out.splitlines() if "  tunesmith data" in line]
    assert len(commands) == 2
    for words in commands:
        run(capsys, *words, "--quiet")
    assert Path("rows.clean.jsonl").is_file()
    code, out, _ = run(capsys, "data", "check", "rows.clean.jsonl", "--quiet")
    assert code == 0 and "nothing is wrong with these rows" in out


def test_check_as_json_has_every_place(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "check", rows, "--json")
    report = json.loads(out)
    assert code == 1
    assert {finding["code"]: finding["places"] for finding in report["findings"]} == {
        "invalid_json": ["rows.jsonl:21"],
        "no_assistant": ["rows.jsonl:22"],
    }


def test_check_looks_for_held_out_rows(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("held.jsonl").write_text(json.dumps(chat("QUESTION 3?", "answer 3.")) + "\n", encoding="utf-8")
    _, out, _ = run(capsys, "data", "check", rows, "--test", "held.jsonl", "--quiet")
    assert "held.jsonl:1 but for case, spacing or Unicode form" in out


def test_settings_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text("mr,says\nx,hello you\ny,good day\n", encoding="utf-8")
    code, _, err = run(capsys, "data", "check", "a.csv")
    assert code == 1 and "[unknown_format]" in err
    code, out, _ = run(capsys, "data", "check", "a.csv", "data.columns={mr: prompt, says: completion}", "--quiet")
    assert code == 0 and "2 of 2 rows can be trained on." in out


def test_show_puts_what_is_learnt_in_brackets_or_in_colour(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "show", f"{rows}:3")
    assert code == 0
    assert "rows.jsonl:3   chat" in out
    assert "[Answer 2.<|im_end|>]⏎" in out
    _, out, _ = run(capsys, "data", "show", f"{rows}:3", "--color", "always")
    assert "\x1b[4;32mAnswer 2.<|im_end|>\x1b[0m⏎" in out and "[Answer" not in out


def test_show_says_why_a_row_cannot_be_read(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "show", f"{rows}:21")
    assert code == 0 and "expected a value at column 15" in out


def test_show_as_json_has_the_pieces(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "data", "show", rows, "--rows", "2", "--json")
    report = json.loads(out)
    assert [row["where"] for row in report["rows"]] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert {"text": "Answer 0.<|im_end|>", "part": "trained"} in report["rows"][0]["pieces"]


def test_prepare_prints_the_folder(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "prepare", rows, "data.on_fault=skip", "--out", "set", "--quiet")
    assert (code, out) == (0, "set\n")
    assert {path.name for path in Path("set").iterdir()} == {
        "train.jsonl",
        "validation.jsonl",
        "card.json",
        "README.md",
        "manifest.json",
    }


def test_prepare_of_a_faulty_file_names_the_line_and_writes_nothing(
    rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "data", "prepare", rows, "--out", "set", "--quiet")
    assert (code, out) == (1, "")
    assert "rows.jsonl:21: expected a value at column 15" in err
    assert not Path("set").exists()


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "data", "check", "nothing.jsonl", "--quiet")
    assert code == 1
    assert "nothing.jsonl: there is no such file." in err and "Traceback" not in err


def test_a_recipe_can_be_named(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "model: tunesmith/base\ndata: {source: rows.jsonl, max_length: 16}\n"
    Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    _, out, _ = run(capsys, "data", "check", "recipe.yaml", "--json")
    assert json.loads(out)["max_length"] == 16
