"""The sublayers of every block, found by structure: where attention and the MLP begin and end, and the norms.

A block ends in a sum with its input (pre-norm: Llama, GPT-2, T5) or in a norm over that sum (post-norm: BERT, BART);
a stack of pre-norm blocks is followed by one more norm, and that is how the two are told apart. An adapter that PEFT
has put on the model is looked through, so names are those of the plain model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch.nn import Linear, Module, ModuleDict, ModuleList
from transformers.pytorch_utils import Conv1D

from tunesmith.core.errors import UserError
from tunesmith.models.anatomy import blocks, encoder_blocks, head_modules, is_encoder_decoder, plain

_ATTENTION = re.compile(r"^(.*?[^.]*(?:attn|attention)[^.]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Sublayer:
    """One attention (self or cross) or MLP of a block; every field is a module's full name."""

    kind: Literal["attention", "mlp"]
    block: str
    output: str
    """The module whose output is added to the residual stream: a matrix, or a whole mixture of experts."""
    reader: str
    """A module that reads the MLP's input; for a mixture of experts the same as `output`. Empty for attention."""
    last_norm: str
    """The norm in which a post-norm block ends; empty where the block ends in the sum."""


def sublayers(model: Module) -> list[Sublayer]:
    """Every attention and MLP, in the order of the blocks, the encoder's first.

    Raises:
        UserError: A block has no MLP that ends in the model's width.
    """
    whole = plain(model)
    names = {id(module): name for name, module in originals(whole)}
    found: list[Sublayer] = []
    stacks = [encoder_blocks(model), blocks(model)]
    scopes = [whole.get_encoder(), whole.get_decoder()] if is_encoder_decoder(model) else [whole, whole]
    for stack, scope in zip(stacks, scopes, strict=True):
        is_post_norm = bool(stack) and not _has_final_norm(scope, stack)
        for block in stack:
            found += _of_block(block, names[id(block)], width(model), is_post_norm=is_post_norm)
    return found


def norms(model: Module) -> list[str]:
    """Full names of every norm with weights, without those of a new head."""
    head = tuple(f"{name}." for name in head_modules(model))
    return [
        name
        for name, module in originals(plain(model))
        if is_norm(module) and not f"{name}.".startswith(head or ("\n",))
    ]


def is_norm(module: Module) -> bool:
    """Whether the module is a norm with weights of its own."""
    return "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))


def width(model: Module) -> int:
    """Features of the residual stream."""
    return int(plain(model).config.hidden_size)


def originals(module: Module, path: str = "") -> Iterator[tuple[str, Any]]:
    """As `named_modules` of the plain model, whatever adapters PEFT has put around its parts."""
    for name, child in module.named_children():
        inner: Any = child
        while hasattr(inner, "base_layer") or hasattr(inner, "original_module"):
            inner = inner.base_layer if hasattr(inner, "base_layer") else inner.original_module
        full = f"{path}.{name}".lstrip(".")
        yield full, inner
        yield from originals(inner, full)


def _of_block(block: Module, path: str, features: int, *, is_post_norm: bool) -> list[Sublayer]:
    inside = dict(originals(block))
    matrices = {name: module for name, module in inside.items() if isinstance(module, Linear | Conv1D)}
    last = [name for name, module in inside.items() if is_norm(module)]
    end = f"{path}.{last[-1]}" if is_post_norm and last else ""
    attentions: dict[str, list[str]] = {}
    for name in matrices:
        match = _ATTENTION.match(name)
        if match:
            attentions.setdefault(match.group(1), []).append(name)
    made = [
        Sublayer("attention", path, f"{path}.{out}", "", end)
        for group in attentions.values()
        for out in [name for name in group if num_outputs(matrices[name]) == features][-1:]
    ]
    experts = _mixture(inside)
    rest = [name for name in matrices if not _ATTENTION.match(name)]
    outs = [name for name in rest if num_outputs(matrices[name]) == features]
    if not experts and not outs:
        raise UserError(
            f'the MLP of "{path}" was not found: no matrix outside attention gives {features} features.',
            code="method_refused",
            remedy="Use `method: lora`, or `method: full`.",
        )
    out, reader = (experts, experts) if experts else (outs[-1], rest[0])
    return [*made, Sublayer("mlp", path, f"{path}.{out}", f"{path}.{reader}", end)]


def num_outputs(matrix: Any) -> int:
    """Features that a matrix gives."""
    return int(matrix.out_features if isinstance(matrix, Linear) else matrix.nf)


def _mixture(inside: dict[str, Module]) -> str:
    """The module in which experts are mixed, by its name in the block; empty where there are no experts."""
    for name, module in inside.items():
        is_stack = any(parameter.ndim >= 3 for parameter in module.parameters(recurse=False))
        is_list = isinstance(module, ModuleList | ModuleDict) and name.endswith("experts")
        if is_stack or is_list:
            return name.rpartition(".")[0] or name
    return ""


def _has_final_norm(scope: Module, stack: list[Module]) -> bool:
    """Whether a norm follows the blocks beside them."""
    for parent in (scope, *(module for _, module in originals(scope))):
        children = list(parent.named_children())
        place = next((i for i, (_, child) in enumerate(children) if stack[0] in list(child.children())), None)
        if place is not None:
            after = [(name, dict(originals(parent))[name]) for name, _ in children[place + 1 :]]
            return any(is_norm(module) and "emb" not in name.lower() for name, module in after)
    raise AssertionError("the blocks lie in no module of their scope")
