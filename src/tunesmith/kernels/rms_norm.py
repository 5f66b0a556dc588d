"""RMS norm with few passes over the states, statistics in fp32, and only the input kept for the backward pass.

transformers' modules keep two or three fp32 copies of the states per norm. For processors: elsewhere the compiler of
whole blocks does it.
Legend: N rows, D width.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunesmith.kernels.instance_forward import instance_forward, own_forward
from tunesmith.kernels.made_again import note_how_made
from tunesmith.kernels.native_passes import native


def rms_norm(
    x: Tensor, weight_D: Tensor, epsilon: float, offset: float = 0.0, dtype: torch.dtype | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * (offset + weight), [..., D], in `dtype` (of x where there is none).

    arXiv:1910.07467, eq. 4; Gemma's weight has an offset of 1. Computed in fp32 and rounded once.
    """
    numbers = (epsilon, offset, dtype or x.dtype)
    output: Tensor = _RmsNorm.apply(x, weight_D, *numbers)  # type: ignore[no-untyped-call]
    note_how_made(output, lambda x, weight_D: _normalised(x, weight_D, *numbers)[0], x, weight_D)
    return output


def reference_rms_norm(x: Tensor, weight_D: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """The same in plain fp32 operations, [..., D], in fp32."""
    exact = x.float()
    return exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + epsilon) * (offset + weight_D.float())


@torch.no_grad()
def fuse_rms_norms(model: nn.Module) -> int:
    """Give every RMS norm of `model` on a processor that proves to be one the fused pass; how many there were.

    A candidate has one vector of weights and a number that is its epsilon; what it does with them is found by rows
    whose mean is not 0 and whose size is near epsilon's root. One on the meta device, where there are no values, is
    proven on a copy with random weights, once for all that are alike.
    """
    number = 0
    without_values: dict[str, Recipe | None] = {}
    for module in model.modules():
        if _has_one_vector(module) and module.weight.is_meta:
            alike = f"{module!r} {module.weight.shape} {module.weight.dtype}"
            if alike not in without_values:
                copied = copy.deepcopy(module).to_empty(device="cpu")
                nn.init.normal_(copied.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
                without_values[alike] = _recognised(copied)
            found = without_values[alike]
        else:
            found = _recognised(module)
        if found is not None:
            vars(module)["rms_norm"] = found
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign,assignment]
            number += 1
    return number


class Recipe(NamedTuple):
    """What a norm module does."""

    epsilon: float
    offset: float
    keeps_dtype: bool
    """Whether its output has the input's dtype; otherwise that of input and weight together."""


def _recognised(module: nn.Module) -> Recipe | None:
    if not _has_one_vector(module):
        return None
    weight: Any = module.weight
    epsilons = [getattr(module, name, None) for name in ("variance_epsilon", "eps", "epsilon")]
    found = [one for one in epsilons if isinstance(one, float)]
    if len(found) != 1 or weight.device.type != "cpu" or not weight.dtype.is_floating_point:
        return None
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 6, len(weight), generator=generator) + 0.5
    probe[:, 3:] *= found[0] ** 0.5
    try:
        expected, low = own_forward(module, probe), own_forward(module, probe.bfloat16())
    except (TypeError, RuntimeError, ValueError):
        return None
    if not isinstance(expected, Tensor) or expected.shape != probe.shape or expected.dtype != torch.float32:
        return None
    for offset in (0.0, 1.0):
        mine = reference_rms_norm(probe, weight, found[0], offset)
        if torch.allclose(mine, expected, rtol=1e-4, atol=1e-6) and bool(expected.abs().sum() > 0):
            return Recipe(found[0], offset, keeps_dtype=low.dtype == torch.bfloat16)
    return None


def _has_one_vector(module: nn.Module) -> bool:
    weights = list(module.parameters(recurse=False))
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and len(weights) == 1 and weight.ndim == 1 and not list(module.children())


@instance_forward
def _forward(self: Any, x: Tensor) -> Tensor:
    recipe: Recipe = self.rms_norm
    dtype = x.dtype if recipe.keeps_dtype else torch.promote_types(x.dtype, self.weight.dtype)
    return rms_norm(x, self.weight, recipe.epsilon, recipe.offset, dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float, offset: float, dtype: torch.dtype) -> Tensor:
        output, inverse = _normalised(x, weight_D, epsilon, offset, dtype)
        ctx.save_for_backward(x, weight_D, inverse)
        ctx.offset = offset
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight_D, inverse = ctx.saved_tensors
        exact = inverse.dtype
        scale = _scale(weight_D, ctx.offset, exact)
        if ctx.needs_input_grad[0] and (passes := native(x, scale, inverse, grad_outputs[0])):
            needs_scale = ctx.needs_input_grad[1]
            grad_x, grad_scale = passes.rms_norm_backward(x, scale, inverse, grad_outputs[0], needs_scale=needs_scale)
            return grad_x, None if grad_scale is None else grad_scale.to(weight_D.dtype), None, None, None
        upstream = grad_outputs[0].to(exact, copy=True)
        normal = x * inverse if x.dtype == exact else x.to(exact).mul_(inverse)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (upstream * normal).flatten(0, -2).sum(0).to(weight_D.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None, None
        upstream.mul_(scale)
        shares = torch.linalg.vecdot(upstream, normal).div_(x.shape[-1])
        grad_x = upstream.sub_(normal.mul_(shares[..., None])).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight, None, None, None


def _normalised(
    x: Tensor, weight_D: Tensor, epsilon: float, offset: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The output, and what x was divided by, inverted [..., 1]."""
    exact = torch.promote_types(x.dtype, torch.float32)
    scale = _scale(weight_D, offset, exact)
    is_taken = scale.shape == x.shape[-1:] and dtype in (torch.bfloat16, torch.float32)
    if is_taken and (passes := native(x, scale)):
        return passes.rms_norm(x, scale, epsilon, dtype)
    values = x.to(exact, copy=True)
    inverse = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    inverse = inverse.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return values.mul_(inverse).mul_(scale).to(dtype), inverse


def _scale(weight_D: Tensor, offset: float, exact: torch.dtype) -> Tensor:
    weight = weight_D.detach().to(exact)
    return weight + offset if offset else weight
