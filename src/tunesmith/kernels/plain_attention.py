"""Attention in plain products under any mask: for what no kernel takes, and what the kernels are tested against.

Legend: B batch, H query heads, K key/value heads, Q queries, S keys, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.example_groups import Attend


def plain_attention(
    query_BHQD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    mask_BHQS: Tensor | None,
    attend: Attend,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """softmax(scores) V for each query: [B, Q, H, D].

    Scores are c tanh(scale Q K^T / c) with a softcap c (Gemma 2, arXiv:2408.00118, section 2). A sink is one more score
    per head that takes probability and has no value (gpt-oss). `mask_BHQS` is True where a key is seen, or is added; it
    says alone what is seen, not the windows of `attend`. Softmax is in fp32.
    """
    groups = query_BHQD.shape[1] // key_BKSD.shape[1]
    key, value = key_BKSD.repeat_interleave(groups, dim=1), value_BKSD.repeat_interleave(groups, dim=1)
    scores = query_BHQD @ key.transpose(-1, -2) * attend.scale
    scores = attend.softcap * torch.tanh(scores / attend.softcap) if attend.softcap else scores
    if mask_BHQS is not None:
        is_seen = mask_BHQS.dtype == torch.bool
        scores = scores.masked_fill(~mask_BHQS, float("-inf")) if is_seen else scores + mask_BHQS
    num_keys = scores.shape[-1]
    if sinks_H is not None:
        sinks = sinks_H.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    probabilities = scores.softmax(-1, dtype=exact)[..., :num_keys].to(value.dtype)
    return (F.dropout(probabilities, attend.dropout) @ value).transpose(1, 2)
