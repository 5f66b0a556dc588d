"""Attention of many examples in one native pass, forward and backward: nothing of the scores is kept or written out.

For processors that multiply pairs of bf16 numbers (AVX-512 BF16). block_attention.py asks `attends_natively` and has a
plain form for everything else; native/attention.cpp says how it goes. Beside the output, the logarithm of each query's
sum is kept, from which the backward pass makes the probabilities again (FlashAttention-2, arXiv:2307.08691).
Legend: B rows, H query heads, K key heads, T queries, S keys, D head width, N examples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.example_groups import Attend
from tunesmith.kernels.gathering import room_like
from tunesmith.kernels.native_passes import attending, used

_WIDTHS = range(32, 257, 32)
"""Head widths that the tables of native/attention.cpp hold."""
_TASKS = 2
"""Examples times key heads, each a piece of work, that must be there for every thread."""


def attends_natively(
    query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, spans_N5: Tensor, attend: Attend
) -> bool:
    """Whether `native_attention` takes these: bf16 on a processor, no softcap, no dropout, enough examples or heads."""
    if torch.compiler.is_compiling() or attending() is None or attend.softcap or attend.dropout:
        return False
    states = (query_BHTD, key_BKSD, value_BKSD)
    width = query_BHTD.shape[-1]
    return (
        width in _WIDTHS
        and all(one.shape[-1] == width and _is_readable(one) for one in states)
        and spans_N5.shape[0] * key_BKSD.shape[1] >= _TASKS * torch.get_num_threads()
    )


def native_attention(
    query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, spans_N5: Tensor, attend: Attend
) -> Tensor:
    """What `block_attention` gives: [B, T, H, D], zero where no example is. Scores and sums are fp32."""
    states = (query_BHTD, key_BKSD, value_BKSD, spans_N5)
    output: Tensor = _attention(*states, attend.scale, attend.left, attend.right)[0]
    return output


@torch.library.custom_op("tunesmith::native_attention", mutates_args=(), device_types="cpu")
def _attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float, left: int, right: int
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D] and log-sums [B, T, H]."""
    output, log_sums = _room(query, spans), _log_sums(query)
    passes = attending()
    assert passes is not None
    passes.attend((query, key, value), spans, (scale, left, right), output, log_sums)
    return output, log_sums


@_attention.register_fake
def _(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return room_like(query).transpose(1, 2), _log_sums(query)


@torch.library.custom_op("tunesmith::native_attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(  # noqa: PLR0913, PLR0917 - an operator takes tensors and plain numbers
    upstream: Tensor,
    output: Tensor,
    log_sums: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor,
    scale: float,
    left: int,
    right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, laid out [B, T, heads, D]."""
    grads = (_room(query, spans), *(_room(one, spans, is_key=True) for one in (key, value)))
    passes = attending()
    assert passes is not None
    states = (query, key, value, output.transpose(1, 2), upstream.transpose(1, 2))
    passes.attend_backward(states, spans, (scale, left, right), log_sums, grads)
    grad_query, grad_key, grad_value = (one.transpose(1, 2) for one in grads)
    return grad_query, grad_key, grad_value


@_attention_backward.register_fake
def _(upstream: Tensor, output: Tensor, log_sums: Tensor, *states: Any) -> tuple[Tensor, ...]:
    return tuple(room_like(one) for one in states[:3])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:4])
    ctx.numbers, ctx.passes = inputs[4:], attending()
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if upstream is None:  # nothing depends on the output
        return (None,) * 7
    upstream = upstream if _is_readable(upstream) else upstream.contiguous()
    with used(ctx.passes):  # whoever asks for the gradients
        grads = _attention_backward(upstream, *ctx.saved_tensors, *ctx.numbers)
    return (*grads, None, None, None, None)


_attention.register_autograd(_backward, setup_context=_keep_for_backward)


def _is_readable(states: Tensor) -> bool:
    """Whether heads lie whole and begin at pairs of numbers."""
    *strides, step = states.stride()
    is_bf16 = states.dtype == torch.bfloat16 and states.device.type == "cpu"
    return is_bf16 and step == 1 and not any(stride % 2 for stride in strides)


def _room(states_BHTD: Tensor, spans_N5: Tensor, *, is_key: bool = False) -> Tensor:
    """Room [B, T, heads, D] for what every example writes for itself; zeros where no example may be."""
    room = room_like(states_BHTD).transpose(1, 2)
    first, end, other_first, other_end = spans_N5[:, (3, 4, 1, 2) if is_key else (1, 2, 3, 4)].T
    is_whole = int(((end - first) * (other_end > other_first)).sum()) == room.shape[0] * room.shape[1]
    return room if is_whole else room.zero_()


def _log_sums(query_BHTD: Tensor) -> Tensor:
    batch, heads, length, _ = query_BHTD.shape
    return query_BHTD.new_empty(batch, length, heads, dtype=torch.float32)
