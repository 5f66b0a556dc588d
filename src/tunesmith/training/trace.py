"""What one micro-batch costs on a model that is not there: bytes kept, work done, told by running it on fake tensors.

The model's own code and our kernels run forward and backward under torch's `FakeTensorMode`, where tensors have shapes
and no memory; every operation is counted as it is dispatched. Equal blocks cost the same, so of each kind one is run,
then two, and the rest is multiplication: a model of 70 B parameters takes seconds.
Legend: B rows, T tokens, D width, N labelled positions.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from tunesmith.kernels.example_groups import Attend, groups, sizes
from tunesmith.kernels.example_groups import blocks as query_blocks
from tunesmith.models.anatomy import blocks, encoder_blocks, plain
from tunesmith.models.quiet import quiet
from tunesmith.objectives.base import Features
from tunesmith.training.learner import Learner

_VALUES = "_tunesmith_values"
"""The attribute of a fake tensor of whole numbers that holds what they are."""
_MOST_FOLLOWED, _FEW = 2**22, 2**14
"""Whole numbers, and others, up to which they are followed."""
_READING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
_BLOCKS = torch.ops.tunesmith.block_attention
_BLOCKS_BACKWARD = torch.ops.tunesmith.block_attention_backward
_NATIVE = torch.ops.tunesmith.native_attention
_NATIVE_BACKWARD = torch.ops.tunesmith.native_attention_backward
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Work:
    """The cost of one micro-batch, forward and backward; all but the second and third grow linearly with the blocks."""

    kept_bytes: float
    """Alive when the backward pass begins: what blocks and head keep for it."""
    transient_bytes: float
    """By how much the backward pass of head and blocks (or the forward pass) rises above that for a moment."""
    below_bytes: float
    """Alive at most in the backward pass below the blocks (the table of embeddings), when all else is given back."""
    block_input_bytes: float
    """The states that enter the blocks, all that a recomputed block keeps."""
    matrix_flops: float
    """Floating-point operations of matrix products; attention as far as it is computed."""
    moved_bytes: float
    """Read and written by everything else."""
    operations: float
    """Operations dispatched."""
    forward_flops: float
    """Those of the matrix products that come before the backward pass."""

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """Both together, the other one so many times; the larger transient."""
        sums = {one.name: getattr(self, one.name) + times * getattr(other, one.name) for one in fields(Work)}
        highest = {name: max(getattr(self, name), getattr(other, name)) for name in ("transient_bytes", "below_bytes")}
        return Work(**{**sums, **highest})


@dataclass(frozen=True)
class BlockKind:
    """Blocks that are alike: how many there are, and what each adds."""

    number: int
    each: Work
    is_frozen: bool = False
    """Whether nothing trains in them or before them, so that they give a row the same in every epoch."""


@dataclass(frozen=True)
class Trace:
    """What a micro-batch costs: what lies outside the blocks, and each kind of block."""

    outside: Work
    kinds: tuple[BlockKind, ...]

    @property
    def whole(self) -> Work:
        """Everything together."""
        total = self.outside
        for kind in self.kinds:
            total = total.plus(kind.each, kind.number)
        return total


def trace(learner: Learner, rows: Sequence[Features]) -> Trace:
    """The cost of these rows as one micro-batch of a learner; see `Tracer`."""
    return Tracer(learner).trace(rows)


def _nothing() -> Work:
    return Work(*[0.0] * len(fields(Work)))


class Tracer:
    """Tells the cost of micro-batches on a learner whose model may be on torch's meta device.

    The model is in the method's training mode; it is used up: its weights are fake from here on.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.model = learner, learner.model
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.lists = _block_lists(self.model)
        self.blocks = [(where, block) for where, (_, _, held) in enumerate(self.lists) for block in held]
        _make_fake(self.model, self.mode)

    def trace(self, rows: Sequence[Features]) -> Trace:
        """The cost of these rows as one micro-batch, by kinds of blocks."""
        kinds = self.kinds()
        first = [members[0] for members in kinds]
        base = outside = self.run(first, rows)
        found = []
        for members in kinds:
            each = _nothing()  # a block of its own kind is in the base already, and cannot be told from the outside
            if len(members) > 1:
                each = self.run(sorted([*first, members[1]]), rows).plus(base, -1.0)
                outside = outside.plus(each, -1.0)
            found.append(BlockKind(len(members), each, self.is_frozen(members[0])))
        return Trace(outside, tuple(found))

    def whole(self, rows: Sequence[Features]) -> Work:
        """The cost of these rows with every block really gone through."""
        return self.run(range(len(self.blocks)), rows)

    def kinds(self) -> list[list[int]]:
        """The numbers of blocks that are alike, kind by kind."""
        found: dict[Any, list[int]] = {}
        for number, (where, block) in enumerate(self.blocks):
            shapes = tuple((name, tuple(p.shape), p.requires_grad) for name, p in block.named_parameters())
            lower = any(self._trains(before) for before in range(number))
            key = (where, type(block), shapes, block.training, lower, self._attention_type(number))
            found.setdefault(key, []).append(number)
        return list(found.values())

    def run(self, kept: Sequence[int], rows: Sequence[Features]) -> Work:
        """The cost with only these blocks in place."""
        _forget_caches()
        # transformers does not ask fake masks whether they hide anything; these know (`_read`)
        with self._only(kept), quiet(), patch("transformers.masking_utils.is_tracing", lambda *_: False, create=True):
            try:
                with self.mode:
                    return self._forward_and_backward(rows)
            finally:
                self.model.zero_grad(set_to_none=True)
                _forget_caches()

    def _forward_and_backward(self, rows: Sequence[Features]) -> Work:
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        ledger = _Ledger([row.num_tokens for row in rows])
        ledger.take_for_granted(self.model)
        entered: list[float] = []

        def enter(module: nn.Module, args: Any) -> None:
            entered.append(_num_bytes(args[:1]))
            if len(entered) == 1 and args and args[0].requires_grad:
                args[0].register_hook(ledger.go_below)

        handles = [block.register_forward_pre_hook(enter) for _, block in self.blocks]
        try:
            with ledger:
                loss, _ = self.learner.loss(self.learner.batch(rows))
                kept, forward_flops = ledger.live, ledger.flops
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
        above, below = (ledger.peak, 0.0) if ledger.peak_above is None else (ledger.peak_above, ledger.peak)
        transient = max(0.0, above - kept)
        counts = (ledger.flops, ledger.moved, ledger.operations, forward_flops)
        return Work(kept, transient, below, sum(entered), *counts)

    def is_frozen(self, number: int) -> bool:
        """Whether nothing trains in a block or below it."""
        return not any(self._trains(before) for before in range(number + 1))

    def _trains(self, number: int) -> bool:
        return any(parameter.requires_grad for parameter in self.blocks[number][1].parameters())

    def _attention_type(self, number: int) -> str:
        types = getattr(plain(self.model).config.get_text_config(), "layer_types", None)
        return str(types[number]) if types and number < len(types) and len(self.lists) == 1 else ""

    @contextmanager
    def _only(self, kept: Sequence[int]) -> Iterator[None]:
        """Within it the model has these blocks alone."""
        config = plain(self.model).config.get_text_config()
        types = getattr(config, "layer_types", None)
        names = _depth_names(config, len(self.blocks))
        try:
            for where, (parent, name, _) in enumerate(self.lists):
                members = [self.blocks[number][1] for number in kept if self.blocks[number][0] == where]
                setattr(parent, name, nn.ModuleList(members))
            if types and len(self.lists) == 1:
                config.layer_types = [types[number] for number in kept]
            for name, _ in names:
                setattr(config, name, len(kept))
            yield
        finally:
            for parent, name, held in self.lists:
                setattr(parent, name, held)
            for name, depth in names:
                setattr(config, name, depth)
            if types:
                config.layer_types = types


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched: bytes alive, floating-point operations, bytes read and written."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lengths = lengths
        self.live = self.peak = self.flops = self.moved = 0.0
        self.operations = 0.0
        self.peak_above: float | None = None
        """The peak up to the moment when the gradient left the blocks; None where it never does."""
        self._sizes: dict[int, int] = {}

    def take_for_granted(self, model: nn.Module) -> None:
        """Count neither weights nor gradients, nor views of them."""
        for tensor in (*model.parameters(), *model.buffers()):
            for one in (tensor, tensor.grad):
                if one is not None:
                    self._sizes[one.untyped_storage()._cdata] = 0

    def go_below(self, gradient: Tensor) -> None:
        """The backward pass leaves the first block: from here on another peak is counted."""
        self.peak_above, self.peak = self.peak, self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READING:
            return _read(func, args)
        if func is torch.ops.aten.nonzero.default and getattr(args[0], _VALUES, None) is not None:
            return self._places(args[0])
        given = {id(one): one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **kwargs)
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        is_view = func.is_view or not made
        _follow(func, args, kwargs, made)
        for tensor in made:
            self._add(tensor)
        if is_view:
            return out
        self.operations += 1
        flops = self._flops(func, args, kwargs, out)
        if flops:
            self.flops += flops
        else:
            self.moved += _num_bytes([*given.values(), *made])
        return out

    def _places(self, tensor: Tensor) -> Tensor:
        """The places of a known tensor's entries that are not zero."""
        with unset_fake_temporarily():
            known = getattr(tensor, _VALUES).nonzero()
            shape = known.to("meta")
        assert isinstance(tensor, FakeTensor)
        places = FakeTensor(tensor.fake_mode, shape, torch.device("cpu"))
        setattr(places, _VALUES, known)
        self._add(places)
        return places

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def _spans(self, spans: Tensor) -> list[Any]:
        """The examples of a batch, where the operator's own are not known from the rows' lengths."""
        known = getattr(spans, _VALUES, None)
        if known is not None:
            with unset_fake_temporarily():
                return list(known.tolist())
        return [(row, 0, length, 0, length) for row, length in enumerate(self.lengths)]

    def _flops(self, func: Any, args: Any, kwargs: Any, out: Any) -> float:
        packet = func.overloadpacket
        if packet in (_BLOCKS, _BLOCKS_BACKWARD):
            query, _, value, spans = args[:4] if packet is _BLOCKS else args[2:6]
            pairs = _num_pairs(self._spans(spans), left=args[-5], right=args[-4])
            products = 2 if packet is _BLOCKS else 4
            return float(products * query.shape[1] * pairs * (query.shape[3] + value.shape[3]))
        if packet in (_NATIVE, _NATIVE_BACKWARD):
            query, spans = (args[0], args[3]) if packet is _NATIVE else (args[3], args[6])
            pairs = _num_pairs(self._spans(spans), left=args[-2], right=args[-1])
            return float((4 if packet is _NATIVE else 10) * query.shape[1] * pairs * query.shape[3])
        if packet in (_ATTENTION, _ATTENTION_BACKWARD):
            shapes = [tuple(one.shape) for one in args if isinstance(one, Tensor)]
            is_causal = next((one for one in [*args, *kwargs.values()] if isinstance(one, bool)), False)
            count = sdpa_flop_count if packet is _ATTENTION else sdpa_backward_flop_count
            return float(count(*shapes[: 3 if packet is _ATTENTION else 4])) / (2 if is_causal else 1)  # type: ignore[no-untyped-call]
        formula = flop_registry.get(packet)
        return float(formula(*args, **kwargs, out_val=out)) if formula is not None else 0.0


