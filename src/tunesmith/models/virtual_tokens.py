"""Virtual tokens: trained vectors that stand before a text, as embeddings or as keys and values of each layer.

PEFT's wrapper puts them there; what it leaves to its caller is here: how many positions they take, how a batch of
prompts begins to be answered, and a decoder's classifier, which reads the last position of a padded row.
Legend: B rows, T tokens, P virtual tokens, K key heads, D width, H width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Embedding, Module
from transformers import DynamicCache

from tunesmith.core.errors import UserError
from tunesmith.models.anatomy import backbone, blocks, embeddings, is_classifier, is_encoder_decoder, is_tagger
from tunesmith.models.configuration import family
from tunesmith.models.quiet import hush_padding_line

PROMPT_ENCODER = "prompt_encoder.safetensors"
"""The network that makes virtual tokens while training; PEFT does not read it."""


def prompt_config(model: Any) -> Any | None:
    """PEFT's configuration of the virtual tokens that stand before every text now; None where there are none."""
    configs = getattr(model, "peft_config", None)
    if not configs or getattr(model, "_adapters_disabled", False):
        return None
    config = configs.get(getattr(model, "active_adapter", ""))
    return config if config is not None and config.is_prompt_learning else None


def num_virtual_tokens(model: Any) -> int:
    """Positions of the model's context that are taken before the first token of a text."""
    config = prompt_config(model)
    return config.num_virtual_tokens if config is not None else 0


def is_prefix(config: Any) -> bool:
    """Whether the virtual tokens are keys and values of each layer, and not embeddings."""
    return str(config.peft_type.value) in ("PREFIX_TUNING", "CARTRIDGE")


def embedded(model: Any, ids_BT: Tensor) -> Tensor:
    """Embeddings [B, P + T, D] of rows with the virtual tokens before them, as PEFT's own forward pass makes them."""
    embeds_BTD = model.word_embeddings(ids_BT)
    prompts_BPD = model.get_prompt(batch_size=len(ids_BT))[:, : num_virtual_tokens(model)]
    return torch.cat([prompts_BPD.to(embeds_BTD.dtype), embeds_BTD], dim=1)


def with_virtual(model: Any, mask_BT: Tensor) -> Tensor:
    """The attention mask [B, P + T]: every row sees the virtual tokens."""
    return torch.cat([mask_BT.new_ones(len(mask_BT), num_virtual_tokens(model)), mask_BT], dim=1)


def read_last_token(model: Any) -> None:
    """Let a decoder's classifier read each row's last token behind virtual tokens.

    From embeddings, transformers cannot tell padding and reads the last position. So padding on the right is moved to
    the left there, and positions are counted from each row's first virtual token. Rows without padding stay the same.
    """
    if is_classifier(model) and not is_tagger(model) and family(model.config) == "decoder":
        base = model.get_base_model()
        base.register_forward_pre_hook(_move_padding_left, with_kwargs=True)
        hush_padding_line(base)


