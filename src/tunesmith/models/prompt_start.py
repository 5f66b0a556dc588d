"""What virtual tokens begin as, and PEFT's settings for them, found on the model itself.

Legend: T tokens, P virtual tokens, L layers, K key heads, H width of a head.
"""

from __future__ import annotations

import inspect
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Embedding
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from tunesmith.core.errors import UserError
from tunesmith.models.adapters import new_heads, task_type
from tunesmith.models.anatomy import blocks, embeddings
from tunesmith.models.opened import Opened
from tunesmith.models.quiet import quiet
from tunesmith.models.source import resolve

NUM_COMMON = 5000
"""Prompt tuning's authors draw from the 5,000 most common tokens (arXiv:2104.08691, section 3.2)."""


def prefix_weights(cache: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A cache of one row as PEFT stores a prefix: [P, L x 2 x K x H] in fp32, keys before values in each layer."""
    stacked_PLKH = torch.stack([part[0].transpose(0, 1) for layer in cache for part in layer], dim=1)
    return stacked_PLKH.flatten(1).float()


def common_tokens(model: Any, count: int) -> list[int]:
    """Random words among the 5,000 most common, without repeats where there are enough.

    No corpus is needed: vocabularies of all usual kinds are written in the order of frequency. Of them only tokens of
    two letters and more count, so neither special tokens nor bytes nor BERT's unused places. A model that was made in
    code has no tokenizer to tell; there every token may be drawn.
    """
    if getattr(model, "name_or_path", ""):
        tokenizer = _tokenizer_of(model)
        special = set(tokenizer.all_special_ids)
        words = (i for i in range(len(tokenizer)) if i not in special and _is_word(tokenizer.decode([i])))
        ids = list(islice(words, NUM_COMMON))
    else:
        ids = []
    pool = torch.tensor(ids or list(range(cast(Embedding, embeddings(model)).num_embeddings)))
    order = torch.cat([torch.randperm(len(pool)) for _ in range(-(-count // len(pool)))])
    found: list[int] = pool[order[:count]].tolist()
    return found


def text_tokens(model: Any, text: str, count: int) -> list[int]:
    """The tokens of a text, cut to `count` or repeated up to it.

    Raises:
        UserError: The text has no tokens.
    """
    ids: list[int] = _tokenizer_of(model)(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError("`method.text` has no tokens.", code="bad_value", remedy="Write what the task is, in words.")
    return (ids * -(-count // len(ids)))[:count]


def _tokenizer_of(model: Any) -> Any:
    name = getattr(model, "name_or_path", "")
    if not name:
        raise UserError(
            "the model was made in code and does not say which tokenizer belongs to it.",
            code="bad_value",
            remedy="Set `method.init: vocabulary`, or load the model by its name.",
        )
    with quiet():
        return Opened(resolve(name), name).tokenizer()


def _is_word(text: str) -> bool:
    return len(text.strip()) >= 2 and text.strip().isalpha()


def takes_cache(config: Any) -> bool:
    """Whether the model's backbone reads a cache of keys and values, told from its class without weights."""
    if type(config) not in MODEL_MAPPING:
        return False
    backbone_class: Any = MODEL_MAPPING[type(config)]
    return "past_key_values" in inspect.signature(backbone_class.forward).parameters


def shared_settings(model: Any) -> dict[str, Any]:
    """What PEFT's configurations of virtual tokens have in common; PEFT's own guess knows fewer architectures.

    An encoder-decoder gets one set: of the two that PEFT would make, prompt tuning uses only the first.
    """
    return {
        "task_type": task_type(model),
        "modules_to_save": new_heads(model),
        "num_transformer_submodules": 1,
        "num_layers": len(blocks(model)),
        "num_attention_heads": model.config.get_text_config().num_attention_heads,
        "token_dim": cast(Embedding, embeddings(model)).embedding_dim,
    }
