"""PEFT adapters on a base model, loaded strictly.

PEFT fills in what an adapter file lacks and drops what it does not know; here both are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch.nn import Module

from tunesmith.core.errors import UserError
from tunesmith.core.publish import refuse_pickles
from tunesmith.models.anatomy import head_modules, is_classifier

WEIGHTS = "adapter_model.safetensors"


def attach_adapter(model: Module, folder: Path, *, is_trainable: bool) -> Any:
    """PEFT's wrapper around the model, with the adapter of `folder`.

    Where it trains its weights are fp32, otherwise they take the base's type.

    Raises:
        UserError: No adapter there, a pickle, keys that miss or exceed, or shapes of another base.
    """
    from peft import PeftModel

    refuse_pickles(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"the adapter has no {WEIGHTS}.", code="bad_adapter", where=str(folder))
    if is_trainable and is_classifier(model):
        for head in head_modules(model).values():
            head.float()  # before PEFT fills it, or a saved fp32 head would lose digits
    settings: dict[str, Any] = {"is_trainable": is_trainable, "autocast_adapter_dtype": is_trainable}
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), **settings)  # type: ignore[arg-type]
        _check_keys(adapted, folder)
    except (RuntimeError, KeyError, ValueError, OSError, TypeError, SafetensorError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()
        raise UserError(
            f"the adapter does not fit its base: {' '.join(line.strip() for line in reason[:2])[:300]}.",
            code="bad_adapter",
            where=str(folder),
            remedy="Use the base it was trained on; if that is the one, the file is damaged.",
        ) from fault
    return adapted


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
