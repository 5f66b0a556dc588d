"""`tunesmith compare` and `evaluate`: what stands on stdout, at every width, and what is an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "reports"))
from made_report import made

from tunesmith.cli.main import main
from tunesmith.core.publish import sha256, write_json
from tunesmith.reports.compare_page import compare_page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("comparisons/manual")
    path.mkdir(parents=True)
    report, answers = made()
    (path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers), encoding="utf-8")
    (path / "compare.html").write_text(compare_page(report, answers), encoding="utf-8")
    report["files"] = {name: sha256(path / name) for name in ("answers.jsonl", "compare.html")}
    write_json(path / "report.json", report)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_table_at_100_columns(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = run(capsys, "compare", "--open", str(folder))
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["fact", "match", "s/answer", "train", "memory", "forgets"]
    assert lines[3].startswith("lora, rank 16")
    assert "├─●─┤      0.73  [0.63, 0.81]" in lines[3]
    assert lines[3].endswith("0.08  1 min 14 s  1.0 GiB   +5.7 %")
    assert lines[5].startswith("Worth it: lora, rank 16 answers 73 % of 96 held-out questions, the best prompt row")
    assert "fixed by lora, rank 16 47 · broken 5 · wrong in every row 21" in out
    assert "page     comparisons/manual/compare.html" in out
    assert "next     tunesmith compare --open comparisons/manual --show broken" in out
    assert max(map(len, lines)) <= 100


def test_narrow_terminals_shrink_the_drawing_and_then_drop_memory_and_forgetting_first(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, kept in (("90", ["s/answer", "train", "memory", "forgets"]), ("66", ["s/answer", "train"])):
        monkeypatch.setenv("COLUMNS", columns)
        _, out, _ = run(capsys, "compare", "--open", str(folder))
        lines = out.splitlines()
        assert lines[0].split() == ["fact", "match", *kept]
        assert "●" in lines[3]
        assert max(map(len, lines[:4])) <= int(columns)


def test_read_aloud_every_row_is_sentences(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_ACCESSIBLE", "1")
    _, out, _ = run(capsys, "compare", "--open", str(folder))
    assert (
        "Row 3 of 3: lora, rank 16\nfact match: 0.73, interval 0.63 to 0.81\ns/answer: 0.08\ntrain: 1 min 14 s" in out
    )
    assert "├" not in out


def test_json_is_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "compare", "--open", str(folder), "--json")
    value = json.loads(out)
    assert code == 0
    assert value["path"] == "comparisons/manual"
    assert [row["name"] for row in value["rows"]] == ["zero-shot", "retrieval, 3", "lora, rank 16"]


def test_broken_answers_are_shown_with_what_was_expected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "compare", "--open", str(folder), "--show", "broken")
    assert out.startswith("5 questions broken by lora, rank 16\n")
    first = out.split("\n\n")[1].splitlines()
    assert first[1].split(None, 1) == ["expected", "The water tank is empty."]
    assert "✓ The water tank is empty." in first[3]
    assert "✗ Once upon a <b>time</b>" in first[4]
    assert out.count("expected") == 5


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["compare"], 2, "compare what?"),
        (["compare", "--open", "nowhere"], 1, "nowhere: there is no comparison here. tunesmith compare RECIPE"),
        (["compare", "missing.yaml"], 1, "missing.yaml: there is no such recipe."),
        (["compare", "--open", "x", "--show", "all"], 2, '--show cannot be "all"; use fixed, broken or wrong.'),
        (["compare", "r.yaml", "--open", "x"], 2, "--open shows an earlier comparison; leave the recipe out."),
        (["evaluate", "x", "--metrics", "acuracy"], 1, 'there is no metric "acuracy"; did you mean "accuracy"?'),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    found, out, err = run(capsys, *words)
    assert found == code
    assert text in " ".join(err.split())
    assert out == ""


def test_a_damaged_comparison_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "compare.html").write_text("", encoding="utf-8")
    code, _, err = run(capsys, "compare", "--open", str(folder))
    assert code == 1
    assert "compare.html is missing or was changed. Compare again. [damaged]" in " ".join(err.split())


@pytest.mark.parametrize("command", ["compare", "evaluate"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example: tunesmith {command} " in out


def test_evaluate_prints_scores_and_the_promised_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.models.tiny import write_tiny

    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "model", "llama", "causal")
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}.", "facts": [[str(i)]]} for i in range(5)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["evaluate", "model", "--data", "held.jsonl", "--metrics", "fact_match,perplexity", "--answers", "a.jsonl"]
    code, out, _ = run(capsys, *words, "--json")
    value = json.loads(out)
    assert code == 0
    assert set(value["scores"]) == {"fact_match", "perplexity"}
    assert set(value["scores"]["perplexity"]) >= {"value", "low", "high", "n"}
    assert value["scores"]["fact_match"]["n"] == 5
    assert len((tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()) == 5
    _, out, _ = run(capsys, *words)
    assert "fact match   0.00 [0.00, 0.43]" in out
    assert "5 rows · " in out
