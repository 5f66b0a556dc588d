"""A LoRA layer as one operator to `torch.compile`, forward and backward.

Seen by the compiler, the additions into a product's output become copies of it, and PyTorch keeps no compiled backward
pass between runs (it bypasses its cache for functions with a backward of their own). As operators they are neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.fused_lora import Terms, backward_rows, forward_rows, product_dtype, terms_of
from tunesmith.kernels.instance_forward import own_forward


def lora_operator(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The output of a layer of `is_plain_lora`, [..., O], in the dtype of x (of autocast where it is on)."""
    terms = None if args or kwargs else terms_of(layer)
    if terms is None or terms.a_RI is None or terms.b_OR is None or terms.weight_OI.requires_grad:
        plain: Tensor = own_forward(layer, x, *args, **kwargs)
        return plain
    dtype = product_dtype(x)
    bias = None if terms.bias_O is None else terms.bias_O.to(dtype)
    output: Tensor = _lora(x.to(dtype), terms.weight_OI.to(dtype), bias, terms.a_RI, terms.b_OR, terms.scaling)[0]
    return output


@torch.library.custom_op("tunesmith::lora", mutates_args=())
def _lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """The output [..., O], and the projection [..., R] that the backward pass needs."""
    outputs, low_NR = forward_rows(x.reshape(-1, x.shape[-1]), [Terms(weight, bias, a, b, scaling)])
    assert low_NR is not None
    return outputs[0].view(*x.shape[:-1], -1), low_NR.view(*x.shape[:-1], -1)


@_lora.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(*x.shape[:-1], a.shape[0])


@torch.library.custom_op("tunesmith::lora_backward", mutates_args=())
def _lora_backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, low: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, a and b."""
    rows_NI, low_NR = x.reshape(-1, x.shape[-1]), low.reshape(-1, low.shape[-1])
    terms = Terms(weight, None, a, b, scaling)
    needs = (True, False, False, True, True)
    grad_x, found = backward_rows(rows_NI, [terms], low_NR, [grad.reshape(-1, grad.shape[-1])], needs)
    grad_a, grad_b = found[2], found[3]
    assert grad_x is not None and grad_a is not None and grad_b is not None
    return grad_x.view_as(x), grad_a, grad_b.contiguous()


@_lora_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, a, b, ctx.scaling = inputs
    ctx.save_for_backward(x, weight, a, b, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, grad_low: Any) -> tuple[Any, ...]:
    x, weight, a, b, low = ctx.saved_tensors
    grad_x, grad_a, grad_b = _lora_backward(grad, x, weight, a, b, low, ctx.scaling)
    return grad_x, None, None, grad_a, grad_b, None


_lora.register_autograd(_backward, setup_context=_setup)
