"""Train embeddings that stand before every text (prompt tuning, arXiv:2104.08691).

The model reads [P; X] (section 2): P are the trained embeddings, X those of the text, and only P changes. An
encoder-decoder has them before its source; an encoder's classifier reads the first of them, as with PEFT.

The authors use 100 tokens, and find that beyond 20 little is won (section 3.2); 20 is the default, because small models
have small contexts. They begin with words of the vocabulary, which did better than random numbers at every size but
the largest. Their learning rate of 0.3 is for Adafactor without scaling by the weights. The default is for AdamW and
short trainings: 60 steps of 1,024 tokens of viggo on the built-in base end at a validation loss of 3.25 with 1e-2, 3.14
with 3e-2, 3.09 with 1e-1 and 3.13 with 3e-1; of the near-equal ones the default is the smallest. PEFT's own comparison
has 1e-3 for 5,000 steps on a model of 3 billion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from tunesmith.models.prompt_method import PromptMethod

if TYPE_CHECKING:
    from torch.nn import Module


class PromptTuning(PromptMethod):
    """Embeddings before every text train; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 3e-2

    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """What the virtual tokens begin as: common words, your text, or random vectors as large as the embeddings."""
    text: str = ""
    """With `init: text`: what the task is, in words; repeated or cut to `num_tokens`."""

    @model_validator(mode="after")
    def _text_is_used(self) -> PromptTuning:
        if (self.init == "text") != bool(self.text):
            raise ValueError("`text` and `init: text` belong together")
        return self

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model: only the virtual tokens train (and a classifier's head), in fp32."""
        start = self._start(model)
        adapted: Any = super().attach(model)
        adapted.prompt_encoder["default"].embedding.weight.data.copy_(start)
        return adapted  # type: ignore[no-any-return]

    def peft_config(self, model: Module) -> Any:
        """The tokens are filled in by `attach`: PEFT would read a tokenizer by its name, and draw rare tokens too."""
        from peft import PromptTuningConfig

        from tunesmith.models.prompt_start import shared_settings

        return PromptTuningConfig(num_virtual_tokens=self.num_tokens, **shared_settings(model))

    def _start(self, model: Module) -> Any:
        import torch

        from tunesmith.models.anatomy import embeddings
        from tunesmith.models.prompt_start import common_tokens, text_tokens

        embed: Any = embeddings(model)
        table = embed.weight.detach()
        if self.init == "random":
            deviation, mean = torch.std_mean(table.float(), dim=0)
            return mean + deviation * torch.randn(self.num_tokens, len(mean), device=table.device)
        if self.init == "text":
            ids = text_tokens(model, self.text, self.num_tokens)
        else:
            ids = common_tokens(model, self.num_tokens)
        return embed(torch.tensor(ids, device=table.device)).detach().float()