def _read(func: Any, args: Any) -> Any:
    """The number or the answer that Python code asks of fake tensors where they are known, else zero or no."""
    known = [getattr(one, _VALUES, None) for one in args]
    with unset_fake_temporarily():
        return func(*known) if all(one is not None for one in known) else 0


def _follow(func: Any, args: Any, kwargs: Any, made: Sequence[Tensor]) -> None:
    """Give whole numbers their values: masks and borders are read by the code that is traced.

    What is made of known whole numbers alone is really computed beside the fake tensor.
    """
    if not made or any(one.numel() > (_FEW if one.is_floating_point() else _MOST_FOLLOWED) for one in made):
        return
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    is_lifted = func is torch.ops.aten.lift_fresh.default
    if not is_lifted and any(getattr(one, _VALUES, None) is None for one in given if isinstance(one, FakeTensor)):
        for one in made:
            if hasattr(one, _VALUES):
                delattr(one, _VALUES)  # written into with something unknown
        return
    with unset_fake_temporarily():
        known = tree_map(lambda one: getattr(one, _VALUES, one), (args, kwargs))
        real = [one for one in tree_leaves(func(*known[0], **known[1])) if isinstance(one, Tensor)]
    for one, value in zip(made, real, strict=True):
        setattr(one, _VALUES, value)


