"""What the machine is, and the precision it is good at."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tunesmith.models import machine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine._remembered_ratio.cache_clear()
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    return tmp_path / "tunesmith"


def test_a_wish_is_granted() -> None:
    assert machine.preferred_precision("fp32") == ("fp32", 0.0)
    assert machine.preferred_precision("bf16") == ("bf16", 0.0)


def test_auto_measures_quickly_and_remembers(cache: Path) -> None:
    started = time.perf_counter()
    precision, ratio = machine.preferred_precision("auto")
    assert time.perf_counter() - started < 5  # 0.1 s on an idle machine
    assert precision == ("bf16" if ratio >= machine.WORTH_IT else "fp32")
    (file,) = cache.iterdir()
    file.write_text('{"ratio": 9.5}')
    machine._remembered_ratio.cache_clear()
    assert machine.preferred_precision("auto") == ("bf16", 9.5)


@pytest.mark.parametrize("text", ["", "[]", '{"ratio": null}'])
def test_a_damaged_memory_is_measured_again(text: str, cache: Path) -> None:
    machine.preferred_precision("auto")
    (file,) = cache.iterdir()
    file.write_text(text)
    machine._remembered_ratio.cache_clear()
    assert machine.preferred_precision("auto")[1] > 0
    assert "processor" in file.read_text()


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert machine.preferred_precision("auto")[1] > 0


def test_the_machine_is_described_in_plain_values(cache: Path) -> None:
    found: dict[str, Any] = machine.describe().to_dict()
    assert found["cores"] >= 1
    assert found["memory_bytes"] > found["available_bytes"] > 0
    assert found["processor"]
    assert found["device"] == "cpu"
    assert found["precision"] in ("bf16", "fp32")


def test_peak_memory_counts_what_was_held() -> None:
    before = machine.peak_memory_bytes()
    block = bytearray(before + 50_000_000)  # more than ever before
    block[::4096] = b"x" * len(block[::4096])
    assert machine.peak_memory_bytes() - before > 40_000_000
