"""The optimiser and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from tunesmith.recipe import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings, learning_rate: float) -> torch.optim.Optimizer:
    """Fused AdamW (arXiv:1711.05101) over what trains; weight decay on matrices only."""
    matrices, others = _matrices_and_others(parameter for parameter in model.parameters() if parameter.requires_grad)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


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


def _matrices_and_others(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim >= 2 else others).append(parameter)
    return matrices, others
