"""The parts of any transformers model, found by structure and never by the model's type.

The blocks are the longest list of modules of one class; what lies outside the backbone is the head.
BERT's pooler sits inside the backbone but belongs to the head: RoBERTa, DistilBERT and ModernBERT keep
the same layer outside, and a checkpoint from masked language modelling comes without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch.nn import Linear, Module, ModuleList
from transformers.pytorch_utils import Conv1D

Part = Literal["all-linear", "attention", "mlp"]


def plain(model: Module) -> Any:
    """The transformers model itself, without the wrapper that PEFT puts around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def blocks(model: Module) -> list[Module]:
    """The transformer blocks in order; the decoder's where there is an encoder too."""
    return list(_longest_list(plain(model).get_decoder() if is_encoder_decoder(model) else plain(model))[1])


def encoder_blocks(model: Module) -> list[Module]:
    """The encoder's blocks of an encoder-decoder, otherwise none."""
    return list(_longest_list(plain(model).get_encoder())[1]) if is_encoder_decoder(model) else []


def backbone(model: Module) -> Module:
    """The model without its head; the model itself where the head hangs directly among its parts (T5)."""
    return cast(Module, plain(model).base_model)


def head(model: Module) -> Module | None:
    """The last layer: to the vocabulary or to the classes. None for a bare backbone."""
    output = plain(model).get_output_embeddings()
    if isinstance(output, Module):
        return output
    found = list(head_modules(model).values())
    return found[-1] if found else None


def head_modules(model: Module) -> dict[str, Module]:
    """Everything between the backbone's states and the model's output, by full name, in order."""
    whole = plain(model)
    body = backbone(model)
    if body is whole:
        output = plain(model).get_output_embeddings()
        return {name: module for name, module in whole.named_children() if module is output}
    pooler = {
        name: module
        for name, module in whole.named_modules()
        if name.endswith(".pooler") and any(True for _ in module.parameters())
    }
    outside = {
        name: module
        for name, module in whole.named_children()
        if module is not body and any(True for _ in module.parameters())
    }
    return pooler | outside


def final_norm(model: Module) -> Module | None:
    """The norm after the last block; None where each block ends with its own (BERT, BART)."""
    scope = plain(model).get_decoder() if is_encoder_decoder(model) else plain(model)
    path, _ = _longest_list(scope)
    parent = scope.get_submodule(path.rpartition(".")[0])
    children = list(parent.named_children())
    after = children[[name for name, _ in children].index(path.rpartition(".")[2]) + 1 :]
    norms = [module for name, module in after if "Norm" in type(module).__name__ and "emb" not in name.lower()]
    return norms[0] if norms else None


def embeddings(model: Module) -> Module:
    """The table of token embeddings."""
    return cast(Module, plain(model).get_input_embeddings())


def is_tied(model: Module) -> bool:
    """Whether the layer to the vocabulary is the table of token embeddings itself."""
    output = plain(model).get_output_embeddings()
    return output is not None and output.weight is getattr(embeddings(model), "weight", None)


def is_classifier(model: Module) -> bool:
    """Whether the model ends in classes and not in a vocabulary."""
    return plain(model).get_output_embeddings() is None and bool(head_modules(model))


def is_tagger(model: Module) -> bool:
    """Whether each token gets a class of its own."""
    return type(plain(model)).__name__.endswith("ForTokenClassification")


def task_of(model: Module) -> str:
    """What the model's head is for, as far as methods tell it apart: `tag`, `classify`, or text (`causal`)."""
    return "tag" if is_tagger(model) else "classify" if is_classifier(model) else "causal"


def is_encoder_decoder(model: Module) -> bool:
    """Whether a decoder attends to an encoder."""
    return bool(getattr(plain(model).config, "is_encoder_decoder", False))


