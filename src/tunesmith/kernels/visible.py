"""Which keys each query of a batch may see, as spans and a reach instead of a mask of [T, T].

transformers asks a mask function, registered under the attention's name, for each kind of layer (full, sliding,
chunked) once a batch, and hands what it gives to the layers. The function here tries what transformers itself says
may be seen on some queries of the longest example, so that windows and chunks come from the model and never from a
configuration's keys. What it cannot put so (a cache, holes in the padding, masks of another form) becomes
PyTorch's mask, which `attention.py` gives to PyTorch's attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.masking_utils import sdpa_mask

from tunesmith.kernels.example_groups import UNLIMITED, kept
from tunesmith.kernels.visible_blocks import visible_blocks

Spans = list[tuple[int, int, int, int, int]]
"""Of each example its row, first query, end of its queries, first key and end of its keys."""
_TRIED = 8
"""Queries of the longest example whose keys are compared with what transformers says."""
_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths of the examples of the packed row", default=())


class Visible(NamedTuple):
    """What `block_attention` and the kernels of a GPU take, for all layers of one kind.

    `left` and `right` are the places before and after its own that a query sees, -1 for all.
    """

    spans_N5: Tensor
    """The examples, whole numbers on the processor."""
    left: int
    right: int
    num_kept: int
    """The probabilities per query head that are kept for the backward pass."""
    borders: Tensor
    """On a GPU the examples' borders [N + 1] in 32 bits, where one row is packed; otherwise empty."""
    longest: int
    """Tokens of the longest example."""
    blocks: BlockMask | None = None
    """The blocks that flex attention reads, where it was asked for."""


class Form(NamedTuple):
    """What a query sees of its own example: places to the left and right (-1: all) within a chunk (0: none)."""

    left: int
    right: int
    chunk: int = 0


CAUSAL, WHOLE = Form(UNLIMITED, 0), Form(UNLIMITED, UNLIMITED)


@contextmanager
def borders(lengths: Sequence[int]) -> Iterator[None]:
    """Within it a model's one row is examples of these lengths, one after the other."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def is_packing() -> bool:
    """Whether a packed row is being read."""
    return bool(_lengths.get())


def visible_mask(  # noqa: PLR0913 - the signature that transformers calls
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    q_offset: Any = 0,
    kv_offset: int = 0,
    local_size: int | None = None,
    use_vmap: bool = False,
    config: Any = None,
    device: torch.device | str = "cpu",
    has_blocks: bool = False,
    **others: Any,
) -> Visible | Tensor | None:
    """What the layers of one kind may see: `Visible`, or PyTorch's mask where that cannot say it.

    With `has_blocks` a packed row's blocks for flex attention come with it.

    Raises:
        NotImplementedError: A packed row whose layers see something else than windows or chunks of their example.
    """
    is_plain = not use_vmap and isinstance(q_offset, int) and q_offset == kv_offset == 0
    spans = _spans(batch_size, q_length, kv_length, attention_mask, torch.device(device)) if is_plain else None
    form = None if not spans else _form(mask_function, spans, local_size, device)
    if spans and form is not None:
        has_cross = _has_cross_attention(config)
        if is_packing() or (q_length == kv_length and (form.right == 0 or not has_cross)):
            return _made(spans, form, device, has_blocks=has_blocks and is_packing())
        if form == WHOLE and has_cross:  # keys may be another text's than queries: only keys' padding is known
            return _made([(row, 0, q_length, *keys) for row, _, _, *keys in spans], form, device)  # type: ignore[misc]
    if is_packing():
        raise NotImplementedError("layers that see something else than windows or chunks of their example")
    mask: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        q_offset=q_offset,
        kv_offset=kv_offset,
        local_size=local_size,
        use_vmap=use_vmap,
        config=config,
        device=device,
        **others,
    )
    return mask


def packed_visible(
    lengths: Sequence[int], left: int = UNLIMITED, device: torch.device | str = "cpu", *, has_blocks: bool = False
) -> Visible:
    """What is visible in one row of causal examples of these lengths, `left` places before a query's own at most."""
    ends = list(accumulate(lengths))
    spans = [(0, end - length, end, end - length, end) for length, end in zip(lengths, ends, strict=True)]
    return _made(spans, Form(left, 0), device, has_blocks=has_blocks)


