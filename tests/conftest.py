"""What every test relies on: one thread per worker, no network, and a home of its own."""

from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path

import pytest

# Before torch is imported anywhere: two workers with two threads each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TUNESMITH_ROW_CACHE_GIB="0")
for name in ("NO_COLOR", "FORCE_COLOR", "TUNESMITH_HOME", "TUNESMITH_ACCESSIBLE"):
    os.environ.pop(name, None)

# A shell starts background jobs with Ctrl-C ignored, and that is inherited: tests of Ctrl-C could not work there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
SLOW = (
    *("steps/test_search.py", "test_recipes.py", "steps/test_train.py", "cli/test_serve_command.py"),
    *("cli/test_train_command.py", "steps/test_continue_and_merge.py", "steps/test_compare_seeds.py"),
    *("durability/test_sweep.py", "steps/test_train_heads.py", "durability/test_exact_resume.py", "steps/test_demo.py"),
    *("training/test_compiling.py", "steps/test_plan.py", "steps/test_compare.py", "cli/test_search_command.py"),
)
"""Files that take longest, longest first. A worker takes a whole file, so one that begins last is waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files (`make test` keeps this order between workers)."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(SLOW)}
    assert all(path.is_file() for path in places), "a slow file is gone: mend SLOW"
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what was imported out of later collections of garbage: each would look through a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data and models beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, the folder of public data and models, which is not here")
    return folder
