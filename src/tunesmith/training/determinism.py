"""The same bits each time on a GPU, which a run that goes on exactly needs; a processor gives them anyway.

Attention's backward pass (PyTorch's flash, varlen and memory-efficient kernels) adds up in any order unless
`torch.use_deterministic_algorithms(True)` is on, and with its `warn_only` it does so still: what has no such form then
fails. So it is on without `warn_only`, within training steps only, and given up for the run where an operation fails
for it. Nothing of it has run on CUDA yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import torch

from tunesmith.core.events import Emit, Warning
from tunesmith.core.run import RunFolder
from tunesmith.training.choices import Choice, choices, decided, keep

T = TypeVar("T")
NAME = "deterministic"
"""The choice's name."""
_settings: Any = import_module("torch.utils.deterministic")  # whose setting its types do not have
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_REFUSALS = ("does not have a deterministic implementation", "this operation is not deterministic")
"""What PyTorch says of its own operations and of cuBLAS."""


def prepare_exact_products(device: torch.device) -> None:
    """Ask cuBLAS for workspaces with which its products have the same bits; before its first product."""
    if device.type == "cuda":
        os.environ.setdefault(_WORKSPACE, ":4096:8")


class Determinism:
    """Whether a run's steps are the same bits each time; on a processor there is nothing to do."""

    def __init__(self, device: torch.device, emit: Emit) -> None:
        self.emit = emit
        self.is_on = device.type == "cuda"
        self._run: RunFolder | None = None

    def begin(self, run: RunFolder) -> None:
        """Take what the run came to before."""
        if self.is_on:
            self._run = run
            self.is_on = bool(decided(run, NAME, lambda: Choice(True, "a run that goes on needs it")).value)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within it operations give the same bits each time, or fail."""
        if not self.is_on:
            yield
            return
        before = torch.get_deterministic_debug_mode(), _settings.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        _settings.fill_uninitialized_memory = False  # it would write to all new memory first
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before[0])
            _settings.fill_uninitialized_memory = before[1]

    def run(self, work: Callable[[], T], forget: Callable[[], None] = lambda: None) -> T:
        """What `work` gives, done again without where an operation cannot; `forget` takes back the broken attempt."""
        try:
            with self.exact():
                return work()
        except RuntimeError as fault:
            if not self.gives_up(fault):
                raise
        forget()
        return work()

    def gives_up(self, fault: RuntimeError) -> bool:
        """Whether an operation failed for this alone; the run then goes on without it, and says so."""
        if not self.is_on or not any(words in str(fault) for words in _REFUSALS):
            return False
        self.is_on = False
        why = str(fault).partition(", but you set")[0].partition("\n")[0]
        if self._run is not None:
            keep(self._run, NAME, Choice(False, why))
        text = f"the same step may give other last digits when this run goes on: {why}"
        self.emit(Warning("train", "not_deterministic", text))
        return True


def not_exact(run: RunFolder) -> str:
    """Why a run's steps on a GPU are not the same bits each time; empty where they are."""
    kept = choices(run).get(NAME)
    return "" if kept is None or kept.value else kept.why
