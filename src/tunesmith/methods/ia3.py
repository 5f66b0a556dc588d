"""Train one factor for each key, value and hidden unit of the MLP ((IA)^3, arXiv:2205.05638).

softmax(Q (l_k * K)^T / sqrt(d)) (l_v * V), and (l_ff * act(W1 x)) W2 (section 3.3): three vectors in each block, which
begin at one, so the first output is the base's. An encoder-decoder's cross-attention has them too, as the paper's T5.
A matrix that makes queries, keys and values at once (GPT-2, GPT-NeoX, ModernBERT) gets one vector over all three;
scores depend on the product of a query's factor and its key's, so little more than the paper's can be learnt.
Weight decay leaves the factors alone. The learning rate is the paper's (section 3.2, for Adafactor); an epoch of
banking77 on MiniLM ends at a validation loss of 0.69 with it and 0.41 with 2e-2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from tunesmith.core.errors import UserError
from tunesmith.models.peft_method import PeftMethod

if TYPE_CHECKING:
    from torch.nn import Module

Part = Literal["keys", "values", "mlp"]


class IA3(PeftMethod):
    """Factors of keys, values and hidden units train; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 3e-3

    parts: tuple[Part, ...] = ("keys", "values", "mlp")
    """Which of the three vectors there are: l_k, l_v, l_ff."""

    @field_validator("parts")
    @classmethod
    def _some_part(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if not parts:
            raise UserError(
                "`method.parts` is empty, so nothing would train.",
                code="bad_value",
                remedy="Name some of keys, values and mlp.",
            )
        return parts

    def check_model(self, config: Any, task: str) -> None:
        """Refuse a model whose keys, values or MLP are no matrices of their own.

        Raises:
            UserError: They are not, with the reason.
        """
        from tunesmith.models.skeleton import skeleton

        model = skeleton(config)
        if model is not None:
            self._targets(model)

    def peft_config(self, model: Module) -> Any:
        """PEFT's IA3Config with the targets found by structure.

        Raises:
            UserError: As `check_model`.
        """
        from peft import IA3Config
        from transformers.pytorch_utils import Conv1D

        from tunesmith.models.adapters import new_heads, shortest_endings, task_type

        attention, mlp = self._targets(model)
        feedforward = shortest_endings(mlp, model) if mlp else []
        kinds = {isinstance(model.get_submodule(name), Conv1D) for name in (*attention, *mlp)}
        return IA3Config(
            task_type=task_type(model),
            target_modules=[*(shortest_endings(attention, model) if attention else ()), *feedforward],
            feedforward_modules=feedforward,
            modules_to_save=new_heads(model),
            fan_in_fan_out=kinds == {True},
        )

    def decays(self, parameter: str) -> bool:
        """Not on the factors: a model without an update has them at one."""
        return ".ia3_l." not in parameter

    def summary(self) -> str:
        """`(IA)^3`, with its parts where they are not all."""
        return "(IA)^3" if len(set(self.parts)) == 3 else f"(IA)^3, {'+'.join(self.parts)}"

    def _targets(self, model: Module) -> tuple[list[str], list[str]]:
        """Matrices whose outputs are scaled (keys, values), and those whose inputs are (the MLP's last)."""
        from tunesmith.models.anatomy import attention_parts, mlp_parts

        attention: list[str] = []
        if "keys" in self.parts or "values" in self.parts:
            found = attention_parts(model)
            wanted = [*(found.keys if "keys" in self.parts else ()), *(found.values if "values" in self.parts else ())]
            attention = wanted or found.fused
            if not attention:
                raise _refusal("keys and values cannot be told from their names", ["mlp"])
            if not wanted and not {"keys", "values"} <= set(self.parts):
                raise _refusal("one matrix makes its queries, keys and values at once", ["keys", "values", "mlp"])
        mlp: list[str] = []
        if "mlp" in self.parts:
            parts = mlp_parts(model)
            if parts.has_experts or not parts.last:
                raise _refusal("the experts of a mixture are one tensor and no matrices", ["keys", "values"])
            mlp = parts.last
        return attention, mlp


def _refusal(reason: str, rest: list[str]) -> UserError:
    return UserError(
        f"ia3 cannot scale this part of the model: {reason}.",
        code="method_refused",
        remedy=f"Set method.parts: [{', '.join(rest)}], or use `method: lora`.",
    )
