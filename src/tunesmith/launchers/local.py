"""Train in this process, on its CPU or its one accelerator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunesmith.launchers.base import Launcher


class Local(Launcher):
    """One process."""

    def launch(self, run: Path, work: Callable[[], None]) -> None:
        work()
