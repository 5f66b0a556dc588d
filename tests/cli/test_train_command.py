"""`tunesmith train` for real on a tiny model: what goes to which stream, and that Ctrl-C leaves a run to resume."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tunesmith.cli.main import main
from tunesmith.core.run import RunFolder
from tunesmith.models.tiny import write_tiny

COMMAND = [sys.executable, "-m", "tunesmith"]
STEPS = 100


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, rows and a recipe."""
    folder = tmp_path_factory.mktemp("train")
    write_tiny(folder / "tiny", "llama")
    rows = [{"question": f"what does light {n} mean", "answer": "the tank is empty"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small.yaml").write_text(
        "model: tiny\ndata: {source: rows.jsonl}\nmethod: {name: lora, rank: 2}\nevaluate: exact_match\n"
        "train: {steps: 4, tokens_per_step: 128, micro_tokens: 128, validations: 2}\ngenerate: {max_new_tokens: 3}\n"
    )
    return folder


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Train = Callable[..., Done]


@pytest.fixture
def train(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """`tunesmith train` in this process, which has imported everything."""
    monkeypatch.chdir(place)

    def run(*words: str) -> Done:
        code = main(["train", *words])
        return Done(code, *capsys.readouterr())

    return run


def test_stdout_is_the_run_and_stderr_what_happened(place: Path) -> None:
    """In a process of its own, where libraries have their first word, too."""
    words = [*COMMAND, "train", "small.yaml"]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"runs/small-\d+\n", done.stdout)
    assert (place / done.stdout.strip() / "model").is_dir()
    lines = done.stderr.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\dZ ", line) for line in lines), "nobody else's bar or warning"
    assert any(re.search(r" train start run=runs/small-\d+ steps=4 ", line) for line in lines)
    assert any(re.search(r" train step=2 of=4 train_loss=\S+ validation_loss=\S+ ", line) for line in lines)
    assert " train done seconds=" in lines[-1]


def test_json_is_one_line_with_the_promised_keys(train: Train) -> None:
    done = train("small.yaml", "train.steps=2", "--json", "--quiet")
    assert done.stderr == ""
    value = json.loads(done.stdout)
    assert set(value) == {"run", "steps", "tokens_per_second", "loss"}
    assert (value["steps"], done.stdout.count("\n")) == (2, 1)
    assert value["loss"] > 0


def test_events_are_json_lines_on_stderr(train: Train) -> None:
    done = train("small.yaml", "train.steps=2", "--events", "jsonl")
    kinds = [json.loads(line)["type"] for line in done.stderr.splitlines()]
    assert {"started", "progress", "metric", "saved", "finished"} <= set(kinds)


@pytest.mark.parametrize("num_steps", [0, 3])
def test_ctrl_c_saves_and_the_run_goes_on(place: Path, train: Train, num_steps: int) -> None:
    """Before the first step as well as in the midst of training."""
    words = ["train", "small.yaml", f"train.steps={STEPS}", f"name=long{num_steps}", "train.patience=0"]
    process = subprocess.Popen([*COMMAND, *words], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = RunFolder(place / "runs" / f"long{num_steps}-1")
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if run.state == "running" and len(run.read_metrics()) >= num_steps:
            break
        time.sleep(0.01)
    assert run.state == "running", "the training begins within two minutes"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert f"resume   tunesmith train --resume runs/{run.name}" in err
    assert run.state == "stopped"
    assert len(run.read_metrics()) < STEPS
    done = train("--resume", f"runs/{run.name}", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == STEPS


def test_a_run_that_is_not_there_is_named(train: Train) -> None:
    done = train("--resume", "runs/nothing")
    assert done.returncode == 1
    assert done.stderr.startswith('error  "runs/nothing" is not a run folder')


def test_an_unwritable_home_is_one_line(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = train("small.yaml", "--home", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr == f"error  {tmp_path / 'file'}: the home must be a folder. Name a folder. [bad_home]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
