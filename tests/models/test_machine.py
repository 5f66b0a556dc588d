"""What the machine is, and the precision it is good at."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.models import machine, rates


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates.measured.cache_clear()
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    yield tmp_path / "tunesmith"
    rates.measured.cache_clear()


def test_a_wish_is_granted() -> None:
    assert machine.preferred_precision("fp32") == ("fp32", 0.0)
    assert machine.preferred_precision("bf16") == ("bf16", 0.0)


def test_auto_measures_quickly_and_remembers(cache: Path) -> None:
    started = time.perf_counter()
    precision, ratio = machine.preferred_precision("auto")
    assert time.perf_counter() - started < 20  # a second on an idle machine
    assert precision == ("bf16" if ratio >= machine.WORTH_IT else "fp32")
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    kept["rates"] |= {"fp32_flops": 1e9, "bf16_flops": 9.5e9}
    file.write_text(json.dumps(kept))
    rates.measured.cache_clear()
    assert machine.preferred_precision("auto") == ("bf16", 9.5)


@pytest.mark.parametrize("text", ["", "[]", '{"threads": 2, "rates": {"fp32_flops": null}, "tried": {}}'])
def test_a_damaged_memory_is_measured_again(text: str, cache: Path) -> None:
    machine.preferred_precision("auto")
    (file,) = cache.iterdir()
    file.write_text(text)
    rates.measured.cache_clear()
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


def test_threads_follow_the_wish_and_otherwise_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert rates.thread_candidates() == (3,)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(rates, "num_cores", lambda: 8)
    monkeypatch.setattr(rates.psutil, "cpu_count", lambda logical: 4)
    assert rates.thread_candidates() == (4, 8)


def test_a_containers_share_of_the_processors_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(rates, "CPU_QUOTAS", (str(quota),))
    whole = rates.num_cores()
    quota.write_text("50000 100000")
    assert rates.num_cores() == 1
    quota.write_text("max 100000")
    assert rates.num_cores() == whole


def test_measuring_leaves_the_number_of_threads_alone() -> None:
    before = rates.torch.get_num_threads()
    found = rates.measure()
    assert rates.torch.get_num_threads() == before
    assert found.threads in rates.thread_candidates()
    assert min(found.rates.fp32_flops, found.rates.bf16_flops, found.rates.bytes_per_second) > 1e6
    assert 0 < found.rates.operation_seconds < 1e-2
