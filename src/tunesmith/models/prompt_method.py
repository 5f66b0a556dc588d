"""What prompt tuning, prefix tuning and P-tuning share: virtual tokens before every text.

The adapter's file holds the finished virtual tokens, as PEFT reads them. An encoder that made them (P-tuning, a prefix
with re-parametrisation) is kept beside it, so that training can go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from tunesmith.core.errors import UserError
from tunesmith.models.peft_method import PeftMethod

if TYPE_CHECKING:
    from torch.nn import Module


HEAD_LEARNING_RATE = 1e-3
"""Of a classifier's new head, as with feature_extraction; the virtual tokens' own rate would be too large for it.

It belongs to the method's default: another `train.lr` moves both in proportion (half the rate, half the head's).
"""


class PromptMethod(PeftMethod):
    """A method that trains virtual tokens: a new one must write `peft_config`."""

    starts_as_base: ClassVar[bool] = False
    can_merge: ClassVar[bool] = False

    num_tokens: PositiveInt = 20
    """Virtual tokens before every text; the context is shorter by as many."""

    def check_task(self, task: str) -> None:
        """Virtual tokens stand before whole texts.

        Raises:
            UserError: The objective fills in masked words.
        """
        if task == "mask":
            raise UserError(
                f"{self.name} puts tokens of its own before a text, and PEFT has no such type for masked words.",
                code="method_refused",
                remedy="Use `method: full` or `method: lora`, or an objective that writes text or chooses a class.",
            )

    def check_model(self, config: Any, task: str) -> None:
        """The virtual tokens must leave room for a text, and the model must take them.

        Raises:
            UserError: They do not, or the model is an encoder-decoder that classifies rows.
        """
        from tunesmith.models.configuration import context_length

        if task == "classify" and getattr(config, "is_encoder_decoder", False):
            raise UserError(
                f"{self.name} cannot train an encoder-decoder's classifier: transformers wants token ids there.",
                code="method_refused",
                remedy="Use `method: lora`, or an encoder.",
            )
        context = context_length(config)
        if self.num_tokens >= context:
            raise UserError(
                f"`method.num_tokens` is {self.num_tokens}, and the model reads {context} tokens in all.",
                code="bad_value",
                remedy=f"Set method.num_tokens well below {context}.",
            )

    def num_positions(self) -> int:
        """Each virtual token takes a position."""
        return self.num_tokens

    def learning_rate_factor(self, parameter: str) -> float:
        """A new head takes smaller steps than virtual tokens: 1e-3 at the default rate, and in proportion at others."""
        return HEAD_LEARNING_RATE / self.learning_rate if ".modules_to_save." in parameter else 1.0

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model: only the virtual tokens train (and a classifier's head), in fp32.

        Raises:
            UserError: As `check_model`.
        """
        from tunesmith.models.anatomy import task_of

        self.check_model(model.config, task_of(model))
        return super().attach(model)

    def save(self, model: Module, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, as peft reads them, and the encoder if there is one."""
        from tunesmith.models.virtual_tokens import save_prompt_encoder

        super().save(model, folder)
        save_prompt_encoder(model, folder)

    def merge(self, model: Module) -> Module:
        """Never.

        Raises:
            UserError: Virtual tokens are inputs, not weights.
        """
        raise UserError(
            f"{self.name} cannot be merged: its virtual tokens are inputs of the model, not a change of its weights.",
            code="cannot_merge",
            remedy="Keep the adapter beside its base, or train with `method: lora`, which can be merged.",
        )

    def summary(self) -> str:
        """`prompt tuning, 20 tokens`."""
        return f"{self.name.replace('_', ' ')}, {self.num_tokens} tokens"
