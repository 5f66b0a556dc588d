"""A step of the optimiser in which memory may run out: it is done whole, tried again, or refused, never done twice.

Most memory is asked for in a tensor's first step, for what the optimiser remembers of it. So tensors that it remembers
nothing of go one by one: when memory runs out, one alone is unfinished, and what was made for it can be thrown away.
An optimiser changes each tensor by itself, so the numbers are those of one call for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build, names
from tunesmith.core.quantities import gib
from tunesmith.methods.base import Method
from tunesmith.models.memory import attempt
from tunesmith.recipe import TrainSettings
from tunesmith.training.optim import optimizer_bytes

NoRoom = Callable[[bool], UserError]
"""Makes the fault; it is told whether weights are already changed in part."""


def take_step(optimizer: Optimizer, no_room: NoRoom) -> bool:
    """Change the weights by their gradients; whether memory ran out on the way and it was tried again.

    Raises:
        UserError: Memory ran out again, or halfway through a tensor.
    """
    given = [group["params"] for group in optimizer.param_groups]
    fresh = [[one for one in tensors if one.grad is not None and not optimizer.state.get(one)] for tensors in given]
    if not any(fresh):
        return _tried(optimizer, no_room)
    known = [[one for one in tensors if optimizer.state.get(one)] for tensors in given]
    was_tried_again = False
    try:
        for number, tensors in enumerate(fresh):
            for one in tensors:
                _use(optimizer, [[one] if number == other else [] for other in range(len(given))])
                was_tried_again |= _tried(optimizer, no_room)
        if any(known):
            _use(optimizer, known)
            was_tried_again |= _tried(optimizer, no_room)
    finally:
        _use(optimizer, given)
    return was_tried_again


def no_room_to_step(
    settings: TrainSettings,
    method: Method,
    tensors: Mapping[str, nn.Parameter],
    hidden: frozenset[int],
    *,
    is_half_done: bool,
) -> UserError:
    """The fault of a step without room; it names the optimisers that remember less of these tensors.

    `hidden` are the identities of matrices inside the blocks.
    """
    needed = optimizer_bytes(tensors, settings, lambda one: id(one) in hidden)
    lighter = _lighter(settings, method, tensors, hidden, below=needed)
    instead = " or ".join(f"{name} ({gib(size)})" for name, size in lighter)
    remedy = f"Set train.optimizer={instead} instead of {settings.optimizer.name} ({gib(needed)}), " if instead else ""
    remedy += "train fewer weights (method=lora), " if method.trains_base_weights else ""
    state = (
        "; weights are changed in part, so the run ends, and its last checkpoint stands" if is_half_done else ", twice"
    )
    return UserError(
        f"memory ran out in the optimiser's step{state}.",
        code="out_of_memory",
        where="train.optimizer",
        remedy=f"{remedy}or close other programs." if remedy else "Close other programs.",
    )


def _lighter(
    settings: TrainSettings, method: Method, tensors: Mapping[str, nn.Parameter], hidden: frozenset[int], *, below: int
) -> list[tuple[str, int]]:
    """Optimisers for this method that remember less, the least first, with their bytes."""
    found = []
    for name in names("optimizers"):
        other = build("optimizers", name)
        try:
            other.check_method(method.name, trains_base_weights=method.trains_base_weights)
        except UserError:
            continue
        changed = settings.model_copy(update={"optimizer": other})
        size = optimizer_bytes(tensors, changed, lambda one: id(one) in hidden)
        if size < below:
            found.append((name, size))
    return sorted(found, key=lambda one: one[1])


def _tried(optimizer: Optimizer, no_room: NoRoom) -> bool:
    """Step at most twice; whether twice."""
    tensors = [one for group in optimizer.param_groups for one in group["params"]]
    new = [one for one in tensors if not optimizer.state.get(one)]
    before = _versions(optimizer, tensors)
    for is_again in (False, True):
        _, is_done = attempt(optimizer.step)
        if is_done:
            return is_again
        for one in new:  # what was made for it may be half of what belongs to it
            optimizer.state.pop(one, None)
        if _is_changed(before, _versions(optimizer, tensors)):
            raise no_room(True)
    raise no_room(False)


def _use(optimizer: Optimizer, tensors: Sequence[list[nn.Parameter]]) -> None:
    """Let the groups have these tensors."""
    for group, some in zip(optimizer.param_groups, tensors, strict=True):
        group["params"] = some


def _versions(optimizer: Optimizer, tensors: Sequence[nn.Parameter]) -> list[tuple[Tensor, int]]:
    """How often each tensor, and each that is remembered of it, has been written to."""
    found: list[tuple[Tensor, int]] = []
    for one in tensors:
        remembered = optimizer.state.get(one, {}).values()
        found += [(it, it._version) for it in (one, *remembered) if isinstance(it, Tensor)]
    return found


def _is_changed(before: Sequence[tuple[Tensor, int]], after: Sequence[tuple[Tensor, int]]) -> bool:
    pairs = zip(before, after, strict=False)
    return len(before) != len(after) or any(one is not other or was != now for (one, was), (other, now) in pairs)
