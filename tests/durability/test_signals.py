"""SIGINT and SIGTERM: the step is finished and saved, the exit code is 130, a second one stops at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from made_training import make_loop
from tunesmith.core.errors import Interrupted
from tunesmith.methods.lora import LoRA
from tunesmith.training.loop import Loop

SETTINGS = {"steps": 6, "validations": 3, "keep": "best"}


def _loop(folder: Path) -> Loop:
    return make_loop(folder, LoRA(rank=2), "llama", "sft", **SETTINGS)


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_before_it_loads_ends_with_130(tmp_path: Path, number: int) -> None:
    """It waits for its input in a pipe, so the signal falls just there."""
    pipe = tmp_path / "input.yaml"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "tunesmith", "train", str(pipe)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    with pipe.open("w"):  # opens when the command reads
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said == "stopped  interrupted; what was saved stays.\n"


def test_a_signal_in_the_last_step_stops_before_publishing_and_goes_on_there(tmp_path: Path) -> None:
    loop = _loop(tmp_path)

    def stop(step: int) -> None:
        if step == SETTINGS["steps"]:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped after step 6"):
        loop.fit(stop)
    assert _steps(tmp_path)[-1] == 6
    again = _loop(tmp_path)
    assert again.restore() == 6
    assert again.fit(lambda step: None).step == 6


def test_a_second_signal_stops_at_once_and_the_last_checkpoint_stands(tmp_path: Path) -> None:
    loop = _loop(tmp_path)

    def stop_twice(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped at once; the last checkpoint stands"):
        loop.fit(stop_twice)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    again = _loop(tmp_path)
    assert again.restore() == 2
    assert again.fit(lambda step: None).step == 6