def _spans(
    num_rows: int, num_queries: int, num_keys: int, mask_BS: Tensor | None, device: torch.device
) -> Spans | None:
    """The examples of a batch; None where padding lies within them or a row has none, and on a GPU where padded."""
    if lengths := _lengths.get():
        ends = list(accumulate(lengths))
        assert (num_rows, ends[-1]) == (1, num_queries), (lengths, num_rows, num_queries)
        return [(0, end - length, end, end - length, end) for length, end in zip(lengths, ends, strict=True)]
    if device.type != "cpu":
        return None
    if mask_BS is None:
        return [(row, 0, num_queries, 0, num_keys) for row in range(num_rows)]
    counts, firsts = mask_BS.sum(-1).tolist(), mask_BS.int().argmax(-1).tolist()
    spans = [(row, a, a + n, a, a + n) for row, (a, n) in enumerate(zip(firsts, counts, strict=True))]
    is_whole = all(bool(mask_BS[row, first:end].all()) for row, first, end, _, _ in spans)
    return spans if is_whole and min(counts) > 0 else None


def _form(
    mask_function: Callable[..., Tensor], spans: Spans, local_size: int | None, device: torch.device | str
) -> Form | None:
    """What transformers says that queries of the longest example see; None for something else."""
    row, _, _, first, end = max(spans, key=lambda span: span[4] - span[3])
    tried = torch.linspace(first, end - 1, min(_TRIED, end - first), device=device).long()[:, None]
    keys = torch.arange(first, end, device=device)[None, :]
    numbers = [torch.tensor(number, device=device) for number in (row, 0)]
    seen = mask_function(*numbers, tried, keys).expand(tried.shape[0], keys.shape[1])
    forms = [CAUSAL, WHOLE]
    if local_size is not None:
        forms += [Form(local_size - 1, 0), Form(local_size, local_size), Form(UNLIMITED, 0, local_size)]
    return next((form for form in forms if torch.equal(_seen(form, tried - first, keys - first), seen)), None)


def _seen(form: Form, queries: Tensor, keys: Tensor) -> Tensor:
    distance = queries - keys
    seen = torch.ones_like(distance, dtype=torch.bool)
    if form.left >= 0:
        seen &= distance <= form.left
    if form.right >= 0:
        seen &= -distance <= form.right
    return seen & (queries // form.chunk == keys // form.chunk) if form.chunk else seen


def _has_cross_attention(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False))


def _made(spans: Spans, form: Form, device: torch.device | str, *, has_blocks: bool = False) -> Visible:
    if form.chunk:
        spans = [chunk for span in spans for chunk in _chunks(span, form.chunk)]
    longest = max(end - first for _, first, end, _, _ in spans)
    kind = torch.device(device).type
    ends = torch.tensor([0, *(end for _, _, end, _, _ in spans)] if kind != "cpu" else [], dtype=torch.int32)
    ends = ends.pin_memory() if kind == "cuda" else ends  # nothing waits for a copy from pinned memory
    return Visible(
        torch.tensor([*spans, (0, 0, 0, 0, 0)]),  # torch.compile takes a length of 1 for a constant
        form.left,
        form.right,
        kept(spans, form.left, form.right) if torch.is_grad_enabled() else 0,
        ends.to(device, non_blocking=True),
        longest,
        visible_blocks(spans, form.left, form.right, device) if has_blocks else None,
    )


def _chunks(span: tuple[int, int, int, int, int], size: int) -> Spans:
    """An example cut into pieces that see only themselves."""
    row, first, end, _, _ = span
    bounds = [(start, min(start + size, end)) for start in range(first, end, size)]
    return [(row, *bound, *bound) for bound in bounds]
