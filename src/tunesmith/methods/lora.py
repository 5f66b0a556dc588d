"""Train a low-rank update beside each frozen matrix (LoRA, arXiv:2106.09685).

Every block's matrices are adapted by default: the paper adapts attention alone, and later work found that
adapting all of them is what reaches full fine-tuning (QLoRA, arXiv:2305.14314, section 4).
A classifier's head is new, so it trains whole and is saved with the adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tunesmith.core.errors import UserError, suggest
from tunesmith.methods.base import Method

if TYPE_CHECKING:
    from torch.nn import Module


class LoRA(Method):
    """Low-rank matrices train; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 2e-4
    is_adapter: ClassVar[bool] = True

    rank: PositiveInt = 16
    """Rank of the update; trainable parameters grow in proportion."""
    alpha: PositiveFloat = 32.0
    """The update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of the update that are set to 0 while training."""
    targets: Literal["all-linear", "attention", "mlp"] | tuple[str, ...] = "all-linear"
    """Which matrices of the blocks are adapted: all, attention's, the others, or a list of names."""

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model: only the update trains (and a classifier's head), in fp32.

        The update begins at zero, so the first output is the base's.

        Raises:
            UserError: A target is no matrix of the model.
        """
        from peft import LoraConfig, get_peft_model
        from transformers.pytorch_utils import Conv1D

        from tunesmith.models.anatomy import head_modules, is_classifier
        from tunesmith.models.quiet import quiet

        names = self._target_names(model)
        kinds = {isinstance(model.get_submodule(name), Conv1D) for name in names}
        heads = head_modules(model) if is_classifier(model) else {}
        for head in heads.values():
            head.float()  # PEFT copies it as it is, and what trains is fp32
        config = LoraConfig(
            task_type=_task_type(model),
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=_shorten(names, model),
            modules_to_save=[name for name in heads if name not in ("classifier", "score")] if heads else None,
            fan_in_fan_out=kinds == {True},
        )
        with quiet():
            return get_peft_model(model, config)  # type: ignore[arg-type]

    def save(self, model: Module, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, as peft reads them."""
        from tunesmith.models.quiet import quiet

        with quiet():
            # False: "auto" would ask the hub whether the vocabulary grew, and it never grows here.
            model.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]

    def load(self, model: Module, folder: Path) -> Module:
        """The base model with the saved adapter on it, ready to train on."""
        from tunesmith.models.adapters import attach_adapter
        from tunesmith.models.quiet import quiet

        with quiet():
            loaded: Module = attach_adapter(model, folder, is_trainable=True)
        return loaded

    def merge(self, model: Module) -> Module:
        """The base with the update added to its matrices, in fp32; the adapter is gone from `model` afterwards."""
        merged: Module = model.float().merge_and_unload(safe_merge=True)  # type: ignore[operator]
        return merged

    def disabled(self, model: Module) -> AbstractContextManager[Any]:
        """Within it the update is left out; a classifier's head is the one the base came with."""
        return _disabled(model)

    def summary(self) -> str:
        """`LoRA, rank 16`."""
        targets = (
            ""
            if self.targets == "all-linear"
            else f", {self.targets if isinstance(self.targets, str) else '+'.join(self.targets)}"
        )
        return f"LoRA, rank {self.rank}{targets}"

    def _target_names(self, model: Module) -> list[str]:
        from tunesmith.models.anatomy import linears

        if isinstance(self.targets, str):
            found = linears(model, self.targets)
            if not found:
                raise UserError(
                    f"the model has no matrices for `targets: {self.targets}`.",
                    code="bad_value",
                    remedy="Experts of a mixture are no separate matrices; use `targets: attention`.",
                )
            return found
        every = linears(model)
        for target in self.targets:
            if not any(_ends_with(name, target) for name in every):
                short = {name.rpartition(".")[2] for name in every}
                raise UserError(
                    f'the model has no matrix "{target}" in its blocks;',
                    code="bad_value",
                    remedy=suggest(target, short).sentence() or "There are: " + ", ".join(sorted(short)) + ".",
                )
        return [name for name in every if any(_ends_with(name, target) for target in self.targets)]


@contextlib.contextmanager
def _disabled(model: Any) -> Iterator[None]:
    """PEFT's own, which forgets what trained when it switches the adapter on again."""
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trains)


def _shorten(names: list[str], model: Module) -> list[str]:
    """The shortest endings that mean exactly these modules: `q_proj`, where nothing else is so called."""
    every = [name for name, _ in model.named_modules()]
    for depth in (1, 2, 3):
        short = sorted({".".join(name.split(".")[-depth:]) for name in names})
        if {name for name in every if any(_ends_with(name, ending) for ending in short)} == set(names):
            return short
    return names


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _task_type(model: Module) -> str:
    from tunesmith.models.anatomy import is_classifier, is_encoder_decoder

    if is_classifier(model):
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if is_encoder_decoder(model) else "CAUSAL_LM"
