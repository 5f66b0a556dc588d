"""One backbone under several heads: models of different tasks that use the very same parameters.

The models stay plain transformers (or PEFT) models, each with its own head; only their parameters are the same
objects, adapters' included. So every method, objective and way of saving works on each of them as it does on one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch.nn import Module, Parameter

from tunesmith.core.errors import UserError
from tunesmith.core.publish import sha256
from tunesmith.models.anatomy import backbone, blocks, encoder_blocks, head_modules, is_classifier, plain

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def share_backbone(first: Module, other: Module) -> None:
    """Let `other` use the parameters of `first` wherever both have the same one; a classifier's head stays its own.

    What trains in one of them trains in both.

    Raises:
        UserError: Their blocks are not the same.
    """
    pool, own = _shareable(first), _shareable(other)
    found: dict[int, Parameter] = {}
    for key, parameter in own.items():
        twin = pool.get(key)
        if twin is not None and (twin.shape, twin.dtype) == (parameter.shape, parameter.dtype):
            twin.requires_grad_(twin.requires_grad or parameter.requires_grad)
            found[id(parameter)] = twin
    inside = {id(p) for block in (*encoder_blocks(other), *blocks(other)) for p in block.parameters()}
    if lost := inside - set(found):
        raise UserError(
            f"the tasks' models do not share a backbone: {len(lost)} of {len(inside)} parameters in the blocks differ.",
            code="no_shared_backbone",
            where="data.source",
            remedy="Use objectives that the model reads with the same blocks, or train the tasks one by one.",
        )
    for module in other.modules():
        for name, old in module._parameters.items():
            if old is not None and id(old) in found:
                module._parameters[name] = found[id(old)]


def shared_names(model: Module, others: Sequence[Module]) -> set[str]:
    """The names, in a plain model's state, of the parameters that all the others use too."""
    everywhere = [{id(parameter) for parameter in other.parameters()} for other in others]
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if all(id(parameter) in ids for ids in everywhere)
    }


def split_weights(folder: Path, names: Collection[str], twins: Sequence[Path]) -> None:
    """Divide a folder's weights into what is shared and what is not, and link the shared file to a twin's equal one.

    So the backbone takes its place on disk once. The folder stays one that transformers opens (weights in shards with
    an index). Where a file system knows no links, or a folder has no `model.safetensors`, nothing is lost but space.
    """
    whole = folder / WEIGHTS
    if not whole.is_file():
        return
    tensors = load_file(whole)
    parts = [
        {name: tensor for name, tensor in tensors.items() if (name in names) == is_shared}
        for is_shared in (True, False)
    ]
    if not parts[0]:
        return
    parts = [part for part in parts if part]
    files = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for part, name in zip(parts, files, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for part, file in zip(parts, files, strict=True) for name in sorted(part)},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    whole.unlink()
    _link(folder / files[0], twins)


def _link(file: Path, twins: Sequence[Path]) -> None:
    digest = sha256(file)
    for candidate in (path for twin in twins for path in sorted(twin.glob("model-00001-of-*.safetensors"))):
        if candidate.stat().st_size == file.stat().st_size and sha256(candidate) == digest:
            spare = file.with_suffix(".spare")
            file.rename(spare)
            try:
                os.link(candidate, file)
            except OSError:  # another file system, or one without links
                shutil.move(spare, file)
            spare.unlink(missing_ok=True)
            return


def _shareable(model: Module) -> dict[str, Parameter]:
    """What another task may use, under a name that does not depend on the head."""
    body, inner = backbone(model), plain(model)
    own = {id(p) for head in head_modules(model).values() for p in head.parameters()} if is_classifier(model) else set()
    names = {id(module): name for name, module in model.named_modules()}
    in_body, in_model = (f"{names[id(module)]}." if names[id(module)] else "" for module in (body, inner))
    found = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            continue
        if name.startswith(in_body):
            found[f"backbone {name.removeprefix(in_body)}"] = parameter
        elif name.startswith(in_model):
            found[f"{type(inner).__name__} {name.removeprefix(in_model)}"] = parameter
        else:
            found[f"adapter {name}"] = parameter
    return found
