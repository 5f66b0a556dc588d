"""A LoRA layer in one pass: y = x W^T + b + s (x A^T) B^T, with the frozen weight's gradient never formed.

PEFT's own layer keeps three intermediates per layer for the backward pass and adds in separate sweeps over the
output; here the update is accumulated into the base's product, and only x and the [N, rank] projection are kept.
Several active adapters (PiSSA has two) are one of their ranks together. Used where nothing else happens in the
layer; dropout, DoRA or quantised bases take PEFT's path.
Legend: N rows of x, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fused_lora_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """x W^T + b + scaling (x A^T) B^T in the dtype of x (of autocast where it is on), [..., O].

    LoRA: arXiv:2106.09685, eq. 3. `weight_OI` and `bias_O` are taken as constants.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        bias = None if bias_O is None else bias_O.to(dtype)
        result: Tensor = _FusedLoRA.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), weight_OI.to(dtype), bias, a_RI, b_OR, scaling
        )
    return result


def reference_lora_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """The same, term by term."""
    update = F.linear(F.linear(x, a_RI.to(x.dtype)), b_OR.to(x.dtype))
    return F.linear(x, weight_OI, bias_O) + scaling * update


def fuse_lora_layers(model: nn.Module) -> int:
    """Give every plain LoRA layer of PEFT in `model` the fused forward pass; how many there were.

    Each call still looks whether the adapter is active, so merging, disabling and switching work as before.
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign,assignment]
    return len(layers)


def _is_plain(module: Any) -> bool:
    kind = type(module)
    if (kind.__module__, kind.__name__) != ("peft.tuners.lora.layer", "Linear"):
        return False
    base = module.base_layer
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and not module.fan_in_fan_out
        and not module.lora_variant
        and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
        and all(b.bias is None for b in module.lora_B.values())
    )


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = [name for name in self.active_adapters if name in self.lora_A]
    if self.disable_adapters or self.merged or not names or args or kwargs:
        plain: Tensor = type(self).forward(self, x, *args, **kwargs)
        return plain
    base, first = self.base_layer, names[0]
    a, b = self.lora_A[first].weight, self.lora_B[first].weight
    if len(names) > 1:
        shares = [self.lora_B[name].weight * (self.scaling[name] / self.scaling[first]) for name in names]
        a, b = torch.cat([self.lora_A[name].weight for name in names]), torch.cat(shares, dim=1)
    return fused_lora_linear(x, base.weight, base.bias, a, b, self.scaling[first])


class _FusedLoRA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows_NI = x.reshape(-1, x.shape[-1])
        low_NR = rows_NI @ a.to(x.dtype).T
        base_NO = F.linear(rows_NI, weight, bias)
        base_NO.addmm_(low_NR, b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, low_NR)
        ctx.scaling = scaling
        return base_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, a, b, low_NR = ctx.saved_tensors
        rows_NI = x.reshape(-1, x.shape[-1])
        grad_NO = grad_outputs[0].reshape(-1, weight.shape[0])
        grad_low_NR = (grad_NO @ b.to(grad_NO.dtype)).mul_(ctx.scaling)
        grad_a = grad_low_NR.T @ rows_NI
        grad_b = (grad_NO.T @ low_NR).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ weight).addmm_(grad_low_NR, a.to(grad_NO.dtype)).view_as(x)
        return grad_x, None, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None
