"""`tunesmith search`: what stands on stdout, what is an error, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.cli.main import main
from tunesmith.models.tiny import write_tiny

COMMAND = [sys.executable, "-m", "tunesmith"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_tiny(folder / "tiny", "llama")
    rows = [{"question": f"what does light {n} mean", "answer": "the tank is empty"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small.yaml").write_text(
        "model: {name: tiny, precision: fp32}\ndata: {source: rows.jsonl}\n"
        "method: {name: lora, rank: {any_of: [1, 2]}}\n"
        "evaluate: exact_match\ngenerate: {max_new_tokens: 2}\n"
        "train:\n  {steps: 2, tokens_per_step: 128, micro_tokens: 128, validations: 2,\n"
        "   lr: {low: 1e-3, high: 1e-1, log: true}}\n"
        "search: {trials: 3, train_best: false}\n"
    )
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_best_trials_stand_on_stdout(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(capsys, "search", "small.yaml", "--home", "a")
    lines = out.splitlines()
    assert code == 0, err
    assert lines[0].split() == ["trial", "validation", "loss", "method.rank", "train.lr", "steps", "took"]
    losses = [float(line.split()[1]) for line in lines[1:4]]
    assert losses == sorted(losses)
    assert "page     a/searches/small-1/search.html" in out
    assert "next     tunesmith train a/searches/small-1/best.yaml" in out
    assert " search start search=a/searches/small-1 trials=3 metric=validation_loss" in err
    assert err.count(' label="trial ') >= 3


def test_json_is_one_object_with_the_promised_keys(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    code, out, err = run(capsys, "search", "small.yaml", "--trials", "1", "--json", "--quiet", "--home", "b")
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert {
        "search",
        "metric",
        "higher_is_better",
        "best",
        "best_run",
        "counts",
        "importance",
        "trials",
        "files",
    } <= set(value)
    assert value["counts"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert {"trial", "params", "value", "recipe"} <= set(value["best"])


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "search what?"),
        (("small.yaml", "--jobs", "many"), 2, '--jobs cannot be "many"; give auto or a number.'),
        (("small.yaml", "--resume", "x"), 2, "leave the recipe out"),
        (("--resume", "nowhere"), 1, "nowhere: there is no search here."),
        (("--lr-range",), 2, "--lr-range needs a recipe"),
        (("small.yaml", "train.lr=[1, 2]"), 1, "train.lr"),
        (("small.yaml", "train.lr={low: 1, high: 0.1}"), 1, "the range is empty"),
        (("small.yaml", "--lr-range", "--low", "1", "--high", "0.1"), 1, "Set 0 < --low < --high."),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(place)
    found, out, err = run(capsys, "search", *words)
    assert (found, out) == (code, ""), err
    assert text in err


def test_the_range_test_prints_what_to_type(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = (
        "search",
        "small.yaml",
        "seed=3",
        "--lr-range",
        "--steps",
        "50",
        "--low",
        "1e-4",
        "--high",
        "10",
        "--home",
        "c",
    )
    code, out, err = run(capsys, *words)
    assert code == 0, err
    rate = out.split("train.lr=")[1].split()[0]
    assert 1e-4 < float(rate) < 10
    assert f"next     tunesmith train small.yaml seed=3 train.lr={rate}" in out
    code, out, _ = run(capsys, *words, "--json", "--quiet")
    value = json.loads(out)
    assert {"path", "lr", "override", "lowest_lr", "has_diverged", "steps", "points"} == set(value)
    assert value["override"] == f"train.lr={rate}"


def test_ctrl_c_ends_with_130_and_the_way_to_go_on(place: Path) -> None:
    words = ["search", "small.yaml", "train.steps=400", "--events", "jsonl", "--home", "d"]
    process = subprocess.Popen([*COMMAND, *words], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if '"progress"' in line and '"trial 1 of 3"' in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert "resume   tunesmith search --resume d/searches/small-1" in err
    state = json.loads((place / "d/searches/small-1/state.json").read_text())
    assert state["state"] == "stopped"
