"""Train only the biases, and a classifier's new head (BitFit, arXiv:2106.10199).

Every matrix, embedding and norm weight stays: W x + b with only b learnt, eqs. 1 to 5 of the paper. Its section 4.1
finds two of BERT's biases nearly as good as all: the queries' and those of the MLP's first matrix. The learning rate
is the highest of the paper's grid, 1e-4 to 1e-3 (an epoch of banking77 on MiniLM ends at a validation loss of 1.27
with it, 0.48 with 5e-3). PEFT has no such type, so the result is a plain transformers folder
of the whole model. Many decoders (Llama, Mistral, Gemma) and T5 have no biases: they are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunesmith.core.errors import UserError
from tunesmith.models.plain_method import PlainMethod

if TYPE_CHECKING:
    from torch.nn import Module


class BitFit(PlainMethod):
    """The biases train; the result is a plain transformers folder."""

    learning_rate: ClassVar[float] = 1e-3
    trains_base_weights: ClassVar[bool] = True

    biases: Literal["all", "query_mlp"] = "all"
    """All biases, or the paper's two of each block: of the queries and of the MLP's first matrix."""

    def check_model(self, config: Any, task: str) -> None:
        """Refuse a model whose blocks have no biases.

        Raises:
            UserError: It has none, or none of its own for the queries.
        """
        from tunesmith.models.skeleton import skeleton

        model = skeleton(config)
        if model is not None:
            self._biases(model)

    def attach(self, model: Module) -> Module:
        """The same model with its biases training, and its head where that is new.

        Raises:
            UserError: The model has no biases, or none of its own for the queries.
        """
        from tunesmith.models.anatomy import head_modules, is_classifier
        from tunesmith.models.weights import train_only

        wanted = set(self._biases(model))
        train_only(model, head_modules(model).values() if is_classifier(model) else ())
        for name, parameter in model.named_parameters():
            if name in wanted:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        return model

    def _biases(self, model: Module) -> list[str]:
        """Names of the biases that train."""
        from tunesmith.models.anatomy import blocks, encoder_blocks

        in_blocks = {id(p) for block in (*encoder_blocks(model), *blocks(model)) for p in block.parameters()}
        every = [(name, parameter) for name, parameter in model.named_parameters() if name.endswith("bias")]
        if not any(id(parameter) in in_blocks for _, parameter in every):
            raise UserError(
                "bitfit trains biases, and this model's blocks have no biases.",
                code="method_refused",
                remedy="Use `method: ia3` or `method: lora`, which add a few weights of their own.",
            )
        return [name for name, _ in every] if self.biases == "all" else self._query_and_mlp(model)

    def _query_and_mlp(self, model: Module) -> list[str]:
        from tunesmith.models.anatomy import attention_parts, mlp_parts

        queries, first = attention_parts(model).queries, mlp_parts(model).first
        have = [name for name in (*queries, *first) if getattr(model.get_submodule(name), "bias", None) is not None]
        for names, what in ((queries, "queries"), (first, "the MLP's first matrix")):
            if not set(names) & set(have):
                raise UserError(
                    f"bitfit with `biases: query_mlp` needs a bias of {what} alone, and this model has none.",
                    code="method_refused",
                    remedy="Set method.biases=all; a bias that queries share with keys and values trains there.",
                )
        return [f"{name}.bias" for name in have]
