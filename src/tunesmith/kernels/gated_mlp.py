"""A gated MLP in one pass: down(act(gate(x)) * up(x)), with or without LoRA on each of the three layers.

Gate and up go through one pass over x (fused_lora.py). Of the inner states only theirs are kept for the backward pass:
the activation and what the last layer reads are made again from them, element by element, in no more time.
Legend: N rows of x, D width, I inner width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.kernels.fused_lora import (
    Terms,
    backward_rows,
    flattened,
    forward_rows,
    is_plain_lora,
    product_dtype,
    terms_of,
    unflattened,
)
from tunesmith.kernels.instance_forward import instance_forward, own_forward
from tunesmith.kernels.made_again import HowMade, how_made
from tunesmith.kernels.native_passes import ACTIVATIONS, NativePasses, native

KINDS = ("silu", "gelu", "gelu_tanh")
MOST_STOOD_IN = 2**28
"""Weights of a module on the meta device that is proven on a stand-in; a larger one stays as it is."""


def gated_mlp(x: Tensor, gate: Terms, up: Terms, down: Terms, kind: str) -> Tensor:
    """down(act(gate(x)) * up(x)) in the dtype of x (of autocast where it is on), [..., D].

    SwiGLU and GEGLU: arXiv:2002.05202, eq. 6, with LoRA where a layer has it. `kind` is one of `KINDS`.
    """
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        flat, scalings = flattened((gate, up, down), dtype)
        x = x.to(dtype)
        output: Tensor = _GatedMlp.apply(x, how_made(x), kind, scalings, *flat)  # type: ignore[no-untyped-call]
    return output


def reference_gated_mlp(x: Tensor, gate: Terms, up: Terms, down: Terms, kind: str) -> Tensor:
    """The same, step by step."""
    return down.reference(activation(kind, gate.reference(x)) * up.reference(x))


@torch.no_grad()
def fuse_gated_mlps(model: nn.Module) -> int:
    """Give every gated MLP of `model` that proves to be one the fused forward pass; how many there were.

    Proven on the module itself: random rows must come out as they do by its own forward. Of modules that are alike on
    the meta device, where there are no values, one is proven, on a copy with random ones.
    """
    number = 0
    without_values: dict[str, Recipe | None] = {}
    for module in list(model.modules()):
        if any(one.is_meta for one in module.parameters()):
            if len(list(module.children())) != 4:
                continue
            alike = f"{module!r} {[(one.shape, one.dtype) for one in module.parameters()]}"
            if alike not in without_values:
                without_values[alike] = _recognised_copy(module)
            found = without_values[alike]
        else:
            found = _recognised(module)
        if found is not None:
            vars(module)["gated_mlp"] = found
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign,assignment]
            number += 1
    return number


def activation(kind: str, values: Tensor) -> Tensor:
    """The activation of that name."""
    if kind == "silu":
        return F.silu(values)
    return F.gelu(values, approximate="tanh" if kind == "gelu_tanh" else "none")


Recipe = tuple[str, str, str, str]
"""The names of gate, up and down among a module's children, and the kind of activation."""


def _recognised(module: nn.Module) -> Recipe | None:
    children = dict(module.named_children())
    layers = {name: child for name, child in children.items() if type(child) is nn.Linear or is_plain_lora(child)}
    others = [child for name, child in children.items() if name not in layers]
    if len(layers) != 3 or len(others) != 1 or list(others[0].parameters()) or list(module.parameters(recurse=False)):
        return None
    if any(child._forward_hooks or child._forward_pre_hooks for child in children.values()):
        return None
    sizes = {name: _base(layer).weight.shape for name, layer in layers.items()}
    first, second, last = sizes
    if sizes[first] != sizes[second] or sizes[last] != sizes[first][::-1]:
        return None
    kind = _kind(others[0])
    weight = _base(layers[first]).weight
    if kind is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    try:
        expected = own_forward(module, x)
    except (TypeError, RuntimeError, ValueError):  # it wants more than one tensor
        return None
    for gate, up in ((first, second), (second, first)):
        recipe = (gate, up, last, kind)
        terms = _terms(module, recipe)
        if terms is not None and _agrees(expected, gated_mlp(x, *terms, kind)):
            return recipe
    return None


def _recognised_copy(module: nn.Module) -> Recipe | None:
    """What a module without values would be seen as if it had some."""
    if sum(one.numel() for one in module.parameters()) > MOST_STOOD_IN or list(module.buffers()):
        return None
    copied = copy.deepcopy(module).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for one in copied.parameters():
        one.normal_(std=one.shape[-1] ** -0.5, generator=generator)
    return _recognised(copied)


