"""PEFT adapters on a base model: strict loading, and several of them on one base.

PEFT fills in what an adapter file lacks and drops what it does not know; here both are errors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import Module

from tunesmith.core.errors import UserError, unknown_name
from tunesmith.core.publish import refuse_pickles
from tunesmith.models.source import fingerprint, read_card, resolve

if TYPE_CHECKING:
    from tunesmith.models.load import Loaded

WEIGHTS = "adapter_model.safetensors"
_DEFAULT = "default"


def attach_adapter(model: Module, folder: Path, *, is_trainable: bool, name: str = _DEFAULT) -> Any:
    """The model with the adapter of `folder` on it; a model that has adapters already gets one more.

    Where it trains its weights are fp32, otherwise they take the base's type.

    Raises:
        UserError: No adapter there, a pickle, keys that miss or exceed, or shapes of another base.
    """
    from peft import PeftModel

    refuse_pickles(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"the adapter has no {WEIGHTS}.", code="bad_adapter", where=str(folder))
    settings: dict[str, Any] = {"is_trainable": is_trainable, "autocast_adapter_dtype": is_trainable}
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name, **settings)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, **settings)
        _check_keys(model, folder, name)
    except (RuntimeError, KeyError, ValueError, OSError, TypeError, SafetensorError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()
        raise UserError(
            f"the adapter does not fit its base: {' '.join(line.strip() for line in reason[:2])[:300]}.",
            code="bad_adapter",
            where=str(folder),
            remedy="Use the base it was trained on; if that is the one, the file is damaged.",
        ) from fault
    return model


class AdapterPool:
    """Several adapters on one base; each answer is given by one of them, or by the base alone.

    Switching leaves no trace: the base's weights are never touched. Not for two threads at once.
    """

    def __init__(self, base: Loaded) -> None:
        self._base = base
        self._model: Any = base.model
        self._names: list[str] = []

    @property
    def model(self) -> Any:
        """The model that answers; which adapter speaks is decided by `use`."""
        return self._model

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order they came."""
        return tuple(self._names)

    def add(self, name: str, folder: Path) -> None:
        """Load one more adapter.

        Raises:
            UserError: The name is taken, or the adapter is damaged or belongs to another base.
        """
        if name in self._names:
            raise UserError(f'there is an adapter "{name}" already.', code="exists", remedy="Choose another name.")
        self._check_base(folder)
        slot = self._slot(name)
        try:
            self._model = attach_adapter(self._model, folder, is_trainable=False, name=slot)
        except UserError:
            if slot in getattr(self._model, "peft_config", {}):
                self._model.delete_adapter(slot)
            raise
        self._names.append(name)
        self._model.eval()

    def remove(self, name: str) -> None:
        """Forget an adapter and free its memory."""
        self._require(name)
        self._names.remove(name)
        if self._names:
            self._model.set_adapter(self._slot(self._names[0]))
            self._model.delete_adapter(self._slot(name))
        else:
            self._model = self._model.unload()

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[Any]:
        """Within it the model answers with this adapter; None is the base itself."""
        if name is None:
            with self._model.disable_adapter() if self._names else contextlib.nullcontext():
                yield self._model
            return
        self._require(name)
        self._model.set_adapter(self._slot(name))
        self._model.requires_grad_(False)  # set_adapter makes the adapter trainable; a server never trains
        with torch.inference_mode():
            yield self._model

    def _slot(self, name: str) -> str:
        """PEFT names modules after adapters, and a module's name can hold no dot."""
        return name.replace("%", "%25").replace(".", "%2E")

    def _require(self, name: str) -> None:
        if name not in self._names:
            raise unknown_name("adapter", name, self._names)

    def _check_base(self, folder: Path) -> None:
        expected = (read_card(folder).get("base") or {}).get("sha256", "")
        source = resolve(self._base.name)
        found = fingerprint(source) if expected and isinstance(source, Path) else ""
        if expected != found:
            raise UserError(
                f"the adapter was trained on a base with SHA-256 {expected[:12]}…, and "
                f'"{self._base.name}" has {found[:12] or "none"}….',
                code="wrong_base",
                where=str(folder),
                remedy="Load it onto the base it was trained on.",
            )


def _check_keys(model: Any, folder: Path, name: str) -> None:
    from peft import get_peft_model_state_dict

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        given = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
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
