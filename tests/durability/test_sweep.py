"""Killed at the calls that change the disk, in Python and by strace: nothing saved is lost, nothing ends differently.

A part of the sweep; `python tests/durability/sweep.py` does all of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = Path(__file__).parent / "sweep.py"


def _sweep(*words: str) -> int:
    """How many kills there were, none of which lost anything."""
    done = subprocess.run([sys.executable, str(SWEEP), *words], capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("strace may not attach to processes here")
    assert done.returncode == 0, done.stdout + done.stderr
    return sum(int(number) for number in re.findall(r"(\d+) kills: 0 lost a checkpoint, 0 ended diff", done.stdout))


def test_checkpoints_survive_a_kill_at_any_call(tmp_path: Path) -> None:
    assert _sweep("checkpoints", "--every", "11") >= 15


def test_a_training_that_writes_its_checkpoints_beside_it_survives_a_kill(tmp_path: Path) -> None:
    assert _sweep("training", "--every", "61") >= 2


def test_checkpoints_survive_a_kill_at_system_calls(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    assert _sweep("checkpoints", "--strace", "--every", "40") >= 8