def _move_padding_left(base: Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    embeds_BTD, mask_BT = inputs.get("inputs_embeds"), inputs.get("attention_mask")
    if embeds_BTD is None or mask_BT is None:
        return None
    length = mask_BT.shape[1]
    num_padding_B = length - mask_BT.long().sum(-1, keepdim=True)
    places_BT = (torch.arange(length, device=mask_BT.device)[None] - num_padding_B) % length
    moved = {
        "inputs_embeds": embeds_BTD.gather(1, places_BT[..., None].expand_as(embeds_BTD)),
        "attention_mask": (mask := mask_BT.long().gather(1, places_BT)),
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    return args, inputs | moved


@contextmanager
def without_virtual_tokens(model: Any) -> Iterator[None]:
    """Within it the base model answers; PEFT's own fails for classifiers."""
    model.forward, model._adapters_disabled = model.base_model.forward, True
    try:
        yield
    finally:
        del model.forward
        model._adapters_disabled = False


def check_fits(model: Any, config: Any) -> None:
    """Refuse virtual tokens of another base, which PEFT would attach and then fail to run.

    Raises:
        ValueError: Widths, heads or layers differ.
    """
    wanted: Any
    found: Any
    if is_prefix(config):
        wanted = [(config.num_attention_heads, config.token_dim // config.num_attention_heads)] * config.num_layers
        found, name = key_value_shapes(model), "its layers' key heads and their widths"
    else:
        wanted, found = config.token_dim, cast(Embedding, embeddings(model)).embedding_dim
        name = "the width of its embeddings"
    if wanted != found:
        raise ValueError(f"{name}: the adapter has {wanted}, the base {found}")


@torch.no_grad()
def key_value_shapes(model: Any) -> list[tuple[int, int]]:
    """Key heads and width of each layer's cache (the decoder's, where there is an encoder), found by running one token.

    Raises:
        UserError: The model keeps no cache.
    """
    return [(keys.shape[1], keys.shape[3]) for keys, _ in cached(model, [0])]


@torch.no_grad()
def cached(model: Any, token_ids: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [1, K, T, H] of each layer after reading these tokens, for a new prefix to begin with.

    Raises:
        UserError: The model keeps no cache.
    """
    ids = torch.tensor([token_ids], device=model.device)
    was_training = model.training
    model.eval()
    cache: Any = DynamicCache()
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):  # fp32 heads
            if is_encoder_decoder(model):
                output = model(input_ids=ids, decoder_input_ids=ids, use_cache=True)
                cache = output.past_key_values.self_attention_cache
            else:
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                backbone(model)(**inputs, past_key_values=cache, use_cache=True)
    except ValueError:  # T5's encoder says that only a decoder has a cache
        cache = DynamicCache()
    finally:
        model.train(was_training)
    found = [(layer.keys, layer.values) for layer in cache.layers if getattr(layer, "keys", None) is not None]
    if len(found) < len(blocks(model)):  # also where only some layers attend
        raise UserError(
            f"a {model.config.model_type} model keeps no keys and values to put a prefix before.",
            code="method_refused",
            remedy="Use `method: prompt_tuning` or `method: lora`.",
        )
    return found


def save_prompt_encoder(model: Any, folder: Path) -> None:
    """Write the network that makes the virtual tokens beside the adapter, where there is one: PEFT leaves it out."""
    encoder = model.prompt_encoder["default"]
    if len(list(encoder.parameters())) > 1:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(tensors, folder / PROMPT_ENCODER)


def open_for_training(model: Module, folder: Path, config: Any) -> Any:
    """PEFT's wrapper with the saved adapter, ready to train on, for the types that PEFT opens only to answer with.

    Raises:
        UserError: The network that made its virtual tokens was not saved with it.
        RuntimeError, KeyError: Weights are missing or have another shape.
    """
    from peft import get_peft_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config.inference_mode = False
    adapted: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    weights = load_peft_weights(str(folder), device=str(adapted.device))
    if not config.is_prompt_learning:
        prompts_in_fp32(adapted)
        set_peft_model_state_dict(adapted, weights)
        return adapted
    encoder = adapted.prompt_encoder["default"]
    if len(list(encoder.parameters())) == 1:
        set_peft_model_state_dict(adapted, weights)
        return adapted
    if not (folder / PROMPT_ENCODER).is_file():
        raise UserError(
            "the folder has the finished virtual tokens and not the network that made them.",
            code="bad_adapter",
            where=str(folder),
            remedy="It can answer; to train on, begin anew from its base.",
        )
    saved = load_file(folder / PROMPT_ENCODER, device=str(adapted.device))
    set_peft_model_state_dict(adapted, {**weights, "prompt_embeddings": saved["embedding.weight"]})
    encoder.load_state_dict(saved, strict=True)
    return adapted


def prompts_in_fp32(adapted: Any) -> None:
    """Make LLaMA-Adapter's prompts and gates fp32, and their products those of the attention they extend.

    PEFT gives them the base's type, in which small steps are lost, and cannot multiply the two types.
    """
    for module in adapted.modules():
        if not hasattr(module, "adaption_gate"):
            continue
        dtype = module.adaption_prompt.dtype
        if dtype != torch.float32:
            module.adaption_prompt.data = module.adaption_prompt.data.float()
            module.adaption_gate.data = module.adaption_gate.data.float()
            module.forward = partial(_in_type, module, dtype)


def _in_type(module: Any, dtype: torch.dtype, *args: Any, **inputs: Any) -> Any:
    with torch.autocast(module.adaption_prompt.device.type, dtype):
        return type(module).forward(module, *args, **inputs)
