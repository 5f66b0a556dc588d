"""A run keeps its precision and its threads, whatever the machine it goes on with would choose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tunesmith.core.run import RunFolder
from tunesmith.steps.train_choices import kept_precision, machine_line, settle
from tunesmith.training.choices import Choice, choices


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_a_run_that_goes_on_keeps_precision_and_threads(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    assert kept_precision(run) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    settle(run, "fp32", "fp32")
    assert (choices(run)["threads"].value, choices(run)["threads"].why) == (1, "OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    settle(run, "bf16", "auto")  # as another machine would choose
    assert kept_precision(run) == "fp32"
    assert torch.get_num_threads() == 1


def test_the_recipes_threads_go_before_the_environments_and_what_was_kept(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settle(run, "fp32", "fp32", 3)
    assert torch.get_num_threads() == 3
    assert choices(run)["threads"] == Choice(3, "train.threads is 3")
    torch.set_num_threads(1)
    settle(run, "fp32", "fp32", "auto")  # allowed by name on resume
    assert torch.get_num_threads() == 3
    settle(run, "fp32", "fp32", 2)
    assert (torch.get_num_threads(), choices(run)["threads"].value) == (2, 2)
    assert machine_line(run, "fp32") == "fp32 · 2 threads (train.threads is 2)"


def test_the_reason_says_what_was_measured(tmp_path: Path, threads: int) -> None:
    run = RunFolder(tmp_path)
    settle(run, "bf16", "auto")
    assert choices(run)["precision"].why.startswith("products are ")
    assert "as fast as in fp32" in choices(run)["precision"].why
