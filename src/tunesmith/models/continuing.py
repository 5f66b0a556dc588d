"""Going on from a finished adapter: the very adapter trains on, or it is merged into its base, or there is a reason.

The very adapter goes on where the method and its settings, the task and the labels are those of the run. Otherwise it
is merged, and the result is a base like any other: its head may be kept, renewed, or left out for another task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.nn import Module

from tunesmith.core.errors import UserError
from tunesmith.methods.base import Method
from tunesmith.models.quiet import quiet
from tunesmith.models.source import ADAPTER_CONFIG, read_card, resolve


def is_adapter(source: str | Path) -> bool:
    """Whether a resolved name is a folder with a PEFT adapter in it."""
    return isinstance(source, Path) and (source / ADAPTER_CONFIG).is_file()


def goes_on(card: Mapping[str, Any], method: Method | None, task: str, labels: Sequence[str], problem: str) -> bool:
    """Whether training with `method` means the run's own adapter, by the card of the run."""
    if method is None or not card.get("base") or card.get("method") != method.spec() or card.get("task") != task:
        return False
    if task in ("classify", "tag") and labels and tuple(card.get("labels") or ()) != tuple(labels):
        return False
    return task != "classify" or (card.get("problem") or problem) == problem


def check_mergeable(folder: Path, name: str) -> None:
    """Refuse an adapter that no weights of its base can stand for, before any weight is read.

    Raises:
        UserError: It is of such a type, with the reason; or its configuration cannot be read.
    """
    reason = _why_not(_settings(folder, name))
    if reason:
        raise UserError(
            f"{reason}, so it cannot be merged into its base.",
            code="cannot_merge",
            where=name,
            remedy="Train on with the very same method and settings, task and labels, or start from its base.",
        )


@contextmanager
def as_plain(source: str | Path, name: str) -> Iterator[str | Path]:
    """Where a plain transformers model of `source` lies: a finished adapter is merged into a temporary folder, in fp32.

    Raises:
        UserError: The adapter cannot be merged, or its base is not the one it was trained on.
    """
    if not is_adapter(source):
        yield source
        return
    from tunesmith.models.load import load_trained

    assert isinstance(source, Path), source
    check_mergeable(source, name)
    loaded = load_trained(source, precision="fp32")
    with TemporaryDirectory(prefix="tunesmith-merged-") as folder, quiet():
        merged: Any = merged_model(loaded.model)
        merged.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        del merged, loaded
        yield Path(folder)


def merged_model(model: Any) -> Module:
    """A plain transformers model, in fp32, from PEFT's wrapper around one, which is of no use afterwards.

    Raises:
        UserError: PEFT cannot merge it, in its words.
    """
    from tunesmith.models.adapters import merge_adapter

    try:
        with quiet():
            return merge_adapter(model)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as fault:  # as peft says that it cannot
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"peft cannot merge this adapter: {reason[:200]}.",
            code="cannot_merge",
            remedy="Serve it as it is, an adapter on its base.",
        ) from fault


def root_of(source: str | Path, name: str) -> tuple[str | Path, str, str]:
    """The plain base under a finished adapter, however many lie between: resolved, as named, and its revision.

    Raises:
        UserError: A base on the way is not there.
    """
    revision = "main"
    while is_adapter(source):
        assert isinstance(source, Path), source
        recorded = read_card(source).get("base") or {}
        name = str(recorded.get("name") or _settings(source, name).get("base_model_name_or_path") or "")
        revision = recorded.get("revision") or "main"
        source = resolve(name)
    return source, name, revision


def _settings(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"the adapter cannot be read: {fault}.", code="bad_adapter", where=name) from None
    return found if isinstance(found, dict) else {}


def _why_not(settings: Mapping[str, Any]) -> str:
    """Why an adapter cannot be merged, as the beginning of a sentence; empty where it can."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    from tunesmith.models.bottleneck import register

    register()
    kind = str(settings.get("peft_type", ""))
    if kind == "BOTTLENECK":
        return "a bottleneck adapter has a non-linear function in it, which no weights of the base can do"
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)  # type: ignore[call-overload]
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)  # type: ignore[call-overload]
    if config is None or tuner is None:
        return f'peft has no type of adapter called "{kind}"'
    if kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"):
        return "the virtual tokens of its adapter are inputs of the model and no change of its weights"
    if kind == "ADAPTION_PROMPT":
        return "a LLaMA-Adapter attends to keys and values of its own, which are no weights of the base"
    layer: Any = getattr(tuner, "tuner_layer_cls", None)
    has_merge = issubclass(tuner, BaseTuner) and layer is not None
    if not has_merge or not any("merge" in vars(one) for one in _family(layer) if one is not BaseTunerLayer):
        return f"peft cannot merge adapters of the type {kind}"
    return ""


def _family(layer: type[Any]) -> list[type[Any]]:
    """A class, its bases, and its subclasses (matrices, embeddings …) with theirs."""
    below: list[type[Any]] = layer.__subclasses__()
    return [*layer.__mro__, *(one for child in below for one in _family(child))]
