"""What a launcher is: it runs a training on some number of processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from tunesmith.core.plugins import Plugin


class Launcher(Plugin):
    """Where a training runs."""

    @abstractmethod
    def launch(self, run: Path, work: Callable[[], None]) -> None:
        """Carry out the training of a run folder; `work` does it in this process."""
