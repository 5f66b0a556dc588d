"""Train a low-rank update beside each frozen matrix (LoRA, arXiv:2106.09685).

Every block's matrices are adapted by default: the paper adapts attention alone, and later work found that
adapting all of them is what reaches full fine-tuning (QLoRA, arXiv:2305.14314, section 4).
A classifier's head is new, so it trains whole and is saved with the adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tunesmith.core.errors import UserError, suggest
from tunesmith.models.peft_method import PeftMethod

if TYPE_CHECKING:
    from torch.nn import Module


class LoRA(PeftMethod):
    """Low-rank matrices train; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 2e-4

    rank: PositiveInt = 16
    """Rank of the update; trainable parameters grow in proportion."""
    alpha: PositiveFloat = 32.0
    """The update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of the update that are set to 0 while training."""
    targets: Literal["all-linear", "attention", "mlp"] | tuple[str, ...] = "all-linear"
    """Which matrices of the blocks are adapted: all, attention's, the others, or a list of names."""

    def peft_config(self, model: Module) -> Any:
        """The update begins at zero, so the first output is the base's.

        Raises:
            UserError: A target is no matrix of the model.
        """
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        from tunesmith.models.adapters import new_heads, shortest_endings, task_type

        names = self._target_names(model)
        kinds = {isinstance(model.get_submodule(name), Conv1D) for name in names}
        return LoraConfig(
            task_type=task_type(model),
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=shortest_endings(names, model),
            modules_to_save=new_heads(model),
            fan_in_fan_out=kinds == {True},
        )

    def summary(self) -> str:
        """`LoRA, rank 16`."""
        targets = (
            ""
            if self.targets == "all-linear"
            else f", {self.targets if isinstance(self.targets, str) else '+'.join(self.targets)}"
        )
        return f"LoRA, rank {self.rank}{targets}"

    def _target_names(self, model: Module) -> list[str]:
        from tunesmith.models.adapters import ends_with
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
            if not any(ends_with(name, target) for name in every):
                short = {name.rpartition(".")[2] for name in every}
                raise UserError(
                    f'the model has no matrix "{target}" in its blocks;',
                    code="bad_value",
                    remedy=suggest(target, short).sentence() or "There are: " + ", ".join(sorted(short)) + ".",
                )
        return [name for name in every if any(ends_with(name, target) for target in self.targets)]
