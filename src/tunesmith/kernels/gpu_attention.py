"""Packed attention on a GPU: the arguments and layouts of each kernel (which one: gpu_kernels.py).

Nothing of it has run on CUDA yet. The borders of the examples, the longest example and flex attention's blocks come
with `Visible`, made once a batch on the processor, so no layer waits for the GPU.
Legend: B rows (1), H query heads, K key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from tunesmith.kernels.example_groups import Attend
from tunesmith.kernels.plain_attention import plain_attention
from tunesmith.kernels.visible import Visible

_MULTIPLE = 8
"""Flash-attention's widths are multiples of this."""


def gpu_attention(
    kernel: str,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    visible: Visible,
    attend: Attend,
    *,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """softmax(scale Q K^T) V within each example of one packed row, by one of `KERNELS`: [B, T, H, D].

    Raises:
        NotImplementedError: The kernel cannot do what the layer asks for.
    """
    if sinks_H is not None and kernel not in {"flex", "plain"}:
        raise NotImplementedError("attention sinks")
    if attend.softcap and kernel in {"varlen", "sdpa"}:
        raise NotImplementedError("softcapping")
    if attend.dropout and kernel in {"varlen", "flex"}:
        raise NotImplementedError("dropout of attention")
    states = (query_BHTD, key_BKTD, value_BKTD)
    if kernel == "flash_attn":
        return flash_attn(*states, visible, attend)
    if kernel == "varlen":
        return varlen(*states, visible, attend)
    if kernel == "flex":
        return flex(*states, visible, attend, sinks_H)
    return by_example(*states, visible, attend, sinks_H, is_plain=kernel == "plain")


def flash_attn(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    visible: Visible,
    attend: Attend,
    call: Callable[..., Tensor] | None = None,
) -> Tensor:
    """By the package flash_attn: [B, T, H, D]. Its backward pass is asked for the same bits each time."""
    call = call or import_module("flash_attn").flash_attn_varlen_func
    output = call(
        *_rows(query_BHTD, key_BKTD, value_BKTD),
        cu_seqlens_q=visible.borders,
        cu_seqlens_k=visible.borders,
        max_seqlen_q=visible.longest,
        max_seqlen_k=visible.longest,
        dropout_p=attend.dropout,
        softmax_scale=attend.scale,
        causal=attend.right == 0,
        window_size=(attend.left, attend.right),
        softcap=attend.softcap,
        deterministic=True,
    )
    return output[None, ..., : value_BKTD.shape[-1]]


def varlen(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    visible: Visible,
    attend: Attend,
    call: Callable[..., Tensor] | None = None,
) -> Tensor:
    """By PyTorch's varlen attention: [B, T, H, D]."""
    call = call or import_module("torch.nn.attention.varlen").varlen_attn
    output = call(
        *_rows(query_BHTD, key_BKTD, value_BKTD),
        visible.borders,
        visible.borders,
        visible.longest,
        visible.longest,
        scale=attend.scale,
        window_size=(attend.left, attend.right),
        enable_gqa=query_BHTD.shape[1] != key_BKTD.shape[1],
    )
    return output[None, ..., : value_BKTD.shape[-1]]


def flex(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    visible: Visible,
    attend: Attend,
    sinks_H: Tensor | None = None,
    call: Callable[..., Any] | None = None,
) -> Tensor:
    """By PyTorch's flex attention: [B, T, H, D].

    A sink s takes its share of a query's probability afterwards: with the log L of the sum of exponentials of its
    scores the output is multiplied by exp(L) / (exp(L) + exp(s)) = sigmoid(L - s).
    """
    assert visible.blocks is not None, "flex attention was not asked for when the batch was made"
    call = call or (flex_attention if torch.compiler.is_compiling() else _compiled_flex())
    settings: dict[str, Any] = {
        "score_mod": _capped(attend.softcap) if attend.softcap else None,
        "block_mask": visible.blocks,
        "scale": attend.scale,
        "enable_gqa": query_BHTD.shape[1] != key_BKTD.shape[1],
    }
    dtype = value_BKTD.dtype  # rotary positions may leave queries and keys in fp32 beside values in bf16
    states = (query_BHTD.to(dtype), key_BKTD.to(dtype), value_BKTD)
    if sinks_H is None:
        output: Tensor = call(*states, **settings)
    else:
        output, aux = call(*states, **settings, return_aux=AuxRequest(lse=True))
        share_BHT = torch.sigmoid(aux.lse - sinks_H.to(aux.lse.dtype)[:, None])
        output = output * share_BHT[..., None].to(output.dtype)
    return output.transpose(1, 2)


def by_example(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    visible: Visible,
    attend: Attend,
    sinks_H: Tensor | None = None,
    *,
    is_plain: bool = False,
) -> Tensor:
    """Each example by itself through PyTorch's kernel, or plainly, with softcap and sinks: [B, T, H, D]."""
    lengths = [end - first for _, first, end, _, _ in visible.spans_N5.tolist() if end > first]
    dtype = value_BKTD.dtype
    states = (query_BHTD.to(dtype), key_BKTD.to(dtype), value_BKTD)
    parts = zip(*(torch.split(tensor, lengths, dim=2) for tensor in states), strict=True)
    return torch.cat([_one(part, attend, sinks_H, is_plain=is_plain) for part in parts], dim=1)


def _one(states: tuple[Tensor, ...], attend: Attend, sinks_H: Tensor | None, *, is_plain: bool) -> Tensor:
    query, key, value = states
    length, scale, drop = query.shape[2], attend.scale, attend.dropout
    is_causal = attend.right == 0 and (attend.left < 0 or length <= attend.left + 1)
    mask = None
    if is_plain or not (is_causal or (attend.left < 0 and attend.right < 0)):
        mask = _reach(length, attend, query.device)
    if is_plain:
        return plain_attention(query, key, value, mask, attend, sinks_H)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    is_causal = is_causal and mask is None
    return F.scaled_dot_product_attention(query, key, value, mask, drop, is_causal, scale=scale).transpose(1, 2)


def _reach(length: int, attend: Attend, device: torch.device) -> Tensor:
    """Which keys of its example a query sees: [T, T]."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    seen = torch.ones_like(distance, dtype=torch.bool)
    seen = seen & (distance <= attend.left) if attend.left >= 0 else seen
    return seen & (-distance <= attend.right) if attend.right >= 0 else seen


def _rows(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> list[Tensor]:
    """Queries, keys and values [T, H or K, D] of one type and width, padded with zeros, which change no score."""
    width = max(query_BHTD.shape[-1], value_BKTD.shape[-1])
    width += -width % _MULTIPLE
    rows = [states[0].transpose(0, 1).to(value_BKTD.dtype) for states in (query_BHTD, key_BKTD, value_BKTD)]
    return [F.pad(row, (0, width - row.shape[-1])) if row.shape[-1] < width else row for row in rows]


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)
