"""PiSSA: a low-rank adapter that begins as the principal part of its matrix, beside an untouched base.

The paper (arXiv:2404.02948, eqs. 2 to 5) splits W = U S V^T after the first r singular values into the part that
trains, s B0 A0 with A0 = (S_r / s)^1/2 V_r^T and B0 = U_r (S_r / s)^1/2, and the residual W - s B0 A0 that stays.
PEFT writes the residual over the base's weights: then nothing else can use that base, switching the adapter off
needs the principal part again, and a bf16 base loses digits. Here W stays, and W x + s (B A - B0 A0) x is computed
by two adapters of PEFT: `default` holds A and B and trains, `initial` holds A0 and -B0 and is frozen. Both are
saved as one ordinary LoRA adapter of twice the rank, [A; A0] and [B, -B0], which opens on the base as it was.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module
from transformers.pytorch_utils import Conv1D

from tunesmith.core.errors import UserError
from tunesmith.models.adapters import WEIGHTS, attach_adapter, new_adapter
from tunesmith.models.quiet import quiet

TRAINED, INITIAL = "default", "initial"


def principal_part(weight_OI: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A0 [rank, I] and B0 [O, rank] in fp32, so that scaling B0 A0 is the best approximation of the weight."""
    left_OR, values_R, right_RI = torch.linalg.svd(weight_OI.float(), full_matrices=False)
    root_R = (values_R[:rank] / scaling).sqrt()
    return root_R[:, None] * right_RI[:rank], left_OR[:, :rank] * root_R


def new_pissa(model: Module, config: Any) -> Any:
    """PEFT's wrapper with both adapters; `config` is that of an ordinary LoRA.

    Raises:
        UserError: The rank is more than a matrix has.
    """
    adapted = _with_both(new_adapter(model, config), config)
    for name, layer in _layers(adapted):
        weight = layer.get_base_layer().weight
        rank = layer.r[TRAINED]
        if rank > min(weight.shape):
            raise UserError(
                f"PiSSA of rank {rank} needs {rank} singular values, and {name} has {min(weight.shape)}.",
                code="bad_value",
                remedy=f"Set method.rank to at most {min(weight.shape)}, or give this matrix its own in method.ranks.",
            )
        weight_OI = weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight
        a, b = principal_part(weight_OI.detach(), rank, layer.scaling[TRAINED])
        _fill(layer, TRAINED, a, b)
        _fill(layer, INITIAL, a, -b)
    return adapted


def save_pissa(model: Any, folder: Path) -> None:
    """One ordinary LoRA adapter of twice the rank, as peft reads it."""
    with quiet():
        model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=[TRAINED])
    weights = load_file(folder / WEIGHTS)
    for name, layer in _layers(model):
        key = f"base_model.model.{name}"
        a, b, a0, b0 = (
            module[adapter].weight.detach().cpu()
            for adapter in (TRAINED, INITIAL)
            for module in (layer.lora_A, layer.lora_B)
        )
        weights[f"{key}.lora_A.weight"] = torch.cat([a, a0])
        weights[f"{key}.lora_B.weight"] = torch.cat([b, b0], dim=1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(_times(json.loads(file.read_text()), 2), indent=2, sort_keys=True))


def load_pissa(model: Module, folder: Path, config: Any) -> Any:
    """PEFT's wrapper with both adapters as they were saved, ready to train on.

    Raises:
        UserError: As `attach_adapter`, or the ranks are not twice those of `config`.
    """
    given = attach_adapter(model, folder, is_trainable=True)
    halves = {name: (layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight) for name, layer in _layers(given)}
    saved = given.peft_config[TRAINED]
    wanted = _times({key: getattr(config, key) for key in _DOUBLED}, 2)
    if any(getattr(saved, key) != value for key, value in wanted.items()):
        raise UserError(
            f"the adapter has rank {saved.r}; a PiSSA of rank {config.r} is saved with rank {2 * config.r}.",
            code="bad_adapter",
            where=str(folder),
            remedy="Set method.rank, method.alpha and method.ranks to what it was trained with.",
        )
    kept = [copy.deepcopy(wrapper.modules_to_save[TRAINED].state_dict()) for wrapper in _wholes(given)]
    for wrapper in _wholes(given):
        wrapper.set_adapter([])  # `unload` then gives the original back, not the trained copy
    adapted = _with_both(new_adapter(given.unload(), config), config)
    for name, layer in _layers(adapted):
        a, b = halves[name]
        rank = layer.r[TRAINED]
        _fill(layer, TRAINED, a[:rank], b[:, :rank])
        _fill(layer, INITIAL, a[rank:], b[:, rank:])
    for wrapper, state in zip(_wholes(adapted), kept, strict=True):
        wrapper.modules_to_save[TRAINED].load_state_dict(state)
    return adapted


_DOUBLED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")


def _times(settings: dict[str, Any], factor: int) -> dict[str, Any]:
    """Ranks and alphas times `factor`: their quotient, the scaling, stays."""
    changed = dict(settings)
    for key in _DOUBLED:
        value = settings[key]
        changed[key] = {k: v * factor for k, v in value.items()} if isinstance(value, dict) else value * factor
    return changed


def _with_both(adapted: Any, config: Any) -> Any:
    from peft import PeftModel

    frozen = copy.deepcopy(config)
    frozen.modules_to_save = None  # a classifier's own would give it a second head
    frozen.lora_dropout = 0.0  # it stands for the residual of the base, whose inputs are never dropped
    with quiet():
        PeftModel.add_adapter(adapted, INITIAL, frozen)
        adapted.base_model.set_adapter([TRAINED, INITIAL])
    for _, layer in _layers(adapted):
        for part in (layer.lora_A, layer.lora_B):
            part[INITIAL].requires_grad_(False)
    return adapted


def _layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """The adapted layers by their names in the base."""
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            yield name, module


def _wholes(adapted: Any) -> list[Any]:
    """PEFT's wrappers around the modules that train whole (a classifier's head)."""
    from peft.utils.other import ModulesToSaveWrapper

    return [module for module in adapted.modules() if isinstance(module, ModulesToSaveWrapper)]


@torch.no_grad()
def _fill(layer: Any, adapter: str, a: Tensor, b: Tensor) -> None:
    layer.lora_A[adapter].weight.copy_(a)
    layer.lora_B[adapter].weight.copy_(b)
