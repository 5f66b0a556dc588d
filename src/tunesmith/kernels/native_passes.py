"""Passes of native/ on tensors: norms, rotary positions, gated activations, softmax, losses and attention.

Each kernel asks `native` whether its tensors can go through them, and has a plain form for when they cannot: outside
`used`, on a GPU, in another dtype, with gaps in memory. training/native.py compiles the library and proves it.
Legend: N rows, V vocabulary, D width, B rows of a batch, H heads, T tokens, K key heads, R rows of scores, S keys.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).with_name("native")
ACTIVATIONS = ("silu", "gelu_tanh")
NO_END = 2**40
"""More keys than any row has."""
Reach = tuple[float, int, int]
"""What scores are multiplied by, and the keys before and after its own place that a query sees, -1 for all."""
_NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_ROTARY = ("bf16_bf16_bf16", "fp32_fp32_fp32", "bf16_fp32_fp32", "fp32_fp32_bf16")
_in_use: ContextVar[NativePasses | None] = ContextVar("native passes in use", default=None)


@contextmanager
def used(passes: NativePasses | None) -> Iterator[None]:
    """Within it kernels of this thread take these passes; None: their plain forms."""
    token = _in_use.set(passes)
    try:
        yield
    finally:
        _in_use.reset(token)


def in_use() -> bool:
    """Whether there are passes in use."""
    return _in_use.get() is not None


def attending() -> NativePasses | None:
    """The passes in use, if attention goes through them too."""
    passes = _in_use.get()
    return passes if passes is not None and passes.attends else None


def native(*tensors: Tensor) -> NativePasses | None:
    """The passes in use, if all tensors are what they take: bf16 or fp32 without gaps, in this machine's memory."""
    passes = _in_use.get()
    if passes is None or not all(type(one) is Tensor and _fits(one) for one in tensors):
        return None
    return passes