def _num_pairs(spans: Sequence[Any], left: int, right: int) -> float:
    """Queries times keys that blockwise attention computes for these examples."""
    attend = Attend(1.0, left, right)
    return float(
        sum(
            len(group) * (last - first) * (high - low)
            for group in groups(spans)
            for first, last, low, high in query_blocks(*sizes(group), attend)
        )
    )


def _num_bytes(tensors: Any) -> float:
    return float(sum(one.numel() * one.element_size() for one in tensors if isinstance(one, Tensor)))


def _block_lists(model: nn.Module) -> list[tuple[nn.Module, str, nn.ModuleList]]:
    """Where the blocks hang: (parent, name, list), the encoder's before the decoder's."""
    found = []
    for members in (encoder_blocks(model), blocks(model)):
        if not members:
            continue
        for parent in model.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.ModuleList) and len(child) == len(members) and child[0] is members[0]:
                    found.append((parent, name, child))
    return found


def _depth_names(config: Any, depth: int) -> list[tuple[str, int]]:
    """Settings of a configuration that count its blocks, which some models loop over."""
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return [(name, depth) for name in names if isinstance(vars(config).get(name), int) and vars(config)[name] == depth]


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Every tensor of the model as one without memory that believes to be on the processor."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            shape = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(shape, requires_grad=tensor.requires_grad) if is_parameter else shape
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, tensor in list(held.items()):
                if isinstance(tensor, Tensor):
                    held[name] = fake(tensor)  # type: ignore[assignment]


def _forget_caches() -> None:
    """Drop what kernels remember between calls: a fake tensor must not reach a real one, nor the other way round."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tunesmith.kernels."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
