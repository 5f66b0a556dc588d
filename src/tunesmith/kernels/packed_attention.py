"""Attention over several examples packed into one row, each of which sees only itself.

The model gets `position_ids` that restart and `packed_spans`; transformers hands both down to the attention
function registered here. Whether an architecture really does is tested on the model itself before training
(`why_not_packed`), because it cannot be read off a configuration.

On a processor the examples go through block_attention.py, elsewhere through PyTorch's own kernel.
Legend: B batch (1 here), H query heads, K key/value heads, G = H / K, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from tunesmith.kernels.block_attention import UNLIMITED, Attend, block_attention, kept

NAME = "tunesmith_packed"


def packed_attention(  # noqa: PLR0913 - the signature that transformers calls
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_spans: Tensor,
    packed_kept: int = 0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the packed examples: [B, T, H, D].

    `packed_spans` [N, 5] and `packed_kept` are those of `packed_inputs`; they are the same for all layers.
    """
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    if query_BHTD.device.type == "cpu":
        left = UNLIMITED if sliding_window is None else sliding_window - 1
        attend = Attend(scale, left, 0, softcap or 0.0, dropout)
        output = block_attention(
            query_BHTD, key_BKTD, value_BKTD, packed_spans, attend, sinks_H=s_aux, num_kept=packed_kept
        )
        return output, None
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with softcapping is not packed")
    lengths = (packed_spans[:, 2] - packed_spans[:, 1]).tolist()
    parts = zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query_BHTD, key_BKTD, value_BKTD)), strict=True)
    outputs = [
        _flash_attention(query, key, value, dropout=dropout, scale=scale, window=sliding_window)
        for query, key, value in parts
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def reference_packed_attention(
    query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, lengths: Sequence[int], scaling: float | None = None
) -> Tensor:
    """The same by one block-diagonal causal mask over the whole row, in plain products: [B, T, H, D]."""
    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    key = key_BKTD.repeat_interleave(groups, dim=1)
    value = value_BKTD.repeat_interleave(groups, dim=1)
    scale = scaling if scaling is not None else query_BHTD.shape[-1] ** -0.5
    example_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask_TT = (example_T[:, None] == example_T[None, :]).tril()
    scores = (query_BHTD @ key.transpose(-1, -2) * scale).masked_fill(~mask_TT, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@contextmanager
def packing(model: nn.Module) -> Iterator[None]:
    """Within it the model's attention is cut at the borders given by `packed_spans`."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def packed_inputs(lengths: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The arguments of a packed forward pass beside `input_ids`, made once for all layers.

    Positions [1, T] that restart, and what `packed_attention` takes: the examples' borders [N, 5], as
    `block_attention` takes them, and how many probabilities a layer keeps.
    """
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    ends = list(accumulate(lengths))
    spans = [(0, end - length, end, end - length, end) for length, end in zip(lengths, ends, strict=True)]
    spans.append((0, 0, 0, 0, 0))  # torch.compile takes a length of 1 for a constant
    return {
        "position_ids": positions,
        "packed_spans": torch.tensor(spans),
        "packed_kept": kept(spans),
        "use_cache": False,
    }


@torch.no_grad()
def why_not_packed(model: nn.Module, vocabulary_size: int) -> str:
    """Why this very model cannot read packed examples; empty where it gives them the logits that it gives them alone.

    Tried with two short probes.
    """
    adapter: Any = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        return "virtual tokens stand before every row"  # packed, they would stand before the first example only
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randint(vocabulary_size, (1, length), generator=generator).to(device) for length in (5, 8)]
    was_training = model.training
    model.eval()
    try:
        alone = torch.cat([model(input_ids=probe, use_cache=False).logits for probe in probes], dim=1)
        with packing(model):
            packed = model(input_ids=torch.cat(probes, dim=1), **packed_inputs((5, 8), device)).logits
    except (TypeError, KeyError, ValueError, NotImplementedError, AttributeError, RuntimeError):
        return "the model's attention takes no borders between examples"
    finally:
        model.train(was_training)
    tolerance = 2e-2 if alone.dtype == torch.bfloat16 else 1e-3
    limit = tolerance * float(alone.abs().max())
    is_equal = torch.allclose(alone.float(), packed.float(), rtol=tolerance, atol=limit)
    return "" if is_equal else "examples in one row would see each other"


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scale: float, window: int | None
) -> Tensor:
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if window is None or length <= window:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scale)
    distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)[None, :]
    mask = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)


AttentionInterface.register(NAME, packed_attention)
