"""What is free, what counts as running out, and batches that halve."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.models import memory
from tunesmith.models.memory import Shrinking, attempt, free_memory_bytes, is_out_of_memory
from tunesmith.models.meter import release


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("std::bad_alloc"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_memory_faults_are_told_from_others(fault):
    assert is_out_of_memory(fault)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))


def test_batches_halve_where_memory_runs_out_and_stay_so():
    tried, told = [], []

    def run(group):
        tried.append(group)
        if len(group) > 2:
            raise torch.OutOfMemoryError("too many")
        return sum(group)

    shrinking = Shrinking()
    found = list(shrinking.each([(1, 2), (3, 4, 5, 6, 7), (8, 9, 10)], run, on_halved=told.append))
    assert found == [((1, 2), 3), ((3, 4), 7), ((5,), 5), ((6, 7), 13), ((8, 9), 17), ((10,), 10)]
    assert tried == [(1, 2), (3, 4, 5, 6, 7), (3, 4), (5,), (6, 7), (8, 9), (10,)]  # no second attempt in vain
    assert told == [2] and shrinking.num_halved == 1


def test_one_row_that_does_not_fit_is_an_error_with_a_remedy():
    def run(group):
        raise MemoryError

    with pytest.raises(UserError, match="one row alone") as caught:
        list(Shrinking().each([(1, 2)], run))
    assert caught.value.code == "out_of_memory" and "data.max_length" in caught.value.remedy


def test_garbage_is_collected_where_a_cycle_holds_what_was_dropped(monkeypatch):
    class Big:
        own: Big

    honest, collections = gc.collect, []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(honest()))
    big = Big()
    gone = weakref.ref(big)
    del big
    release(gone)
    assert gone() is None and not collections
    big = Big()
    big.own, held = big, weakref.ref(big)
    del big
    assert held() is not None
    release(gone, held)
    assert held() is None and len(collections) == 1
    release()
    assert len(collections) == 2


def test_what_a_broken_attempt_held_is_gone_before_the_next():
    """The fault's traceback holds frames, and frames hold tensors: a common way to run out twice."""
    alive = []

    class Held(torch.Tensor):
        def __del__(self):
            alive.remove(id(self))

    def run():
        tensor = torch.zeros(3).as_subclass(Held)
        alive.append(id(tensor))
        raise torch.OutOfMemoryError("now")

    assert attempt(run) == (None, False)
    assert alive == []
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 / 0)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    group = tmp_path / "group"
    group.mkdir()
    for name, text in {
        "memory.max": "3000000",
        "memory.current": "2500000",
        "memory.stat": "inactive_file 100000",
    }.items():
        (group / name).write_text(text)
    monkeypatch.setattr(memory, "_CGROUPS", ((group / "memory.max", group / "memory.current"),))
    assert free_memory_bytes(torch.device("cpu")) == 600_000
    (group / "memory.max").write_text("max")
    assert free_memory_bytes(torch.device("cpu")) > 600_000


_LIMITED = """
import resource, torch
from tunesmith.models.memory import Shrinking, free_memory_bytes, attempt
import psutil
torch.ones(64, 64) @ torch.ones(64, 64)
limit = psutil.Process().memory_info().vms + (200 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
free = free_memory_bytes(torch.device("cpu"))
assert free <= 200 << 20, free
shrinking = Shrinking()
run = lambda group: float(torch.ones(len(group), 32 << 20).sum())
print([len(group) for group, _ in shrinking.each([tuple(range(4))], run)], shrinking.num_halved)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process's memory are Linux's")
def test_a_real_limit_of_memory_is_met_and_survived():
    """4 rows of 128 MiB do not fit into 200 MiB beside what is there; one at a time does."""
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 1, 1, 1] 2"
