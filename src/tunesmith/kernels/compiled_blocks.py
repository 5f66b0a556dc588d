"""The blocks of a model, with one compiled forward and backward pass for all that are alike.

`torch.compile` sees one block, not the model: it takes seconds and is the same work for 2 blocks or 80. Lengths are
symbols, so other lengths compile nothing anew. Once `warm` has compiled what there is to compile, nothing is compiled
any more: a call that fits nothing compiled runs the block as it is, so a run's speed and digits follow from its start.
Only passes that make gradients are compiled; validation and answers take the blocks as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

MAX_KINDS = 4
"""Of blocks in one model (Gemma's local and global ones are two); of more kinds none is compiled."""
OPTIONS: dict[str, Any] = {"fallback_random": True}
"""Random numbers as PyTorch draws them: inductor's own made BERT's block 13 % slower than plain (docs/log.md)."""
USUAL_STANCE = "eager_on_recompile"
"""Of PyTorch: what would compile anew runs as it is."""


class CannotCompileError(Exception):
    """Why blocks run as they are, in words; the original fault is its cause."""


@dataclass(frozen=True)
class Call:
    """What one block was called with; tensors are copies, with gradients where the model's had them."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What the forward pass runs in."""

    def run(self) -> None:
        """The block's forward pass with these, and its backward pass; the weights' gradients are thrown away."""
        with self.precision():
            leaves = tree_leaves(self.block(*self.args, **self.kwargs))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        for tensor in (*self.block.parameters(), *tree_leaves((self.args, self.kwargs))):
            if isinstance(tensor, Tensor) and tensor.is_leaf:
                tensor.grad = None


class CompiledBlocks:
    """Compiled passes for these blocks; they lie ready, and are used within `use(True)`."""

    def __init__(self, blocks: Sequence[nn.Module], *, backend: str = "inductor") -> None:
        self.blocks = tuple(blocks)
        self.is_used = False
        self._stance = USUAL_STANCE
        options = OPTIONS if backend == "inductor" else None
        kinds = {type(block) for block in self.blocks}
        self._compiled: dict[type, Callable[..., Any]] = {
            kind: torch.compile(_own_code(kind.forward), fullgraph=True, dynamic=True, backend=backend, options=options)
            for kind in kinds
        }
        self._given: dict[nn.Module, tuple[Any, Any]] = {}
        for block in self.blocks:
            forward = self._forward_of(block)
            self._given[block] = (vars(block).get("forward"), forward)
            block.forward = forward

    def warm(self, calls: Sequence[Call]) -> None:
        """Compile what these calls need, forward and backward.

        Raises:
            CannotCompileError: PyTorch or the C++ compiler could not.
        """
        before, self.is_used, self._stance = self.is_used, True, "default"
        try:
            for call in calls:
                call.run()
        except Exception as fault:
            reason = why_not_compiled(fault)
            if not reason:
                raise
            raise CannotCompileError(reason) from fault
        finally:
            self.is_used, self._stance = before, USUAL_STANCE

    def fits(self, call: Call) -> bool:
        """Whether a call is served by what is compiled already."""
        before, self.is_used, self._stance = self.is_used, True, "fail_on_recompile"
        try:
            call.run()
        except RuntimeError as fault:
            if "fail_on_recompile" not in str(fault):
                raise
            return False
        finally:
            self.is_used, self._stance = before, USUAL_STANCE
        return True

    def use(self, is_used: bool) -> None:
        """Whether passes that make gradients take the compiled ones from now on."""
        self.is_used = is_used

    def take_off(self) -> None:
        """Give the blocks the forwards that they had."""
        for block, (before, mine) in self._given.items():
            if vars(block).get("forward") is mine:  # whoever wrapped it since then calls the block as it is
                del block.forward
                if before is not None:
                    block.forward = before
        self.is_used = False

    def _forward_of(self, block: nn.Module) -> Callable[..., Any]:
        compiled = self._compiled[type(block)]
        plain: Callable[..., Any] = block.forward
        trains = any(parameter.requires_grad for parameter in block.parameters())

        @wraps(type(block).forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.is_used or not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
                return plain(*args, **kwargs)
            args, kwargs, makes_gradients = _with_gradient(args, kwargs, trains)
            if not makes_gradients:
                return plain(*args, **kwargs)
            with torch.compiler.set_stance(self._stance):
                return compiled(block, *args, **kwargs)

        return forward


def kind_of(block: nn.Module) -> tuple[Any, ...]:
    """What blocks that share a compiled pass have in common: classes, shapes, what trains, and plain settings."""
    parts: list[Any] = []
    for name, module in block.named_modules():
        weights = [
            (key, tuple(weight.shape), weight.dtype, weight.requires_grad)
            for key, weight in module.named_parameters(recurse=False)
        ]
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | None) and not key.startswith("_") and "idx" not in key
        }
        parts.append((name, type(module), tuple(weights), tuple(sorted(plain.items(), key=str))))
    return tuple(parts)


def calls_of(
    blocks: Sequence[nn.Module],
    run: Callable[[], object],
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Call]:
    """What `run`, which calls the model once with gradients, calls each of these blocks with; one call of each kind.

    Blocks that `run` does not reach, or through which no gradient flows, are left out.
    """
    calls: dict[Any, Call] = {}

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (kind := kind_of(block)) not in calls:
            args, kwargs = tree_map(_copied, (args, kwargs))
            calls[kind] = Call(block, args, kwargs, precision)

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        with torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [call for call in calls.values() if _makes_gradients(call)]


def why_not_compiled(fault: BaseException) -> str:
    """The reason, where a fault means that something cannot be compiled; empty for every other fault."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler, OperatorIssue

    known = (TorchDynamoException, FailOnRecompileLimitHit, CppCompileError, InvalidCxxCompiler, OperatorIssue)
    if not isinstance(fault, (*known, OSError, ImportError)):  # the last two: what is compiled cannot be kept or loaded
        return ""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return f"torch.compile: {lines[0][:120]}" if lines else f"torch.compile: {type(fault).__name__}"


def _own_code(function: Any) -> Any:
    """A copy with a code object of its own: PyTorch keeps, guards and counts what is compiled by code object."""
    function = getattr(function, "__func__", function)
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _with_gradient(args: Any, kwargs: Any, trains: bool) -> tuple[Any, Any, bool]:
    """The arguments with states that have a gradient: the first block's have none where embeddings are frozen, and
    without this it would be compiled a second time. Whether a gradient is made at all comes last."""
    states = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(states, Tensor):
        return args, kwargs, False
    if states.requires_grad or not trains:
        return args, kwargs, states.requires_grad
    states = states.detach().requires_grad_()
    return ((states, *args[1:]), kwargs, True) if args else (args, {**kwargs, "hidden_states": states}, True)


def _makes_gradients(call: Call) -> bool:
    trains = any(parameter.requires_grad for parameter in call.block.parameters())
    return _with_gradient(call.args, call.kwargs, trains)[2]


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
