"""Train small bottlenecks between frozen layers: f(x) = W_up act(W_down x), added to what it reads.

- `houlsby` (arXiv:1902.00751, figure 2): h + f(h) on the output h of every attention (cross-attention too) and every
  MLP, before the residual is added. The norms train as well (section 2.1).
- `pfeiffer` (AdapterFusion, arXiv:2005.00247, figure 5; MAD-X, arXiv:2005.00052): one per block, after the MLP. With
  z the sum of the MLP's output and the residual, a post-norm block (BERT) gives norm(z + f(norm(z))) and a pre-norm
  block (Llama) z + f(z).
- `parallel` (He et al., arXiv:2110.04366, section 4.6 "scaled parallel adapter"): h + s f(x) on the MLP, where x is
  what the MLP reads; they take s = 4 and a wide bottleneck (reduction 2).

Reduction and activation follow the style where they are not set: 16 with gelu (Houlsby et al.'s own code; AdapterHub
has swish), 16 with relu (AdapterHub's SeqBnConfig, by Pfeiffer et al.), 2 with relu (He et al.; AdapterHub's
ParBnConfig).

W_up begins at zero, so the first output is the base's. In a mixture of experts the adapter follows the mix.
Where the base has dropout between a matrix and the residual, it now drops the adapter's output, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from tunesmith.core.errors import UserError
from tunesmith.models.peft_method import PeftMethod

if TYPE_CHECKING:
    from torch.nn import Module

PUBLISHED = {"houlsby": (16.0, "gelu"), "pfeiffer": (16.0, "relu"), "parallel": (2.0, "relu")}
"""Reduction and activation of each style."""


class Bottleneck(PeftMethod):
    """Two small matrices per place train; the result is an adapter in PEFT's format, of a type of our own.

    The learning rate is the one that AdapterHub's authors recommend; Houlsby et al. searched 3e-5 to 3e-3. Few steps on
    a small model want the upper end: an epoch of banking77 on MiniLM (`houlsby`) ends at a validation loss of 1.09 with
    1e-3 and 0.48 with 3e-3.
    """

    learning_rate: ClassVar[float] = 1e-4
    new_head_factor: ClassVar[float] = 10.0
    can_merge: ClassVar[bool] = False

    style: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """Where adapters sit: after attention and MLP, once per block, or beside the MLP."""
    reduction: Annotated[float, Field(ge=1)] | Literal["as-published"] = "as-published"
    """Width of the model over that of the bottleneck; as published it is 16, and 2 for `parallel`."""
    activation: Literal["as-published", "relu", "gelu", "swish", "tanh"] = "as-published"
    """The function between the two matrices; as published gelu for `houlsby`, relu for the others."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's outputs that are set to 0 while training."""
    scaling: PositiveFloat = 4.0
    """What the output of `style: parallel` is multiplied by; the other styles are added as they are."""
    norms: Literal["as-published", "train", "freeze"] = "as-published"
    """Whether the base's norms train beside the adapters; as published they do in `houlsby` alone."""

    @model_validator(mode="after")
    def _scaling_has_an_effect(self) -> Bottleneck:
        if self.scaling != 4.0 and self.style != "parallel":
            raise UserError(
                f"`scaling` belongs to `style: parallel`; with `style: {self.style}` it has no effect.",
                code="bad_value",
                where="method.scaling",
                remedy="Leave it out, or set `style: parallel`.",
            )
        return self

    def peft_config(self, model: Module) -> Any:
        """Places found by structure; the first output is the base's.

        Raises:
            UserError: The model's MLP was not found, or the bottleneck would be narrower than 1.
        """
        from tunesmith.models.adapters import new_heads, shortest_endings, task_type
        from tunesmith.models.bottleneck import BottleneckConfig, sites
        from tunesmith.models.sublayers import width

        reduction, activation = self._shape()
        if width(model) < reduction:
            raise UserError(
                f"`reduction: {reduction:g}` leaves less than 1 of the model's {width(model)} features.",
                code="bad_value",
                where="method.reduction",
                remedy=f"Set it to {width(model)} or less.",
            )
        trains_norms = self.norms == "train" or (self.norms == "as-published" and self.style == "houlsby")
        found = sites(model, self.style, trains_norms=trains_norms)
        bodies = [name for name, site in found.items() if site.place != "none"]
        norms = [name for name, site in found.items() if site.place == "none"]
        return BottleneckConfig(
            task_type=task_type(model),
            style=self.style,
            reduction=reduction,
            activation=activation,
            dropout=self.dropout,
            scaling=self.scaling,
            trains_norms=trains_norms,
            target_modules=[*shortest_endings(bodies, model), *(shortest_endings(norms, model) if norms else ())],
            modules_to_save=new_heads(model),
        )

    def merge(self, model: Module) -> Module:
        """Refused.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "bottleneck cannot be merged: it has a non-linear function in it, so no weights of the base do the same.",
            code="cannot_merge",
            remedy="Serve it as it is, an adapter on its base; for a plain model train with lora.",
        )

    def summary(self) -> str:
        """`bottleneck houlsby, reduction 16`."""
        others = {key: value for key, value in self.changed().items() if key not in ("style", "reduction")}
        return ", ".join(
            [
                f"bottleneck {self.style}",
                f"reduction {self._shape()[0]:g}",
                *(f"{key} {value}" for key, value in others.items()),
            ]
        )

    def _shape(self) -> tuple[float, str]:
        """Reduction and activation, the style's own where they are not set."""
        reduction, activation = PUBLISHED[self.style]
        return (
            reduction if self.reduction == "as-published" else self.reduction,
            activation if self.activation == "as-published" else self.activation,
        )
