"""Attention of many examples on a processor, forward and backward, block by block over what their queries may see.

For each block of queries there are three plain products with the keys it may see, so the matrix unit does the work and
nothing above the diagonal, beyond a window, across an example's border or on padding is computed. PyTorch's own CPU
kernel takes 2 to 5 times as long for forward and backward together (docs/log.md). The queries that share a key head go
through each product together, so grouped queries cost no copies of keys. What native_attention.py can take goes there.

It is one operator to `torch.compile`. The examples are a tensor, so that other lengths compile nothing anew.
Legend: B rows, H query heads, K key/value heads, G = H / K, T tokens, D head width, N examples, Q queries of a block,
S keys it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.kernels.example_groups import BLOCK, LONGEST_KEPT, Attend, Block, blocks
from tunesmith.kernels.gathering import Arrangement, arranged, room_like
from tunesmith.kernels.native_attention import attends_natively, native_attention
from tunesmith.kernels.native_passes import NO_END, native

_Random = np.random.Generator
_PARTS = 2**15
"""A share of dropped probabilities is a whole number of these parts."""


def block_attention(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    spans_N5: Tensor,
    attend: Attend,
    *,
    sinks_H: Tensor | None = None,
    num_kept: int = 0,
) -> Tensor:
    """softmax(scale Q K^T) V within each example: [B, T, H, D], zero where no example is.

    An example is a row of `spans_N5`, whole numbers on the processor: its row of the batch, its first query and the
    end of its queries, its first key and the end of its keys. Products and scores have the inputs' dtype (autocast's
    where it is on), softmax sums in fp32. `num_kept` is what `kept` gives for the spans, or 0 to keep no probabilities
    for the backward pass. `sinks_H` is one more score of every query that leads nowhere (gpt-oss). Dropout takes one
    number from torch's global random state and draws its own from there.
    """
    if torch.is_autocast_enabled("cpu"):  # fp32 rotary positions give fp32 queries beside bf16 values
        dtype = torch.get_autocast_dtype("cpu")
        query_BHTD, key_BKTD, value_BKTD = query_BHTD.to(dtype), key_BKTD.to(dtype), value_BKTD.to(dtype)
    if sinks_H is None and attends_natively(query_BHTD, key_BKTD, value_BKTD, spans_N5, attend):
        return native_attention(query_BHTD, key_BKTD, value_BKTD, spans_N5, attend)
    if sinks_H is not None:
        sinks_H = sinks_H.to(query_BHTD.dtype)
    seed = torch.randint(2**62, (1,)) if attend.dropout else None
    numbers = (attend.scale, attend.left, attend.right, attend.softcap, attend.dropout)
    states = (query_BHTD, key_BKTD, value_BKTD, spans_N5, sinks_H, seed)
    output: Tensor = _attention(*states, *numbers, 0 if attend.softcap else num_kept)[0]
    return output


@torch.library.custom_op("tunesmith::block_attention", mutates_args=(), device_types="cpu")
def _attention(  # noqa: PLR0913, PLR0917 - an operator takes tensors and plain numbers
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor,
    sinks: Tensor | None,
    seed: Tensor | None,
    scale: float,
    left: int,
    right: int,
    softcap: float,
    dropout: float,
    num_kept: int,
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D], and the kept probabilities of all blocks one after the other; dropped ones are negative."""
    batch, heads, length, _ = query.shape
    attend = Attend(scale, left, right, softcap, dropout)
    store = _Store(query.new_empty(heads * num_kept))
    found = arranged(query, key, spans)
    if found is None:
        return value.new_zeros(batch, length, heads, value.shape[3]), store.buffer
    states = _States(found, query, key, value, attend)
    outputs = value.new_empty(len(states.query), value.shape[3])
    for number in range(len(found.groups)):
        some = _Group(states, number, sinks)
        random = _random(seed, number)
        results = some.by_key_head(found.queries.group(number, outputs))
        for block in some.blocks():
            probabilities = some.probabilities_of(some.scores(block), block, store.take(some, block))
            seen = probabilities if random is None else _drop_(probabilities, dropout, random).relu()
            _multiply(seen, some.value[:, block[2] : block[3]], results, block)
    output = found.queries.put_back(outputs)
    if dropout:
        output *= 1 / (1 - dropout)
    return output, store.buffer


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    return value.new_empty(batch, length, heads, value.shape[3]), query.new_empty(heads * others[-1])


