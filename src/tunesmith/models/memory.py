"""How much memory is free, how to tell that it ran out, and how to go on with smaller batches.

On a processor Linux hands out more memory than there is and kills whoever uses it; a limit of a container or of the
process is met earlier. So what is free is the least of what the machine, the container and the process still may take.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from tunesmith.core.errors import UserError
from tunesmith.models.meter import release

_PROCESSOR = torch.device("cpu")
T = TypeVar("T")
G = TypeVar("G", bound=Sequence[int])
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Limit and use of the container, in version 2 and 1 of control groups."""
_WORDS = ("can't allocate memory", "not enough memory", "could not create a memory")
_PRIMITIVE = "could not create a primitive"
"""All that oneDNN says when it has no room for its work (met with `ulimit -v`); with more words it is another fault."""


def free_memory_bytes(device: torch.device = _PROCESSOR) -> int:
    """What may still be taken on a device, in bytes; what PyTorch holds and does not use counts as free."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    rooms = [psutil.virtual_memory().available, *_container_rooms(), *_process_rooms()]
    return max(0, min(rooms))


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether PyTorch (or oneDNN under it) could not get memory, on any device."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(fault).lower() if isinstance(fault, RuntimeError) else ""
    return any(words in text for words in _WORDS) or text.strip() == _PRIMITIVE


def let_go(*dropped: weakref.ref[Any]) -> None:
    """Give back what nobody holds any more: a broken pass leaves cycles of frames and tensors.

    glibc keeps what is freed for its next `malloc`; oneDNN, which asks the system itself, would find nothing. Where all
    of `dropped` is gone already, there are no cycles to look for (`meter.release`).
    """
    release(*dropped)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(run: Callable[[], T]) -> tuple[T, bool] | tuple[None, bool]:
    """What `run` gives and True; None and False where memory ran out.

    The fault itself is gone when this returns, with the frames that hold its tensors, so there is room to try again.
    """
    try:
        return run(), True
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
    let_go()
    return None, False


@dataclass
class Shrinking:
    """Batches that become smaller when memory runs out, and stay so."""

    limit: int = 0
    """No batch that costs more is tried any more; 0 before memory first ran out."""
    num_halved: int = 0

    def each(
        self,
        groups: Iterable[G],
        run: Callable[[G], T],
        *,
        cost: Callable[[G], int] = len,
        on_halved: Callable[[int], None] = lambda limit: None,
    ) -> Iterator[tuple[G, T]]:
        """Each batch, in order, with what `run` makes of it; one that is too large comes as its two halves.

        `cost` tells how much a batch asks for: its rows, or its tokens. `on_halved` is told the new limit.

        Raises:
            UserError: Memory ran out with a single row.
        """
        waiting = deque(groups)
        while waiting:
            group = waiting.popleft()
            if len(group) > 1 and 0 < self.limit < cost(group):
                waiting.extendleft(_halves(group))
                continue
            found, is_done = attempt(lambda group=group: run(group))  # type: ignore[misc]
            if is_done:
                yield group, found  # type: ignore[misc]
                continue
            if len(group) == 1:
                raise out_of_memory("one row alone")
            self.num_halved += 1
            self.limit = cost(group) // 2
            on_halved(self.limit)
            waiting.extendleft(_halves(group))


def padded_tokens(lengths: Sequence[int]) -> Callable[[Sequence[int]], int]:
    """The cost of a batch of rows of these lengths: its tokens, padding included."""
    return lambda group: len(group) * max(lengths[place] for place in group)


def out_of_memory(what: str) -> UserError:
    """The fault of a machine that is too small for the least piece of work."""
    return UserError(
        f"memory ran out with {what}.",
        code="out_of_memory",
        where="",
        remedy="Close other programs, shorten rows with data.max_length, or take a smaller model.",
    )


def _halves(group: G) -> tuple[G, G]:
    """Second half, first half: as a queue's left end takes them."""
    middle = (len(group) + 1) // 2
    return group[middle:], group[:middle]  # type: ignore[return-value]


def _container_rooms() -> Iterator[int]:
    for limit, use in _CGROUPS:
        try:
            text = limit.read_text().strip()
            used = int(use.read_text())
        except (OSError, ValueError):
            continue
        if text.isdigit():  # otherwise "max"
            yield int(text) - used + _reclaimable(use.parent)


def _reclaimable(group: Path) -> int:
    """Of a container's use, pages of files that are given up when memory is needed."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    found = dict(line.split() for line in lines)
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _process_rooms() -> Iterator[int]:
    """What `ulimit -v` leaves; there is none on Windows."""
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms
