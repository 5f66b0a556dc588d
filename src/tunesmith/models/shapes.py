"""Shapes of published models, so that a run can be planned for one that is not on this machine.

Only what sizes depend on, as in each model's own config.json; nothing is fetched. A name is found by its last part,
without what says how the model was tuned (`-Instruct`, `-Base`, `-it`, …).
"""

from __future__ import annotations

import re
from typing import Any

_TUNED = re.compile(r"-(instruct|base|chat|it|hf|sft|dpo|v\d+(\.\d+)?|bnb-4bit|unsloth)(?=-|$)")


def _llama(width: int, inner: int, blocks: int, heads: int, groups: int, words: int, **other: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": words,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    } | other


def _qwen(width: int, inner: int, blocks: int, heads: int, groups: int, **other: Any) -> dict[str, Any]:
    words = {"vocab_size": 152064 if width >= 3584 else 151936, "max_position_embeddings": 32768}
    tied = {"tie_word_embeddings": width <= 2048}
    return _llama(width, inner, blocks, heads, groups, 0) | {"model_type": "qwen2"} | words | tied | other


def _qwen3(width: int, inner: int, blocks: int, heads: int, groups: int, **other: Any) -> dict[str, Any]:
    return _qwen(width, inner, blocks, heads, groups, model_type="qwen3", head_dim=128, vocab_size=151936) | other


def _gpt2(width: int, blocks: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": width, "n_layer": blocks, "n_head": heads, "vocab_size": 50257}


def _bert(kind: str, width: int, blocks: int, heads: int, words: int, positions: int = 512) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "vocab_size": words,
        "max_position_embeddings": positions,
    }


def _t5(width: int, inner: int, blocks: int, heads: int, key_width: int = 64, **other: Any) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "d_model": width,
        "d_ff": inner,
        "num_layers": blocks,
        "num_heads": heads,
        "d_kv": key_width,
        "vocab_size": 32128,
        "decoder_start_token_id": 0,
    } | other


_GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_SMALL_LLAMA: dict[str, Any] = {"tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, 128256, max_position_embeddings=8192),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3.3-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, **_SMALL_LLAMA),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8, 128256, **_SMALL_LLAMA),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, max_position_embeddings=4096),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40, 32000, max_position_embeddings=4096),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4, 32000, max_position_embeddings=2048),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, max_position_embeddings=8192, **_SMALL_LLAMA),
    "smollm2-360m": _llama(960, 2560, 32, 15, 5, 49152, max_position_embeddings=8192, **_SMALL_LLAMA),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 32, 49152, max_position_embeddings=8192, **_SMALL_LLAMA),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32768, model_type="mistral", max_position_embeddings=32768),
    "qwen2.5-0.5b": _qwen(896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _qwen(1536, 8960, 28, 12, 2),
    "qwen2.5-3b": _qwen(2048, 11008, 36, 16, 2),
    "qwen2.5-7b": _qwen(3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _qwen(5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _qwen(5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _qwen(8192, 29568, 80, 64, 8),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tie_word_embeddings=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8),
    "gemma-2b": _llama(2048, 16384, 18, 8, 1, 256000, model_type="gemma", head_dim=256, tie_word_embeddings=True),
    "gemma-7b": _llama(3072, 24576, 28, 16, 16, 256000, model_type="gemma", head_dim=256, tie_word_embeddings=True),
    "gemma-2-2b": _llama(2304, 9216, 26, 8, 4, 256000, model_type="gemma2", head_dim=256, tie_word_embeddings=True),
    "gemma-2-9b": _llama(3584, 14336, 42, 16, 8, 256000, model_type="gemma2", head_dim=256, tie_word_embeddings=True),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "bert-base-uncased": _bert("bert", 768, 12, 12, 30522),
    "bert-base-cased": _bert("bert", 768, 12, 12, 28996),
    "bert-large-uncased": _bert("bert", 1024, 24, 16, 30522),
    "roberta-base": _bert("roberta", 768, 12, 12, 50265, 514),
    "roberta-large": _bert("roberta", 1024, 24, 16, 50265, 514),
    "all-minilm-l6-v2": _bert("bert", 384, 6, 12, 30522),
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "t5-small": _t5(512, 2048, 6, 8),
    "t5-base": _t5(768, 3072, 12, 12),
    "t5-large": _t5(1024, 4096, 24, 16),
    "flan-t5-small": _t5(512, 1024, 8, 6, **_GATED),
    "flan-t5-base": _t5(768, 2048, 12, 12, **_GATED),
    "flan-t5-large": _t5(1024, 2816, 24, 16, **_GATED),
    "flan-t5-xl": _t5(2048, 5120, 24, 32, **_GATED),
}
"""Values of `model.config`, by the name without its owner, in small letters."""


def shape_of(name: str) -> dict[str, Any] | None:
    """The configuration of a published model by its name, `meta-llama/Llama-3.1-8B-Instruct`; None where unknown."""
    last = name.rpartition("/")[2].lower().removeprefix("meta-")
    short = _TUNED.sub("", last)
    found = SHAPES.get(last) or SHAPES.get(short)
    return None if found is None else dict(found)
