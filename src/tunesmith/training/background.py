"""Checkpoints are written beside training: a step takes a copy of what trains, a thread writes it.

At most one is under way. Its failure fails the run at the next step; nothing counts as saved before it is on disk.
Where the system can, the thread takes mostly the processor time that training leaves.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.core.errors import Interrupted
from tunesmith.models.memory import free_memory_bytes
from tunesmith.training.checkpoint import Snapshot, TrainingState, as_is, save_checkpoint

MEMORY_SHARE = 0.5
"""Of the free memory that a copy may take with `auto`."""
NICENESS = 10
"""A tenth of the processor where training wants all of it, all of it where training waits."""


class Copies:
    """Copies of tensors in the processor's memory, which every snapshot uses again."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor's values as they are now."""
        source = tensor.detach()
        kept = self._kept.get(name)
        if kept is None or kept.shape != source.shape or kept.dtype != source.dtype:
            kept = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._kept[name] = kept
        return kept.copy_(source, non_blocking=source.is_cuda)


class CheckpointWriter:
    """Writes a run's checkpoints, in a thread where there is memory for a copy."""

    def __init__(
        self,
        folder: Path,
        *,
        tensors: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        identity: Mapping[str, Any],
        num_kept: int,
        has_best: bool,
        snapshot: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        self.folder = folder
        self.tensors = tensors
        self.optimizer = optimizer
        self.identity = identity
        self.num_kept = num_kept
        self.has_best = has_best
        self.snapshot = snapshot
        self._copies: Copies | None = None
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._written: list[Path] = []

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: object) -> None:
        """What is under way is finished, but where the user wants to stop at once."""
        if kind is None:
            self.wait()
        elif not issubclass(kind, Interrupted) and self._thread is not None:
            self._thread.join()

    def save(self, state: TrainingState) -> None:
        """Begin to write the run as it is now; waits for the one before."""
        self.wait()
        if self._copies is None and self._is_beside():
            self._copies = Copies()
        keep = self._copies or as_is
        snapshot = Snapshot.take(state, self.tensors, self.optimizer, keep)
        if self._copies is None:
            self._written.append(self._write(snapshot))
            return
        if any(tensor.is_cuda for tensor in self.tensors.values()):
            torch.cuda.current_stream().synchronize()
        self._thread = threading.Thread(target=self._work, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self) -> list[Path]:
        """The checkpoints that came to be on disk since the last call.

        Raises:
            UserError: The last one could not be written.
        """
        if self._thread is not None and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        written, self._written = self._written, []
        return written

    def wait(self) -> None:
        """Wait until nothing is under way.

        Raises:
            UserError: What was under way could not be written.
        """
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.1)  # a bounded wait lets signals through
        if self._fault is not None:
            self.poll()

    def _work(self, snapshot: Snapshot) -> None:
        try:
            if sys.platform == "linux":  # where priorities are of threads
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
            self._written.append(self._write(snapshot))
        except BaseException as fault:
            self._fault = fault

    def _write(self, snapshot: Snapshot) -> Path:
        return save_checkpoint(
            self.folder, snapshot, identity=self.identity, num_kept=self.num_kept, has_best=self.has_best
        )

    def _is_beside(self) -> bool:
        if self.snapshot != "auto":
            return self.snapshot == "on"
        return snapshot_bytes(self.tensors, self.optimizer) <= MEMORY_SHARE * free_memory_bytes()


def snapshot_bytes(tensors: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Memory that the copies take from the first checkpoint on: what trains and what its optimiser remembers."""
    moments = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    return sum(one.numel() * one.element_size() for one in (*tensors.values(), *moments))
