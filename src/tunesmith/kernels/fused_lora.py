"""Linear layers that read the same input, in one pass: y = x W^T + b + s (x A^T) B^T, LoRA where a layer has it.

PEFT's own layer keeps three intermediates per layer for the backward pass and adds in separate sweeps over the
output; here the update is accumulated into the base's product, only x and the [N, rank] projection are kept, and a
frozen weight's gradient is never formed. Layers with one input (queries, keys and values; gate and up) share the
product with A, the casts of x, and the sum of its gradient; an x that can be made again (made_again.py) is not kept.
Several active adapters (PiSSA has two) are one of their ranks together. Used where nothing else happens in the layer;
dropout, DoRA or quantised bases take PEFT's path.
Legend: N rows of x, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.kernels.instance_forward import instance_forward, own_forward
from tunesmith.kernels.made_again import HowMade, how_made


class Terms(NamedTuple):
    """What a linear layer multiplies by; no `a_RI` and `b_OR`: no LoRA."""

    weight_OI: Tensor
    bias_O: Tensor | None = None
    a_RI: Tensor | None = None
    b_OR: Tensor | None = None
    scaling: float = 0.0

    def reference(self, x: Tensor) -> Tensor:
        """The layer's output, term by term."""
        base = F.linear(x, self.weight_OI, self.bias_O)
        if self.a_RI is None or self.b_OR is None:
            return base
        return base + self.scaling * F.linear(F.linear(x, self.a_RI.to(x.dtype)), self.b_OR.to(x.dtype))


def linears(x: Tensor, layers: Sequence[Terms]) -> tuple[Tensor, ...]:
    """Each layer's output for the same x, in the dtype of x (of autocast where it is on), [..., O].

    LoRA: arXiv:2106.09685, eq. 3.
    """
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        flat, scalings = flattened(layers, dtype)
        x = x.to(dtype)
        outputs: tuple[Tensor, ...] = _Linears.apply(x, how_made(x), scalings, *flat)  # type: ignore[no-untyped-call]
    return outputs


def fused_lora_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """x W^T + b + scaling (x A^T) B^T in the dtype of x (of autocast where it is on), [..., O]."""
    return linears(x, [Terms(weight_OI, bias_O, a_RI, b_OR, scaling)])[0]


def reference_lora_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """The same, term by term."""
    return Terms(weight_OI, bias_O, a_RI, b_OR, scaling).reference(x)


def fuse_lora_layers(model: nn.Module) -> int:
    """Give every plain LoRA layer of PEFT in `model` the fused forward pass; how many there were.

    Each call still looks whether the adapter is active, so merging, disabling and switching work as before.
    """
    layers = [module for module in model.modules() if is_plain_lora(module)]
    for layer in layers:
        layer.forward = MethodType(_lora_forward, layer)  # type: ignore[method-assign,assignment]
    return len(layers)


