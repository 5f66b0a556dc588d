"""Save and load plain transformers folders exactly, and choose which weights train."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn import Module

from tunesmith.core.errors import UserError
from tunesmith.core.publish import refuse_pickles
from tunesmith.models.number_head import make_exact
from tunesmith.models.quiet import quiet


def train_only(model: Module, modules: Iterable[Module]) -> Module:
    """The model with only these modules training, their weights in fp32."""
    model.requires_grad_(False)
    for module in modules:
        module.float().requires_grad_(True)
    return model


def save_plain(model: Any, folder: Path) -> None:
    """A transformers folder in fp32, which holds frozen bf16 weights beside trained fp32 ones without loss."""
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()
    with quiet():
        model.save_pretrained(folder)


def own_memory(model: Module) -> None:
    """Move the weights out of the mapped file.

    There they lie unaligned, which changes the last bit of products, and a file that is replaced would pull the
    ground from under them.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor) in (torch.nn.Parameter, torch.Tensor):  # quantised ones were made in memory, and hold more
            tensor.data = tensor.data.clone()


def load_plain(model: Any, folder: Path) -> Module:
    """The model of `folder` with the types, the device and the training weights of `model`.

    Raises:
        UserError: Something is missing, is too much, has another shape, or is damaged.
    """
    refuse_pickles(folder)
    try:
        with quiet():
            loaded, info = type(model).from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise UserError(f"the model cannot be read: {reason}.", code="bad_model", where=str(folder)) from fault
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])]
    pattern = {name: (value.shape, value.dtype, value.requires_grad) for name, value in model.named_parameters()}
    found = dict(loaded.named_parameters())
    wrong += sorted(pattern.keys() ^ found.keys())
    wrong += [name for name in pattern.keys() & found.keys() if pattern[name][0] != found[name].shape]
    if wrong:
        raise UserError(
            f"{len(wrong)} weights are missing, unexpected or of another shape: {', '.join(sorted(wrong)[:3])}.",
            code="bad_model",
            where=str(folder),
            remedy="The folder belongs to another base, or is damaged.",
        )
    for name, parameter in found.items():
        _, dtype, trains = pattern[name]
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(trains)
    own_memory(loaded)
    make_exact(loaded)
    loaded.name_or_path = model.name_or_path
    ready: Module = loaded.to(model.device).train(model.training)
    return ready
