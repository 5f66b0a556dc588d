"""Read a configuration, a tokenizer or weights from one place, with the faults of transformers turned into ours.

A layer that the checkpoint lacks would be random; that is an error, except for a fresh head that is to be trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from tunesmith.core.errors import UserError
from tunesmith.models.anatomy import head_modules
from tunesmith.models.number_head import make_exact
from tunesmith.models.quantize import Quantize, keep_layout, quantization
from tunesmith.models.quiet import quiet
from tunesmith.models.source import check_hub
from tunesmith.models.weights import own_memory
from tunesmith.objectives.base import Task

LOADING_FAULTS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
_AUTO: dict[Task, str] = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classify": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification",
    "mask": "AutoModelForMaskedLM",
}
_PADS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


@dataclass(frozen=True)
class Opened:
    """One place to read from, with the faults of transformers turned into ours."""

    source: str | Path
    name: str
    revision: str = "main"
    trust_remote_code: bool = False

    def config(self) -> Any:
        """The configuration, from which a model can be judged before its weights are read."""
        return self._call(AutoConfig.from_pretrained)

    def tokenizer(self) -> Any:
        """The tokenizer, with a padding token set."""
        source = self.source
        if isinstance(source, Path) and not list(source.glob("*token*")) and not list(source.glob("vocab*")):
            remedy = "Save the tokenizer into the folder too (`tokenizer.save_pretrained`)."
            raise UserError("the folder has no tokenizer.", code="no_tokenizer", where=self.name, remedy=remedy)
        tokenizer = self._call(AutoTokenizer.from_pretrained)
        if tokenizer.pad_token is None:
            vocabulary = tokenizer.get_vocab()
            tokenizer.pad_token = next((token for token in _PADS if token in vocabulary), tokenizer.eos_token)
        if tokenizer.pad_token is None:
            remedy = "Set `pad_token` in its tokenizer_config.json to a token that text never holds."
            raise UserError(
                "the tokenizer has no token for padding and none for the end.",
                code="no_pad_token",
                where=self.name,
                remedy=remedy,
            )
        return tokenizer

    def model(
        self,
        config: Any,
        task: Task,
        dtype: torch.dtype,
        *,
        may_lack_head: bool = False,
        is_strict: bool = False,
        quantize: Quantize = "none",
    ) -> tuple[Any, set[str]]:
        """The model and the keys of its fresh head; only `may_lack_head` allows any, or a head of another shape."""
        model, info = self._call(
            auto_class(task).from_pretrained,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            quantization_config=quantization(quantize, auto_class(task), config, dtype),
        )
        wrong_shape = {key for key, *_ in info["mismatched_keys"]}
        missing = set(info["missing_keys"]) | wrong_shape
        heads = tuple(f"{name}." for name in head_modules(model)) if may_lack_head else ()
        holes = sorted(key for key in missing if not (heads and key.startswith(heads)))
        if holes:
            shown = ", ".join(holes[:3]) + (f" and {len(holes) - 3} more" if len(holes) > 3 else "")
            raise UserError(
                f"the checkpoint lacks {shown}, which would be random.",
                code="incomplete_model",
                where=self.name,
                remedy="The weights are not of this architecture, or are damaged; fetch the model again.",
            )
        if is_strict and info["unexpected_keys"]:
            shown = ", ".join(sorted(info["unexpected_keys"])[:3])
            raise UserError(
                f"the checkpoint holds weights that the model has no place for: {shown}.",
                code="unexpected_weights",
                where=self.name,
                remedy="The folder was changed after training; use the run's own model folder.",
            )
        own_memory(model)
        keep_layout(model)
        make_exact(model, self.source)
        model.name_or_path = self.name  # peft writes it into adapter_config.json: what was typed, never a local path
        return model.eval(), missing

    def _call(self, function: Any, **settings: Any) -> Any:
        if isinstance(self.source, str):
            check_hub(self.source)
        try:
            with quiet():
                return function(
                    self.source, revision=self.revision, trust_remote_code=self.trust_remote_code, **settings
                )
        except LOADING_FAULTS as fault:
            raise self._fault(fault) from fault

    def _fault(self, fault: Exception) -> UserError:
        reason = first_line(fault)
        if "trust_remote_code" in str(fault):
            return UserError(
                "the model needs code that comes with it.",
                code="remote_code",
                where=self.name,
                remedy="Read that code; if you trust it set `model.trust_remote_code: true`.",
            )
        if isinstance(self.source, str):
            return UserError(
                f"the model cannot be fetched from the hub: {reason}.",
                code="unknown_model",
                where=self.name,
                remedy="Check the name and the network. Offline, name a folder, or the built-in `tunesmith/base`.",
            )
        return UserError(
            f"the model cannot be read: {reason}.",
            code="bad_model",
            where=self.name,
            remedy="Fetch or save the model again.",
        )


def auto_class(task: Task) -> Any:
    """The class of transformers that makes models for a task."""
    return getattr(transformers, _AUTO[task])


def first_line(fault: Exception) -> str:
    """What a fault says, at most 300 characters, without the lines of advice that follow."""
    text = str(fault).strip() or type(fault).__name__
    return text.splitlines()[0].rstrip(".")[:300]