@torch.no_grad()
def fuse_shared_inputs(model: nn.Module, run: Callable[[], object]) -> int:
    """Let plain LoRA layers that get the very same tensor go through one pass together; how many groups there are.

    `run` calls the model; which layers share is what is seen then. Each call looks again whether the tensor is the
    same, and a layer that gets another one computes alone.
    """
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen.append((module, inputs[0]))

    handles = [module.register_forward_pre_hook(note) for module in model.modules() if is_plain_lora(module)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    groups: list[list[nn.Module]] = []
    last: Tensor | None = None
    for module, x in seen:
        if x is last:
            groups[-1].append(module)
        else:
            groups.append([module])
        last = x
    calls = [module for module, _ in seen]
    shared = [group for group in groups if len(group) > 1 and all(calls.count(module) == 1 for module in group)]
    for group in shared:
        together = _SharedInput(tuple(group))
        for layer in group:
            vars(layer)["shared_input"] = together
            layer.forward = MethodType(_shared_forward, layer)  # type: ignore[method-assign,assignment]
    return len(shared)


def is_plain_lora(module: Any) -> bool:
    """Whether this is a LoRA layer of PEFT in which nothing happens but LoRA."""
    kind = type(module)
    if (kind.__module__, kind.__name__) != ("peft.tuners.lora.layer", "Linear"):
        return False
    return (
        type(module.base_layer) is nn.Linear
        and not module.fan_in_fan_out
        and not module.lora_variant
        and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
        and all(b.bias is None for b in module.lora_B.values())
    )


def terms_of(layer: Any) -> Terms | None:
    """What a linear layer, plain or of `is_plain_lora`, multiplies by now; None where it must do so itself."""
    if type(layer) is nn.Linear:
        return Terms(layer.weight, layer.bias)
    base = layer.base_layer
    if layer.disable_adapters:
        return None if layer.merged else Terms(base.weight, base.bias)  # a merged one is taken apart first
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.merged or not names:
        return Terms(base.weight, base.bias)
    first = names[0]
    a, b = layer.lora_A[first].weight, layer.lora_B[first].weight
    if len(names) > 1:
        shares = [layer.lora_B[name].weight * (layer.scaling[name] / layer.scaling[first]) for name in names]
        a, b = torch.cat([layer.lora_A[name].weight for name in names]), torch.cat(shares, dim=1)
    return Terms(base.weight, base.bias, a, b, layer.scaling[first])


def _compiled_forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    from tunesmith.kernels.lora_operator import lora_operator  # it is made of this module's parts

    return lora_operator(layer, x, *args, **kwargs)


@partial(instance_forward, compiled=_compiled_forward)
def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    terms = None if args or kwargs else terms_of(self)
    if terms is None or terms.a_RI is None:
        plain: Tensor = own_forward(self, x, *args, **kwargs)
        return plain
    return linears(x, [terms])[0]


@partial(instance_forward, compiled=_compiled_forward)
def _shared_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs:
        plain: Tensor = own_forward(self, x, *args, **kwargs)
        return plain
    together: _SharedInput = self.shared_input
    return together.output(self, x)


class _SharedInput:
    """Layers that get one tensor: the first of them that is called computes all, the others take what is theirs."""

    def __init__(self, layers: tuple[nn.Module, ...]) -> None:
        self.layers = layers
        self._x: Tensor | None = None
        self._version = 0
        self._outputs: dict[int, Tensor] = {}

    def output(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The layer's output for x."""
        version = 0 if x.is_inference() else x._version
        if x is self._x and version == self._version and id(layer) in self._outputs:
            output = self._outputs.pop(id(layer))
            if not self._outputs:
                self._forget()
            return output
        self._forget()
        terms = [terms_of(one) for one in self.layers]
        known = [one for one in terms if one is not None]
        if len(known) < len(terms) or layer is not self.layers[0]:
            alone = terms[self.layers.index(layer)]
            return own_forward(layer, x) if alone is None else linears(x, [alone])[0]
        first, *others = linears(x, known)
        self._x, self._version = x, version
        self._outputs = {id(one): output for one, output in zip(self.layers[1:], others, strict=True)}
        return first

    def _forget(self) -> None:
        self._x, self._version, self._outputs = None, 0, {}


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products with x are made: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def flattened(layers: Sequence[Terms], dtype: torch.dtype) -> tuple[list[Tensor | None], tuple[float, ...]]:
    """The tensors of all layers one after the other, bases in the dtype of the products, and their scalings."""
    flat: list[Tensor | None] = []
    for layer in layers:
        bias = None if layer.bias_O is None else layer.bias_O.to(dtype)
        flat += [layer.weight_OI.to(dtype), bias, layer.a_RI, layer.b_OR]
    return flat, tuple(layer.scaling for layer in layers)


def unflattened(flat: Sequence[Tensor | None], scalings: Sequence[float]) -> list[Terms]:
    """The inverse of `flattened`."""
    layers = []
    for place, scaling in enumerate(scalings):
        weight_OI, bias_O, a_RI, b_OR = flat[4 * place : 4 * place + 4]
        assert weight_OI is not None
        layers.append(Terms(weight_OI, bias_O, a_RI, b_OR, scaling))
    return layers


def forward_rows(rows_NI: Tensor, layers: Sequence[Terms]) -> tuple[list[Tensor], Tensor | None]:
    """Outputs [N, O], and the projections [N, R of all layers together] where there is LoRA."""
    stacked = _stacked_a(layers, rows_NI.dtype)
    low_NR = None if stacked is None else rows_NI @ stacked.T
    outputs, start = [], 0
    for layer in layers:
        output_NO = F.linear(rows_NI, layer.weight_OI, layer.bias_O)
        if low_NR is not None and layer.b_OR is not None:
            rank = layer.b_OR.shape[1]
            output_NO.addmm_(low_NR[:, start : start + rank], layer.b_OR.to(rows_NI.dtype).T, alpha=layer.scaling)
            start += rank
        outputs.append(output_NO)
    return outputs, low_NR


def backward_rows(
    rows_NI: Tensor,
    layers: Sequence[Terms],
    low_NR: Tensor | None,
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x [N, I] and of `flattened`'s tensors. `needs`: of x, then of each of those tensors."""
    dtype = rows_NI.dtype
    found: list[Tensor | None] = [None] * (4 * len(layers))
    grad_x: Tensor | None = None
    grad_lows: list[Tensor] = []
    start = 0
    for place, (layer, grad_NO) in enumerate(zip(layers, grads, strict=True)):
        rank = 0 if layer.b_OR is None else layer.b_OR.shape[1]
        if layer.b_OR is not None and low_NR is not None:
            if grad_NO is None:
                grad_lows.append(low_NR.new_zeros(len(low_NR), rank))
            else:
                grad_lows.append((grad_NO @ layer.b_OR.to(dtype)).mul_(layer.scaling))
                grad_b = (low_NR[:, start : start + rank].T @ grad_NO).mul_(layer.scaling)  # sooner than its transpose
                found[4 * place + 3] = grad_b.T.to(layer.b_OR.dtype)
        start += rank
        if grad_NO is None:
            continue
        if needs[4 * place + 1]:
            found[4 * place] = grad_NO.T @ rows_NI
        if needs[4 * place + 2]:
            found[4 * place + 1] = grad_NO.sum(0)
        if needs[0]:
            product = grad_NO @ layer.weight_OI  # oneDNN takes longer to add within a wide product than beside it
            grad_x = product if grad_x is None else grad_x.add_(product)
    if grad_lows:
        grad_low_NR = grad_lows[0] if len(grad_lows) == 1 else torch.cat(grad_lows, dim=1)
        stacked = _stacked_a(layers, dtype)
        if grad_x is not None and stacked is not None:
            grad_x.addmm_(grad_low_NR, stacked)
        grad_a = grad_low_NR.T @ rows_NI
        start = 0
        for place, layer in enumerate(layers):
            if layer.a_RI is not None:
                rank = len(layer.a_RI)
                found[4 * place + 2] = grad_a[start : start + rank].to(layer.a_RI.dtype)
                start += rank
    return grad_x, found


def _stacked_a(layers: Sequence[Terms], dtype: torch.dtype) -> Tensor | None:
    parts = [layer.a_RI.to(dtype) for layer in layers if layer.a_RI is not None]
    return None if not parts else parts[0] if len(parts) == 1 else torch.cat(parts)


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, how: HowMade, scalings: tuple[float, ...], *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs, low_NR = forward_rows(x.reshape(-1, x.shape[-1]), unflattened(flat, scalings))
        ctx.save_for_backward(low_NR, *flat, *how.inputs)
        ctx.make, ctx.scalings = how.make, scalings
        ctx.set_materialize_grads(False)
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        low_NR, *saved = ctx.saved_tensors
        flat, inputs = saved[: 4 * len(ctx.scalings)], saved[4 * len(ctx.scalings) :]
        x = ctx.make(*inputs)
        grads = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grad_outputs]
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
        rows_NI = x.reshape(-1, x.shape[-1])
        grad_x, found = backward_rows(rows_NI, unflattened(flat, ctx.scalings), low_NR, grads, needs)
        return (None if grad_x is None else grad_x.view_as(x), None, None, *found)
