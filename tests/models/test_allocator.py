"""Freed memory is kept for the next step, and given back when it is asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from tunesmith.models.allocator import keep_freed_memory
from tunesmith.models.meter import release
import psutil
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
held = psutil.Process().memory_info().rss
release()
print(held - psutil.Process().memory_info().rss)
"""


def _run(**variables: str) -> tuple[bool, int, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    is_taken, faults, given_back = found.stdout.split()
    return is_taken == "True", int(faults), int(given_back)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_large_tensors_are_not_mapped_anew_and_can_be_given_back() -> None:
    is_taken, faults, given_back = _run()
    assert is_taken
    assert faults < 2**23 * 4 // 4096  # less than one tensor's pages, of twenty
    assert given_back > 2**23 * 4 // 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_what_the_user_has_set_stays() -> None:
    is_taken, faults, _ = _run(MALLOC_MMAP_THRESHOLD_="1048576")
    assert not is_taken
    assert faults > 10 * 2**23 * 4 // 4096
