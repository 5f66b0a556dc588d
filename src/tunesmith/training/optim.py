"""The optimiser over what trains, what it remembers, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from tunesmith.optimizers.base import Trained
from tunesmith.recipe import TrainSettings


def make_optimizer(
    tensors: Mapping[str, nn.Parameter],
    settings: TrainSettings,
    factor: Callable[[str], float] = lambda name: 1.0,
    decays: Callable[[str], bool] = lambda name: True,
    is_hidden: Callable[[nn.Parameter], bool] = lambda parameter: False,
) -> torch.optim.Optimizer:
    """The recipe's optimiser over what trains, by name; weight decay on matrices that `decays` names.

    Each group keeps its `factor`, by which the step's learning rate is multiplied (`set_learning_rate`).
    `is_hidden` tells matrices inside the blocks from others.

    Raises:
        UserError: Nothing of what trains is what the optimiser is for.
    """
    return settings.optimizer.make(trained(tensors, settings, factor, decays, is_hidden))


def optimizer_bytes(
    tensors: Mapping[str, nn.Parameter],
    settings: TrainSettings,
    is_hidden: Callable[[nn.Parameter], bool] = lambda parameter: False,
) -> int:
    """What the recipe's optimiser remembers of these tensors, in bytes; they may be on torch's meta device."""
    return settings.optimizer.state_bytes(trained(tensors, settings, is_hidden=is_hidden))


def trained(
    tensors: Mapping[str, nn.Parameter],
    settings: TrainSettings,
    factor: Callable[[str], float] = lambda name: 1.0,
    decays: Callable[[str], bool] = lambda name: True,
    is_hidden: Callable[[nn.Parameter], bool] = lambda parameter: False,
) -> list[Trained]:
    """What trains, as optimisers take it."""
    return [
        Trained(
            parameter,
            decay=settings.weight_decay if parameter.ndim >= 2 and decays(name) else 0.0,
            factor=factor(name),
            is_hidden=is_hidden(parameter),
        )
        for name, parameter in tensors.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The step's learning rate, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def scale_and_clip(tensors: Collection[Tensor], weight: float, max_norm: float) -> Tensor:
    """Divide summed gradients by their weight and clip them (0: not): their norm before clipping."""
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    torch._foreach_div_(gradients, weight)
    norm = nn.utils.get_total_norm(gradients)
    if max_norm:
        nn.utils.clip_grads_with_norm_(tensors, max_norm, norm)
    return norm


def learning_rate_at(step: int, num_steps: int, peak: float, settings: TrainSettings) -> float:
    """The learning rate of a step (from 0): a linear rise over the warm-up, then the schedule's fall."""
    warmup = round(settings.warmup * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    if settings.schedule == "constant":
        share = 1.0
    elif settings.schedule == "linear":
        share = 1 - done
    else:
        share = 0.5 * (1 + math.cos(math.pi * done))
    return peak * (settings.final_lr + (1 - settings.final_lr) * share)
