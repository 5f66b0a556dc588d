"""Several finished adapters whose frozen weights are the same tensors: one base in memory, many models.

Each model has its own tree of modules, so there is nothing to switch between answers, and adapters of different
kinds do not meet. What an adapter would change in place (trained biases) is not shared; a shared tensor that was
written to is an error.
"""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.models.adapters import attach_adapter
from tunesmith.models.load import Loaded, load_tokenizer, load_trained
from tunesmith.models.machine import preferred_precision
from tunesmith.models.source import ADAPTER_CONFIG, base_record, read_card, resolve
from tunesmith.recipe import ModelSettings

Key = tuple[str, str, str]
"""A base: its name, its SHA-256, and the precision it was loaded in."""


class SharedBases:
    """Opens finished models as `load_trained` does, each base only once."""

    def __init__(self) -> None:
        self._bases: dict[Key, Loaded] = {}

    def load(self, name: str | Path) -> Loaded:
        """The model of a folder or a name.

        Raises:
            UserError: As `load_trained`.
        """
        source = resolve(str(name))
        if not isinstance(source, Path) or not _is_shareable(source):
            loaded = load_trained(name)
            if not isinstance(source, Path) or not (source / ADAPTER_CONFIG).is_file():
                self._bases.setdefault(self._key(str(name), loaded.precision), loaded)
            return loaded
        card = read_card(source)
        precision = card.get("precision") or preferred_precision("auto")[0]
        base = self._base(card["base"], precision)
        model = _twin(base.model)
        before = _versions(base.model)
        model = attach_adapter(model, source, is_trainable=False)
        assert _versions(base.model) == before, f"{name} wrote to the weights of its base"
        tokenizer = load_tokenizer(ModelSettings(name=str(source))) if any(source.glob("*token*")) else base.tokenizer
        return Loaded(model.eval(), tokenizer, base.task, base.labels, str(name), card, precision)

    def _base(self, recorded: dict[str, str], precision: Any) -> Loaded:
        name = recorded["name"]
        key = (name, recorded.get("sha256", ""), precision)
        if key not in self._bases:
            found = base_record(name, recorded.get("revision") or "main")["sha256"]
            if found != recorded.get("sha256", ""):
                raise UserError(
                    f'the adapter was trained on "{name}" with SHA-256 {recorded.get("sha256", "")[:12]}…, but '
                    f'"{name}" here has {found[:12]}….',
                    code="wrong_base",
                    where=name,
                    remedy="Put back the base it was trained on, or train again.",
                )
            self._bases[key] = load_trained(name, precision=precision)
        return self._bases[key]

    def _key(self, name: str, precision: str) -> Key:
        return (name, base_record(name)["sha256"], precision)


def _is_shareable(folder: Path) -> bool:
    """An adapter of a known, plain, causal base on a fixed revision, that changes nothing of it in place."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return False
    card = read_card(folder)
    settings = json.loads(file.read_text(encoding="utf-8"))
    recorded = card.get("base") or {}
    if card.get("quantize", "none") != "none":
        return False
    if card.get("task") != "causal" or not recorded.get("name") or settings.get("bias", "none") != "none":
        return False
    base = resolve(str(recorded["name"]))
    if isinstance(base, str):
        return recorded.get("revision") in ("", "main", None)
    return not (base / ADAPTER_CONFIG).is_file()


def _twin(model: Any) -> Any:
    """A copy of the modules around the very same tensors."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _versions(model: Any) -> list[int]:
    """How often each tensor was written to."""
    return [tensor._version for tensor in itertools.chain(model.parameters(), model.buffers())]