@torch.library.custom_op("tunesmith::block_attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(  # noqa: PLR0913, PLR0917
    upstream: Tensor,
    probabilities: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor,
    sinks: Tensor | None,
    seed: Tensor | None,
    scale: float,
    left: int,
    right: int,
    softcap: float,
    dropout: float,
    num_kept: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values and sinks (empty where there are none)."""
    grad_sinks = query.new_zeros(0 if sinks is None else sinks.shape[0], dtype=torch.float32)
    found = arranged(query, key, spans)
    if found is None:
        return *(room_like(one).zero_() for one in (query, key, value)), grad_sinks  # type: ignore[return-value]
    states = _States(found, query, key, value, Attend(scale, left, right, softcap, dropout))
    above = found.queries.gather(upstream.transpose(1, 2))
    if found.queries.padding.numel():
        above.index_fill_(0, found.queries.padding, 0.0)
    grads = [torch.empty_like(one) for one in (states.query, states.key, states.value)]
    store = _Store(probabilities)
    for number in range(len(found.groups)):
        some = _Group(states, number, sinks)
        into = [of.group(number, one) for of, one in zip((found.queries, found.keys, found.keys), grads, strict=True)]
        given = some.by_key_head(found.queries.group(number, above))
        some.backward(given, into, grad_sinks, store, _random(seed, number))
    grads[0] *= scale
    grad_query = found.queries.put_back(grads[0]).transpose(1, 2)
    grad_key, grad_value = (found.keys.put_back(one).transpose(1, 2) for one in grads[1:])
    return grad_query, grad_key, grad_value, grad_sinks


@_attention_backward.register_fake
def _(upstream: Tensor, probabilities: Tensor, *states: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value, _, sinks, *_ = states
    num_sinks = 0 if sinks is None else sinks.shape[0]
    return room_like(query), room_like(key), room_like(value), query.new_empty(num_sinks, dtype=torch.float32)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:6])
    ctx.numbers = inputs[6:]
    ctx.set_materialize_grads(False)  # zeros for the kept probabilities would be as large as they are


def _backward(ctx: Any, upstream: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if upstream is None:  # nothing depends on the output
        return (None,) * 12
    probabilities, query, key, value, spans, sinks, seed = ctx.saved_tensors
    states = (query, key, value, spans, sinks, seed)
    *grads, grad_sinks = _attention_backward(upstream, probabilities, *states, *ctx.numbers)
    return (*grads, None, None if sinks is None else grad_sinks.to(sinks.dtype), *(None,) * 7)


_attention.register_autograd(_backward, setup_context=_keep_for_backward)


class _States:
    """All states of a pass at their places: queries, times the scale, keys and values, [P, D]."""

    def __init__(self, found: Arrangement, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> None:
        self.found, self.attend = found, attend
        self.query = found.queries.gather(query)
        self.query *= attend.scale
        self.key, self.value = found.keys.gather(key), found.keys.gather(value)


class _Group:
    """Examples of like length, padded to the longest, and their probabilities block by block.

    The key heads K of all of them stand for one another: n examples have n x K.
    """

    def __init__(self, states: _States, number: int, sinks: Tensor | None) -> None:
        found, self.attend = states.found, states.attend
        self.key = found.keys.group(number, states.key).flatten(0, 1)
        self.value = found.keys.group(number, states.value).flatten(0, 1)
        query = found.queries.group(number, states.query)
        spans, num_keys = found.groups[number], self.key.shape[1]
        self.num_examples = len(spans)
        self.shape_KG = (len(self.key), query.shape[0] * query.shape[1] // len(self.key))
        self.query = self.by_key_head(query)
        self.sinks = None if sinks is None else sinks.repeat(len(spans)).view(*self.shape_KG, 1, 1)
        self.hidden = None
        if self.attend.right != 0 and any(end - first < num_keys for *_, first, end in spans):
            lengths = torch.tensor([end - first for *_, first, end in spans])
            is_padding = torch.arange(num_keys)[None] >= lengths[:, None]
            lowest = torch.finfo(query.dtype).min / 2  # not -inf: a padded query may see padding only
            self.hidden = torch.zeros(is_padding.shape, dtype=query.dtype).masked_fill_(is_padding, lowest)

    def by_key_head(self, states_BHTD: Tensor) -> Tensor:
        """States of queries with those that share a key head together: [K, G, T, D]."""
        return states_BHTD.view(*self.shape_KG, *states_BHTD.shape[2:])

    def blocks(self) -> list[Block]:
        """Blocks of queries with the keys they see."""
        return blocks(self.query.shape[2], self.key.shape[1], self.attend)

    def shape(self, block: Block) -> tuple[int, int, int]:
        """The shape of a block's probabilities, [K, G x Q, S]."""
        first, last, low, high = block
        return self.query.shape[0], self.query.shape[1] * (last - first), high - low

    def scores(self, block: Block) -> Tensor:
        """Scores before the mask, [K, G x Q, S]."""
        first, last, low, high = block
        scores = _rows(self.query, first, last) @ self.key[:, low:high].transpose(-1, -2)
        cap = self.attend.softcap
        return scores.div_(cap).tanh_().mul_(cap) if cap else scores

    def probabilities_of(self, scores: Tensor, block: Block, out: Tensor | None = None) -> Tensor:
        """What each query of a block gives each key it sees, [K, G x Q, S]; the scores are used up."""
        if self.hidden is None and self.sinks is None and (passes := native(scores)):
            first, last, low, _ = block
            before = first - low - self.attend.left if self.attend.left >= 0 else -NO_END
            after = first - low + self.attend.right + 1 if self.attend.right >= 0 else NO_END
            return passes.softmax(scores, scores if out is None else out, last - first, before, after)
        _hide_(scores.view(-1, block[1] - block[0], block[3] - block[2]), block, self.attend)
        if self.hidden is not None:
            by_example = scores.view(self.num_examples, -1, scores.shape[2])
            by_example += self.hidden[:, None, block[2] : block[3]]
        if self.sinks is None:
            return torch.softmax(scores, -1, out=out)
        sinks = self.sinks.expand(-1, -1, block[1] - block[0], 1).reshape(*scores.shape[:2], 1)
        probabilities = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
        return probabilities if out is None else out.copy_(probabilities)

    def backward(
        self, above: Tensor, into: Sequence[Tensor], grad_sinks: Tensor, store: _Store, random: _Random | None
    ) -> None:
        """Write the gradients of scaled queries, keys and values [n, heads, T, D]; add the sinks' [H]."""
        attend, parts = self.attend, self.blocks()
        grad_queries = self.by_key_head(into[0])
        into_key, into_value = (_Sum(one.flatten(0, 1), len(parts)) for one in into[1:])
        for block in parts:
            first, last, low, high = block
            kept_ones = store.take(self, block)
            slope = None
            if kept_ones is None:
                scores = self.scores(block)
                slope = 1 - (scores / attend.softcap).square() if attend.softcap else None
                kept_ones = self.probabilities_of(scores, block)
                if random is not None:
                    _drop_(kept_ones, attend.dropout, random)
            given = _rows(above, first, last)
            if random is not None:
                given = given * (1 / (1 - attend.dropout))
            grad_probabilities = given @ self.value[:, low:high].transpose(-1, -2)
            seen = kept_ones
            if random is not None:
                seen, grad_probabilities, kept_ones = _without_dropped(kept_ones, grad_probabilities)
            into_value.add(seen.transpose(-1, -2), given, low, high)
            grad_scores = torch._softmax_backward_data(grad_probabilities, kept_ones, -1, self.query.dtype)
            if grad_sinks.shape[0]:  # what a sink's score gains, all others lose
                by_head = grad_scores.view(self.num_examples, grad_sinks.shape[0], -1)
                grad_sinks -= by_head.sum((0, 2), dtype=torch.float32)
            if slope is not None:
                grad_scores *= slope
            _multiply(grad_scores, self.key[:, low:high], grad_queries, block)
            into_key.add(grad_scores.transpose(-1, -2), _rows(self.query, first, last), low, high)
        into_key.finish()
        into_value.finish()


class _Sum:
    """The sum of what several blocks give the same keys, in fp32 at least, into a gradient [K, T, D]."""

    def __init__(self, grad: Tensor, num_blocks: int) -> None:
        self.grad = grad
        exact = torch.promote_types(grad.dtype, torch.float32)
        self.total = torch.zeros(grad.shape, dtype=exact) if num_blocks > 1 else None

    def add(self, rows: Tensor, columns: Tensor, low: int, high: int) -> None:
        """Add the product that one block gives the keys from `low` to `high`; a single block gives all."""
        if self.total is None:
            torch.bmm(rows, columns, out=self.grad)
        else:
            self.total[:, low:high] += rows @ columns

    def finish(self) -> None:
        """Write the sum."""
        if self.total is not None:
            self.grad.copy_(self.total)


class _Store:
    """One buffer for the kept probabilities of all blocks, in order."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.taken = 0

    def take(self, group: _Group, block: Block) -> Tensor | None:
        """The place of the next block's probabilities; None where they are not kept."""
        if not self.buffer.numel() or group.key.shape[1] > LONGEST_KEPT:
            return None
        shape = group.shape(block)
        first, self.taken = self.taken, self.taken + shape[0] * shape[1] * shape[2]
        return self.buffer[first : self.taken].view(shape)


def _multiply(rows: Tensor, columns: Tensor, into_KGTD: Tensor, block: Block) -> None:
    """Write the product for a block of queries [K, G x Q, D] to its place."""
    first, last, _, _ = block
    if last - first == into_KGTD.shape[2]:
        torch.bmm(rows, columns, out=into_KGTD.flatten(1, 2))
    else:
        into_KGTD[:, :, first:last] = (rows @ columns).view(*into_KGTD.shape[:2], last - first, -1)


def _rows(states_KGTD: Tensor, first: int, last: int) -> Tensor:
    """The queries of a block with their group's in one row of products: [K, G x Q, D]."""
    return states_KGTD[:, :, first:last].flatten(1, 2)


def _hide_(scores_QS: Tensor, block: Block, attend: Attend) -> None:
    """Set scores [..., Q, S] to -inf where a key is out of a query's reach."""
    first, last, low, high = block
    if attend.right >= 0 and (start := first + attend.right) < high:
        scores_QS[..., start - low :] += _later(scores_QS.dtype)[: last - first, : high - start]
    if attend.left >= 0 and (start := first - attend.left) + last - first > low:
        earlier = _later(scores_QS.dtype).T[: last - first, low - start : last - first]
        scores_QS[..., : earlier.shape[1]] += earlier[:, : high - low]


@cache
def _later(dtype: torch.dtype) -> Tensor:
    """-inf where a column's number is above its row's, 0 elsewhere."""
    return torch.full((2 * BLOCK, 2 * BLOCK), float("-inf"), dtype=dtype).triu(1)


def _random(seed: Tensor | None, number: int) -> _Random | None:
    """What the dropout of an example draws from."""
    return None if seed is None else np.random.Generator(np.random.SFC64([int(seed), number]))


def _drop_(probabilities: Tensor, share: float, random: _Random) -> Tensor:
    """Make a random share of probabilities negative, by their sign bits."""
    count = probabilities.numel()
    drawn = torch.from_numpy(random.bit_generator.random_raw(-(-count // 4)).view(np.int16)[:count])
    signs = drawn.bitwise_and_(_PARTS - 1).sub_(round(share * _PARTS)).bitwise_and_(-_PARTS)  # -2^15 where below
    bits = _bits(probabilities)
    wide = signs if bits.dtype == torch.int16 else signs.to(bits.dtype) << (8 * bits.itemsize - 16)
    bits.bitwise_or_(wide.view(bits.shape))
    return probabilities


def _without_dropped(probabilities: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and their gradients with zeros where dropped, and the probabilities as they were before."""
    bits = _bits(probabilities)
    is_kept = bits.bitwise_right_shift(8 * bits.itemsize - 1).bitwise_not_()  # all bits, or none
    _bits(gradients).bitwise_and_(is_kept)
    return is_kept.bitwise_and_(bits).view(probabilities.dtype), gradients, probabilities.abs()


def _bits(numbers: Tensor) -> Tensor:
    return numbers.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.itemsize])
