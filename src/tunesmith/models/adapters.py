"""PEFT adapters on a base model: put on new, saved, loaded strictly, merged, switched off.

PEFT fills in what an adapter file lacks and drops what it does not know; here both are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import Module

from tunesmith.core.errors import UserError
from tunesmith.core.publish import refuse_pickles
from tunesmith.models.anatomy import head_modules, is_classifier, is_encoder_decoder, is_tagger, plain
from tunesmith.models.quantize import is_quantized, keep_types, with_plain_base
from tunesmith.models.quiet import quiet
from tunesmith.models.virtual_tokens import (
    check_fits,
    open_for_training,
    prompt_config,
    prompts_in_fp32,
    read_last_token,
    without_virtual_tokens,
)

WEIGHTS = "adapter_model.safetensors"


def new_adapter(model: Module, config: Any) -> Any:
    """PEFT's wrapper around the model with a new adapter: only that trains (and a classifier's head), in fp32."""
    from peft import get_peft_model

    _new_head_in_fp32(model)
    with quiet():
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    prompts_in_fp32(adapted)
    read_last_token(adapted)
    keep_types(adapted)
    return adapted


@torch.no_grad()  # a network that writes virtual tokens gives the same last bits as when they answer
def save_adapter(model: Any, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors."""
    with quiet():
        # False: "auto" would ask the hub whether the vocabulary grew, and it never grows here.
        model.save_pretrained(str(folder), save_embedding_layers=False)


def merge_adapter(model: Any) -> Module:
    """The base with the update added to its weights, in fp32; the adapter is gone from `model` afterwards."""
    if is_quantized(model):
        model = with_plain_base(model)
    merged: Module = _without_wrappers(model.float()).merge_and_unload(safe_merge=True)
    return merged


def _without_wrappers(model: Any) -> Any:
    """The trained head in its place: PEFT's own replacement fails on one of several parts (BERT's pooler)."""
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.unload_and_optionally_merge_module(True, True, None))
    return model


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """PEFT's own, which forgets what trained when it switches the adapter on again."""
    from peft.utils import ModulesToSaveWrapper

    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    try:
        with without_virtual_tokens(model) if prompt_config(model) else model.disable_adapter():
            for trained in heads:  # left on by PEFT before virtual tokens
                trained.enable_adapters(False)
            yield
    finally:
        for trained in heads:
            trained.enable_adapters(True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trains)


def task_type(model: Module) -> str | None:
    """PEFT's word for what the model does; None where it has none (masked language models)."""
    if is_classifier(model):
        return "TOKEN_CLS" if is_tagger(model) else "SEQ_CLS"
    if not plain(model).can_generate():
        return None
    return "SEQ_2_SEQ_LM" if is_encoder_decoder(model) else "CAUSAL_LM"


def new_heads(model: Module) -> list[str] | None:
    """The layers of a classifier's new head that PEFT does not train whole and save by itself."""
    if not is_classifier(model):
        return None
    return [name for name in head_modules(model) if name not in ("classifier", "score")]


def shortest_endings(names: Sequence[str], model: Module) -> list[str]:
    """The shortest endings that mean exactly these modules: `q_proj`, where nothing else is so called."""
    every = [name for name, _ in model.named_modules()]
    for depth in (1, 2, 3):
        short = sorted({".".join(name.split(".")[-depth:]) for name in names})
        if {name for name in every if any(ends_with(name, ending) for ending in short)} == set(names):
            return short
    return list(names)


def ends_with(name: str, ending: str) -> bool:
    """Whether a module's full name ends with these parts."""
    return name == ending or name.endswith(f".{ending}")


def attach_adapter(model: Module, folder: Path, *, is_trainable: bool) -> Any:
    """PEFT's wrapper around the model, with the adapter of `folder`.

    Where it trains its weights are fp32, otherwise they take the base's type.

    Raises:
        UserError: No adapter there, a pickle, keys that miss or exceed, or shapes of another base.
    """
    from peft import PeftConfig, PeftModel

    from tunesmith.models.bottleneck import register

    register()
    refuse_pickles(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"the adapter has no {WEIGHTS}.", code="bad_adapter", where=str(folder))
    if is_trainable:
        _new_head_in_fp32(model)
    settings: dict[str, Any] = {"is_trainable": is_trainable, "autocast_adapter_dtype": is_trainable}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            check_fits(model, config)
        with quiet():
            if is_trainable and (config.is_prompt_learning or config.is_adaption_prompt):
                adapted = open_for_training(model, folder, config)
            else:
                adapted = PeftModel.from_pretrained(model, str(folder), **settings)  # type: ignore[arg-type]
        _check_keys(adapted, folder)
        read_last_token(adapted)
        keep_types(adapted)
    except (RuntimeError, KeyError, ValueError, OSError, TypeError, SafetensorError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()
        raise UserError(
            f"the adapter does not fit its base: {' '.join(line.strip() for line in reason[:2])[:300]}.",
            code="bad_adapter",
            where=str(folder),
            remedy="Use the base it was trained on; if that is the one, the file is damaged.",
        ) from fault
    return adapted


def _new_head_in_fp32(model: Module) -> None:
    """Before PEFT copies or fills it: what trains is fp32, and a saved head would otherwise lose digits."""
    if is_classifier(model):
        for head in head_modules(model).values():
            head.float()


def _check_keys(model: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        given = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    for keys, verb in ((wanted - given, "lacks"), (given - wanted, "has no place for")):
        if keys:
            shown = ", ".join(sorted(keys)[:3])
            subject = "the file" if verb == "lacks" else "the model"
            raise UserError(
                f"{subject} {verb} {len(keys)} of the adapter's weights: {shown}.",
                code="bad_adapter",
                where=str(folder),
                remedy="The adapter is damaged or belongs to another base; use the run's own folder.",
            )
