"""The last layer of a regression: exact, and learning in units of the targets' spread whatever the data's unit is.

answer = mean + spread (W x + b). While a run trains, `mean` and `spread` are those of its training rows, so W and b
take the steps they would take for targets of mean 0 and spread 1. Answers are in the data's unit all the time, and what
the layer gives to be saved is spread W and mean + spread b: a plain Linear for any other program.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.nn import Linear, Module

from tunesmith.models.anatomy import head_modules

NUM_STATES = 16
"""Rows whose mean state lets a head without a bias begin at the targets' mean."""


class NumberHead(Linear):
    """A Linear with one output, whose product is fp32 where all others are bf16: 1003.2 would become 1000 there."""

    mean: float = 0.0
    spread: float = 1.0

    def forward(self, input: Tensor) -> Tensor:
        """Numbers in the data's unit, in fp32: [..., D] to [..., 1]."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(input.float(), self.weight.float(), bias) * self.spread + self.mean

    @torch.no_grad()
    def take_unit(self, mean: float, spread: float) -> None:
        """Learn in this unit from now on; answers stay what they are. Without a bias the mean stays in the weights."""
        before = (self.mean, self.spread)
        self.mean, self.spread = (0.0 if self.bias is None else mean), spread
        self.weight.mul_(before[1] / spread)
        if self.bias is not None:
            self.bias.copy_((self.bias.double() * before[1] + before[0] - mean) / spread)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (self.mean, self.spread) == (0.0, 1.0):
            return
        with torch.no_grad():
            destination[f"{prefix}weight"] = self.weight.detach() * self.spread
            if self.bias is not None:
                destination[f"{prefix}bias"] = (self.bias.double() * self.spread + self.mean).to(self.bias.dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict:
            self.mean, self.spread = 0.0, 1.0
        super()._load_from_state_dict(state_dict, prefix, *rest)


def number_heads(model: Module) -> list[NumberHead]:
    """The layers that give numbers: one, and under PEFT the base's own beside the one that trains."""
    return [module for module in model.modules() if isinstance(module, NumberHead)]


def spread_of(model: Module) -> float:
    """The unit in which the model's number is being learnt; 1 where it is the data's."""
    return next((head.spread for head in number_heads(model) if head.weight.requires_grad), 1.0)


def unit_line(model: Module) -> str:
    """In which unit a number is learnt, in words; empty where it is the data's."""
    head = next((head for head in number_heads(model) if head.weight.requires_grad), None)
    if head is None or (head.mean, head.spread) == (0.0, 1.0):
        return ""
    return f"learnt in units of their spread {head.spread:.4g}" + (f", from {head.mean:.4g} on" if head.mean else "")


def make_exact(model: Any, source: str | Path = "") -> Any:
    """The same model; where it gives a number, its last layer is a `NumberHead` with the fp32 weights of `source`."""
    config = model.config
    if config.problem_type != "regression" and len(config.id2label or ()) != 1:
        return model
    names = {id(module): name for name, module in model.named_modules()}
    last = [part for head in head_modules(model).values() for part in head.modules() if type(part) is Linear][-1:]
    for layer in last:
        if layer.out_features != 1:
            continue
        layer.__class__ = NumberHead
        if layer.weight.dtype != torch.float32:
            layer.float()
            for name, parameter in layer.named_parameters():
                saved = _saved(Path(source), f"{names[id(layer)]}.{name}") if isinstance(source, Path) else None
                if saved is not None and saved.shape == parameter.shape:
                    parameter.data.copy_(saved)
    return model


def learn_in_unit(model: Any, mean: float, spread: float, *, is_new: bool, rows: Sequence[Sequence[int]] = ()) -> None:
    """Let the model learn its number in units of `spread` around `mean`, both in the data's unit.

    A new head begins by answering the mean: by its bias, or, where it has none, by the mean state of some `rows` of
    token ids.
    """
    for head in number_heads(model):
        if not is_new:
            head.take_unit(mean, spread)
        elif head.bias is not None:
            head.mean, head.spread = mean, spread
        else:
            head.spread = spread
            if rows:
                state_D = _mean_state(model, head, rows[:NUM_STATES])
                head.weight.data.add_(state_D * (mean / spread) / state_D.square().sum())


@torch.no_grad()
def _mean_state(model: Any, head: NumberHead, rows: Sequence[Sequence[int]]) -> Tensor:
    """What the head reads, on average over the rows, [D]."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].reshape(-1, head.in_features)[-1]))
    try:
        for row in rows:
            model(input_ids=torch.tensor([list(row)], device=head.weight.device))
    finally:
        hook.remove()
    return torch.stack(seen).float().mean(0)


def _saved(folder: Path, name: str) -> Tensor | None:
    """A tensor of a folder of safetensors; None where there is none of this name."""
    index = folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.is_file():
        file = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(name, "")
    if not file or not (folder / file).is_file():
        return None
    with safe_open(folder / file, framework="pt") as tensors:
        found: Tensor | None = tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118
    return found