def num_parameters(model: Module) -> tuple[int, int]:
    """Parameters that train, and all of them; a tied table counts once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def linears(model: Module, part: Part = "all-linear") -> list[str]:
    """Full names of the matrices inside the blocks (encoder's and decoder's): all, attention's, or the others."""
    whole = plain(model)
    inside = {id(module) for block in (*encoder_blocks(model), *blocks(model)) for module in block.modules()}
    names = [
        name
        for name, module in whole.named_modules()
        if id(module) in inside and isinstance(module, (Linear, Conv1D)) and "lora_" not in name
    ]
    if part == "all-linear":
        return names
    return [name for name in names if bool(re.search(r"attn|attention", name.lower())) == (part == "attention")]


def hidden_matrices(model: Module) -> frozenset[int]:
    """The identities of the matrices inside the blocks that are weights of linear layers, the adapters' among them."""
    return frozenset(
        id(module.weight)
        for block in (*encoder_blocks(model), *blocks(model))
        for module in block.modules()
        if isinstance(module, (Linear, Conv1D))
    )


@dataclass(frozen=True)
class AttentionParts:
    """Full names of the matrices that make queries, keys and values; `fused` makes all three at once."""

    queries: list[str]
    keys: list[str]
    values: list[str]
    fused: list[str]


def attention_parts(model: Module) -> AttentionParts:
    """The matrices of every attention by what they make (all architectures name them so: q_proj, query, q_lin, q).

    A matrix is fused where its attention has none for keys and it is wider than its input.
    """
    found: dict[str, list[str]] = {"q": [], "k": [], "v": [], "fused": []}
    others: dict[str, list[str]] = {}
    split = set()
    for name in linears(model, "attention"):
        parent, _, last = name.rpartition(".")
        kinds = {_KINDS[word] for word in re.split(r"[^a-z]", last.lower()) if word in _KINDS}
        if len(kinds) == 1:
            found[kinds.pop()].append(name)
            split.add(parent)
        else:
            others.setdefault(parent, []).append(name)
    for parent, names in others.items():
        if parent not in split:
            found["fused"] += [name for name in names if _is_wider(plain(model).get_submodule(name))]
    return AttentionParts(found["q"], found["k"], found["v"], found["fused"])


@dataclass(frozen=True)
class MlpParts:
    """Full names of the MLPs' matrices: those that read the block's states, and the one that writes them."""

    first: list[str]
    last: list[str]
    has_experts: bool
    """Whether some MLP is a mixture of experts, whose weights are one tensor of three axes."""


def mlp_parts(model: Module) -> MlpParts:
    """Every MLP's matrices by their place: the last writes the block's width, all before it read it."""
    names = linears(model, "mlp")
    modules = dict(plain(model).named_modules())
    first, last, has_experts = [], [], False
    for block in (*encoder_blocks(model), *blocks(model)):
        inside = {id(module) for module in block.modules()}
        own = [name for name in names if id(modules[name]) in inside]
        has_experts = has_experts or any(parameter.ndim == 3 for parameter in block.parameters())
        if own and not _is_wider(modules[own[-1]]):
            first += own[:-1]
            last.append(own[-1])
    return MlpParts(first, last, has_experts)


_KINDS = {"q": "q", "query": "q", "k": "k", "key": "k", "v": "v", "value": "v"}


def _is_wider(module: Any) -> bool:
    """Whether a matrix has more outputs than inputs."""
    is_conv = isinstance(module, Conv1D)
    return bool(module.nf > module.nx if is_conv else module.out_features > module.in_features)


def _longest_list(scope: Module) -> tuple[str, ModuleList]:
    found = list(_lists(scope, ""))
    assert found, f"{type(scope).__name__} has no list of blocks"
    return max(found, key=lambda item: (len(item[1]), sum(p.numel() for p in item[1].parameters())))


def _lists(module: Module, path: str) -> Iterator[tuple[str, ModuleList]]:
    """Outermost lists of modules of one class: what is inside a block (experts, sublayers) is not looked at."""
    for name, child in module.named_children():
        full = f"{path}.{name}".lstrip(".")
        if isinstance(child, ModuleList) and len({type(member) for member in child}) == 1:
            yield full, child
        else:
            yield from _lists(child, full)