def _kind(module: nn.Module) -> str | None:
    values = torch.linspace(-6, 6, 97)
    try:
        expected = module(values)
    except (TypeError, RuntimeError, ValueError):
        return None
    for kind in KINDS:
        if torch.allclose(activation(kind, values), expected, rtol=0, atol=1e-6):
            return kind
    return None


def _agrees(expected: Any, mine: Tensor) -> bool:
    if not isinstance(expected, Tensor) or expected.shape != mine.shape or expected.dtype != mine.dtype:
        return False
    tolerance = 2e-2 if mine.dtype in (torch.bfloat16, torch.float16) else 1e-4
    largest = float(expected.abs().max())
    return largest > 0 and float((expected - mine).abs().max()) <= tolerance * largest


def _base(layer: Any) -> nn.Linear:
    linear: nn.Linear = layer if type(layer) is nn.Linear else layer.base_layer
    return linear


def _terms(module: nn.Module, recipe: Recipe) -> tuple[Terms, Terms, Terms] | None:
    found = [terms_of(getattr(module, name)) for name in recipe[:3]]
    gate, up, down = found
    return None if gate is None or up is None or down is None else (gate, up, down)


@instance_forward
def _forward(self: Any, x: Tensor) -> Tensor:
    recipe: Recipe = self.gated_mlp
    terms = _terms(self, recipe)
    if terms is None:
        plain: Tensor = own_forward(self, x)
        return plain
    return gated_mlp(x, *terms, recipe[3])


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, how: HowMade, kind: str, scalings: tuple[float, ...], *flat: Tensor | None
    ) -> Tensor:
        *first, down = unflattened(flat, scalings)
        (gate_NI, up_NI), low_NR = forward_rows(x.reshape(-1, x.shape[-1]), first)
        (output_ND,), low_down_NR = forward_rows(_gated(kind, gate_NI, up_NI), [down])
        ctx.save_for_backward(gate_NI, up_NI, low_NR, low_down_NR, *flat, *how.inputs)
        ctx.make, ctx.kind, ctx.scalings = how.make, kind, scalings
        return output_ND.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate_NI, up_NI, low_NR, low_down_NR, *saved = ctx.saved_tensors
        flat, inputs = saved[:12], saved[12:]
        *first, down = unflattened(flat, ctx.scalings)
        needs: Sequence[bool] = ctx.needs_input_grad[4:]
        upstream_ND = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        inner_NI, active_NI = _gated_again(ctx.kind, gate_NI, up_NI)
        grad_NI, found_down = backward_rows(inner_NI, [down], low_down_NR, [upstream_ND], (True, *needs[8:]))
        assert grad_NI is not None
        grads = _gated_backward(ctx.kind, gate_NI, up_NI, grad_NI, active_NI)
        x = ctx.make(*inputs)
        rows_ND = x.reshape(-1, x.shape[-1])
        grad_x, found = backward_rows(rows_ND, first, low_NR, grads, (ctx.needs_input_grad[0], *needs[:8]))
        return (None if grad_x is None else grad_x.view_as(x), None, None, None, *found, *found_down)


def _passes(kind: str, *states: Tensor) -> NativePasses | None:
    return native(*states) if kind in ACTIVATIONS else None


def _gated(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    passes = _passes(kind, gate, up)
    return passes.gated(kind, gate, up) if passes else activation(kind, gate).mul_(up)


def _gated_again(kind: str, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """act(gate) * up, and what `_gated_backward` takes for act(gate): natively nothing but room."""
    if passes := _passes(kind, gate, up):
        inner = passes.gated(kind, gate, up)
        return inner, inner
    active = activation(kind, gate)
    return active * up, active


def _gated_backward(kind: str, gate: Tensor, up: Tensor, grad: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up; `grad`, that of their product, and `active` are used up."""
    if passes := _passes(kind, gate, up):
        passes.gated_backward_(kind, gate, up, grad, into_up=active)
        return grad, active
    active.mul_(grad)
    return _activation_backward(kind, grad.mul_(up), gate), active


def _activation_backward(kind: str, upstream: Tensor, values: Tensor) -> Tensor:
    if kind == "silu":
        gradient: Tensor = torch.ops.aten.silu_backward(upstream, values)
    else:
        approximate = "tanh" if kind == "gelu_tanh" else "none"
        gradient = torch.ops.aten.gelu_backward(upstream, values, approximate=approximate)
    return gradient