class NativePasses:
    """The functions of a compiled library; tensors are as `native` asks, and of one dtype where not said otherwise."""

    def __init__(self, library: Path, *, attends: bool = True) -> None:
        """Load it; with `attends` for attention too, where the processor has what that takes.

        Raises:
            OSError: It cannot be loaded.
            AttributeError: It is not what was compiled from `SOURCES`.
        """
        loaded = ctypes.CDLL(str(library))
        address, number, whole, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
        pairs = [f"{one}_{other}" for one, other in product(_NAMES.values(), repeat=2)]
        activations = [f"{act}_{dtype}" for act, dtype in product(ACTIVATIONS, _NAMES.values())]
        self._functions = {
            f"{name}_{kind}": _declared(loaded, f"{name}_{kind}", [*arguments, whole])
            for name, kinds, arguments in (
                ("rms_norm", pairs, [*[address] * 4, number, number, real]),
                ("rms_norm_backward", pairs, [*[address] * 6, number, number]),
                ("gated", activations, [*[address] * 3, number]),
                ("gated_backward", activations, [*[address] * 4, number]),
                ("rotary", _ROTARY, [*[address] * 4, *[number] * 5, whole]),
                ("softmax", _NAMES.values(), [*[address] * 2, *[number] * 5]),
                ("cross_entropy", _NAMES.values(), [*[address] * 3, number, number, real, whole]),
            )
            for kind in kinds
        }
        self.attends = attends and hasattr(loaded, "attention")
        """Whether they have attention as one pass."""
        if self.attends:
            numbers = [number, real, number, number]
            of_attention = {"attention": [*[address] * 6, *numbers, *[address] * 2, whole]}
            of_attention["attention_backward"] = [*[address] * 8, *numbers, *[address] * 4, whole]
            self._functions |= {name: _declared(loaded, name, arguments) for name, arguments in of_attention.items()}

    def without_attention(self) -> NativePasses:
        """The same, but for attention."""
        others = copy(self)
        others.attends = False
        return others

    def rms_norm(self, x: Tensor, scale_D: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x / sqrt(mean(x^2) + epsilon) * scale in `dtype`, [..., D], and what it divides x by, inverted, [..., 1].

        `scale_D` is fp32.
        """
        out = torch.empty(x.shape, dtype=dtype)
        inverse = torch.empty(*x.shape[:-1], 1)
        self._call(f"rms_norm_{_NAMES[x.dtype]}_{_NAMES[dtype]}", x, scale_D, out, inverse, *_rows(x), epsilon)
        return out, inverse

    def rms_norm_backward(
        self, x: Tensor, scale_D: Tensor, inverse: Tensor, upstream: Tensor, *, needs_scale: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of x, in its dtype, and of the scale [D], in fp32."""
        grad_x, grad_scale = torch.empty_like(x), torch.empty_like(scale_D) if needs_scale else None
        name = f"rms_norm_backward_{_NAMES[x.dtype]}_{_NAMES[upstream.dtype]}"
        self._call(name, x, scale_D, inverse, upstream, grad_x, grad_scale, *_rows(x))
        return grad_x, grad_scale

    def gated(self, kind: str, gate: Tensor, up: Tensor) -> Tensor:
        """act(gate) * up; `kind` is one of `ACTIVATIONS`."""
        out = torch.empty_like(gate)
        self._call(f"gated_{kind}_{_NAMES[gate.dtype]}", gate, up, out, gate.numel())
        return out

    def gated_backward_(self, kind: str, gate: Tensor, up: Tensor, grad: Tensor, into_up: Tensor) -> None:
        """Turn `grad`, that of act(gate) * up, into that of the gate, and write that of `up` into `into_up`."""
        self._call(f"gated_backward_{kind}_{_NAMES[gate.dtype]}", gate, up, grad, into_up, gate.numel())

    def rotary(
        self, x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, dtype: torch.dtype, *, turns_back: bool
    ) -> Tensor | None:
        """x cos + rotate_half(x) sin in `dtype`, or the transpose of that; None where x lies in another way.

        x may have any stride from token to token; the B of positions may be 1.
        """
        batch, heads, length, width = x_BHTD.shape
        name = f"rotary_{_NAMES.get(x_BHTD.dtype)}_{_NAMES.get(cos_BTD.dtype)}_{_NAMES.get(dtype)}"
        row, head, token, number = x_BHTD.stride()
        is_one_after_the_other = (head, number) == (width, 1) and (batch == 1 or row == length * token)
        is_one_after_the_other &= cos_BTD.shape[0] in (1, batch) and width % 2 == 0
        if name not in self._functions or not is_one_after_the_other or x_BHTD.device.type != "cpu":
            return None
        out = torch.empty(batch, length, heads, width, dtype=dtype)
        sizes = (batch * length, cos_BTD.shape[0] * length, heads, width, token)
        self._call(name, x_BHTD, cos_BTD, sin_BTD, out, *sizes, int(turns_back))
        return out.transpose(1, 2)

    def softmax(self, scores_RS: Tensor, out_RS: Tensor, num_queries: int, first: int, last: int) -> Tensor:
        """The softmax of each row over what its query sees, 0 elsewhere; `out_RS` may be the scores.

        Row r is of query q = r mod `num_queries`, which sees the keys from q + `first` to before q + `last`.
        """
        rows, columns = scores_RS.numel() // scores_RS.shape[-1], scores_RS.shape[-1]
        self._call(f"softmax_{_NAMES[scores_RS.dtype]}", scores_RS, out_RS, rows, num_queries, columns, first, last)
        return out_RS

    def cross_entropy_(self, logits_NV: Tensor, labels_N: Tensor, *, z_loss: float, makes_errors: bool) -> Tensor:
        """-log softmax[label] of each row, fp32 [N]; logits become its gradients where wanted, else are as they were.

        The gradients are those of nll + z_loss log^2 Z, Z the softmax's denominator.
        """
        losses = torch.empty(len(logits_NV))
        name = f"cross_entropy_{_NAMES[logits_NV.dtype]}"
        self._call(name, logits_NV, labels_N, losses, *logits_NV.shape, z_loss, int(makes_errors))
        return losses

    def attend(
        self, states: Sequence[Tensor], spans_N5: Tensor, reach: Reach, output: Tensor, log_sums: Tensor
    ) -> None:
        """Write attention's output [B, T, H, D] and log-sums [B, T, H] for queries, keys and values, [B, heads, T, D].

        Examples are as `block_attention` has them; what lies in none of them stays as it is.
        """
        layout = (_strides(states), spans_N5.contiguous(), _sizes(states))
        self._call("attention", *states, *layout, len(spans_N5), *reach, output, log_sums)

    def attend_backward(
        self, states: Sequence[Tensor], spans_N5: Tensor, reach: Reach, log_sums: Tensor, grads: Sequence[Tensor]
    ) -> None:
        """Write the gradients [B, T, heads, D] of queries, keys and values; output and its gradient follow these."""
        layout = (_strides(states), spans_N5.contiguous(), _sizes(states))
        self._call("attention_backward", *states, *layout, len(spans_N5), *reach, log_sums, *grads)

    def _call(self, name: str, *arguments: Tensor | float | None) -> None:
        values = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]
        self._functions[name](*values, torch.get_num_threads())


def _declared(library: ctypes.CDLL, name: str, arguments: list[Any]) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, None
    return function


def _strides(states: Sequence[Tensor]) -> Tensor:
    return torch.tensor([stride for one in states for stride in one.stride()[:3]])


def _sizes(states: Sequence[Tensor]) -> Tensor:
    query, key = states[0].shape, states[1].shape
    return torch.tensor([query[1], key[1], query[2], key[2], query[3]])


def _fits(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in _NAMES and tensor.is_contiguous()


def _rows(x: Tensor) -> tuple[int, int]:
    width = x.shape[-1]
    return x.numel() // max(1, width), width
