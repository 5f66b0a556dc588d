"""Rotary positions without the copies: no negated halves, no concatenation, and a backward pass of the same shape.

transformers calls a function of the model's module for it, so an attention that calls one is given a forward whose
only difference is what that name means. For processors: elsewhere the compiler of whole blocks does it.
Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.instance_forward import instance_forward
from tunesmith.kernels.native_passes import native

NAME = "apply_rotary_pos_emb"
"""What all architectures of transformers call the function."""


def rotary(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, heads_axis: int = 1) -> Tensor:
    """x cos + rotate_half(x) sin, rotate_half([a, b]) = [-b, a] over the halves of D; [B, H, T, D].

    arXiv:2104.09864, eq. 34, in transformers' order of the pairs. The dtype is that of the three together; no gradient
    goes to cos and sin.
    """
    output: Tensor = _Rotary.apply(  # type: ignore[no-untyped-call]
        x_BHTD, cos_BTD.unsqueeze(heads_axis), sin_BTD.unsqueeze(heads_axis)
    )
    return output


def reference_rotary(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, heads_axis: int = 1) -> Tensor:
    """The same as transformers writes it."""
    first, second = x_BHTD.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x_BHTD * cos_BTD.unsqueeze(heads_axis) + rotated * sin_BTD.unsqueeze(heads_axis)


@torch.no_grad()
def fuse_rotary(model: nn.Module) -> int:
    """Give every attention of `model` on a processor that turns its queries and keys so the fused function; how many.

    Proven on the function that the attention calls: random states must come out as they do by it.
    """
    number = 0
    for module in model.modules():
        fused = _with_fused_function(type(module).forward)
        if fused is not None and all(one.device.type == "cpu" for one in module.parameters()):
            vars(module)["rotary_forward"] = fused
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign,assignment]
            number += 1
    return number


@instance_forward
def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.rotary_forward(self, *args, **kwargs)


@cache
def _with_fused_function(forward: Callable[..., Any]) -> FunctionType | None:
    """The same forward, calling the fused function; None where it calls none that is the same."""
    if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(NAME)
    if own is None or not _is_the_same(own):
        return None

    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        if not (cos.shape[-1] == sin.shape[-1] == q.shape[-1] == k.shape[-1]):  # a part of each head is turned
            return own(q, k, cos, sin, unsqueeze_dim)
        return rotary(q, cos, sin, unsqueeze_dim), rotary(k, cos, sin, unsqueeze_dim)

    meanings = {**forward.__globals__, NAME: apply}
    fused = FunctionType(forward.__code__, meanings, forward.__name__, forward.__defaults__, forward.__closure__)
    fused.__kwdefaults__ = forward.__kwdefaults__
    return fused


def _is_the_same(own: Callable[..., Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 3, 8, generator=generator) for heads in (4, 2))
    cos, sin = (torch.randn(2, 3, 8, generator=generator) for _ in range(2))
    try:
        outputs = own(query, key, cos, sin)
    except (TypeError, RuntimeError, ValueError):
        return False
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        return False
    mine = (rotary(query, cos, sin), rotary(key, cos, sin))
    return all(torch.allclose(one, other, atol=1e-6) for one, other in zip(mine, outputs, strict=True))


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        turned = _natively(x, cos, sin, torch.promote_types(x.dtype, cos.dtype), turns_back=False)
        if turned is not None:
            return turned
        output = x * cos
        first, second = x.chunk(2, dim=-1)
        sin_first, sin_second = sin.chunk(2, dim=-1)
        out_first, out_second = output.chunk(2, dim=-1)
        _add_product(out_first, second, sin_first, -1)
        _add_product(out_second, first, sin_second, 1)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """The transpose: what went from one half to the other comes back."""
        (upstream,) = grad_outputs
        cos, sin = ctx.saved_tensors
        turned = _natively(upstream, cos, sin, ctx.dtype, turns_back=True)
        if turned is not None:
            return turned, None, None
        gradient = upstream * cos
        first, second = upstream.chunk(2, dim=-1)
        sin_first, sin_second = sin.chunk(2, dim=-1)
        grad_first, grad_second = gradient.chunk(2, dim=-1)
        _add_product(grad_first, second, sin_second, 1)
        _add_product(grad_second, first, sin_first, -1)
        return gradient.to(ctx.dtype), None, None


def _natively(x_BHTD: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, *, turns_back: bool) -> Tensor | None:
    """The turned states by native passes; None where these do not take them."""
    if cos.shape[1:] != (1, *x_BHTD.shape[2:]) or cos.shape != sin.shape or not (passes := native(cos, sin)):
        return None
    return passes.rotary(x_BHTD, cos, sin, dtype, turns_back=turns_back)


def _add_product(total: Tensor, left: Tensor, right: Tensor, sign: int) -> None:
    total.addcmul_(left.to(total.dtype), right.to(total.dtype), value=sign)
