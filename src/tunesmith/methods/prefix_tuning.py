"""Train keys and values that stand before every layer's own (prefix tuning, arXiv:2101.00190).

h_i = P_theta[i] for positions of the prefix (equation 3): attention of each layer sees the trained keys and values as
if they were tokens before the text. With `reparametrize`, P_theta[i] = MLP(P'[i]) while training (section 4.3), which
the authors found stabler; afterwards only what it wrote is kept. Without it, the prefix can begin as what the model
really computes for words (section 7.4: better and less varying than random numbers).

The learning rate is the best of three tried without re-parametrisation: 60 steps of 1,024 tokens of viggo on the
built-in base end at a validation loss of 3.95 with 1e-3, 3.54 with 1e-2 (3.74 from random numbers) and 3.25 with 3e-2.
The authors' 5e-5 is for their MLP and many epochs.

An encoder-decoder has the prefix before its target only, as PEFT puts it; the paper has a second one before the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt, model_validator

from tunesmith.core.errors import UserError
from tunesmith.models.prompt_method import PromptMethod

if TYPE_CHECKING:
    from torch.nn import Module

ENCODER_TAGS = ("t5", "mt5", "umt5")
"""Encoder-decoders that tag words with their encoder alone, which keeps no cache."""


class PrefixTuning(PromptMethod):
    """Keys and values before those of each layer train; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 3e-2

    num_tokens: PositiveInt = 10
    """Length of the prefix; the paper has 10 for tables to text and 200 for summaries. The context is shorter by it."""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """What the prefix begins as: the model's own keys and values for common words or your text, or random numbers."""
    text: str = ""
    """With `init: text`: what the task is, in words; repeated or cut to `num_tokens`."""
    reparametrize: bool = False
    """Let an MLP write the prefix while training; it begins at random, so set `init: random` with it."""
    hidden_size: PositiveInt = 512
    """With `reparametrize`: width of the MLP (512 in the paper's code for tables to text)."""

    @model_validator(mode="after")
    def _choices_fit(self) -> PrefixTuning:
        if (self.init == "text") != bool(self.text):
            raise ValueError("`text` and `init: text` belong together")
        if not self.reparametrize and "hidden_size" in self.changed():
            raise ValueError("`hidden_size` is that of the MLP of `reparametrize: true`; without it it has no effect")
        if self.reparametrize and self.init != "random":
            raise ValueError(
                "with `reparametrize` an MLP writes the prefix, which begins at random: set `init: random`"
            )
        return self

    def check_model(self, config: Any, task: str) -> None:
        """Refuse a model without a cache of keys and values, to which a prefix could be added.

        Raises:
            UserError: It has none.
        """
        from tunesmith.models.prompt_start import takes_cache

        super().check_model(config, task)
        if not takes_cache(config) or (task == "tag" and config.model_type in ENCODER_TAGS):
            raise _no_cache(config, task)

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model: only the prefix trains (and a classifier's head), in fp32."""
        from tunesmith.models.anatomy import task_of
        from tunesmith.models.prompt_start import common_tokens, prefix_weights, text_tokens
        from tunesmith.models.virtual_tokens import cached

        self.check_model(model.config, task_of(model))
        start = None
        if self.init == "text":
            start = prefix_weights(cached(model, text_tokens(model, self.text, self.num_tokens)))
        elif self.init == "vocabulary":
            start = prefix_weights(cached(model, common_tokens(model, self.num_tokens)))
        adapted: Any = super().attach(model)
        if start is not None:
            adapted.prompt_encoder["default"].embedding.weight.data.copy_(start)
        return adapted  # type: ignore[no-any-return]

    def peft_config(self, model: Module) -> Any:
        """Layers, heads and their widths are those of the cache that the model really keeps.

        Raises:
            UserError: The layers' caches differ from each other.
        """
        from peft import PrefixTuningConfig

        from tunesmith.models.prompt_start import shared_settings
        from tunesmith.models.virtual_tokens import key_value_shapes

        shapes = key_value_shapes(model)
        if len(set(shapes)) > 1:
            raise UserError(
                "the layers of this model keep keys of different shapes, and PEFT's prefix has one.",
                code="method_refused",
                remedy="Use `method: prompt_tuning` or `method: lora`.",
            )
        num_heads, width = shapes[0]
        shared = shared_settings(model)
        if shared["task_type"] == "SEQ_2_SEQ_LM":
            shared["num_transformer_submodules"] = 2  # PEFT's sign for a cache of an encoder-decoder
        return PrefixTuningConfig(
            num_virtual_tokens=self.num_tokens,
            prefix_projection=self.reparametrize,
            encoder_hidden_size=self.hidden_size,
            **shared | {"num_layers": len(shapes), "num_attention_heads": num_heads, "token_dim": num_heads * width},
        )


def _no_cache(config: Any, task: str) -> UserError:
    what = f"{config.model_type} model that tags words" if task == "tag" else f"{config.model_type} model"
    return UserError(
        f"prefix_tuning puts keys and values into the model's cache, and a {what} has none.",
        code="method_refused",
        remedy="Use `method: prompt_tuning`, `method: p_tuning` or `method: lora`.",
    )
