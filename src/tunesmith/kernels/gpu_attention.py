"""Packed attention on a GPU: each example by itself through PyTorch's kernel.

Legend: B rows (1), H query heads, K key/value heads, T tokens, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.example_groups import Attend
from tunesmith.kernels.visible import Visible


def gpu_attention(query: Tensor, key: Tensor, value: Tensor, visible: Visible, attend: Attend) -> Tensor:
    """softmax(scale Q K^T) V within each example of one packed row: [B, T, H, D].

    Raises:
        NotImplementedError: The layer caps its scores.
    """
    if attend.softcap:
        raise NotImplementedError("attention with softcapping is not packed")
    lengths = [end - first for _, first, end, _, _ in visible.spans_N5.tolist() if end > first]
    parts = zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([_one(query, key, value, attend) for query, key, value in parts], dim=2).transpose(1, 2)


def _one(query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    drop, scale = attend.dropout, attend.scale
    if attend.left < 0 or length <= attend.left + 1:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=drop, is_causal=True, scale=scale)
    places = torch.arange(length, device=query.device)
    distance = places[:, None] - places[None, :]
    mask = (distance >= 0) & (distance <= attend.left)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=drop, scale=scale)
