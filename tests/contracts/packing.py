"""Every decoder of transformers, tried: is it packed, or padded and why? `make matrix` writes what came out.

Each is a tiny random model from one generic configuration, because nobody writes 190 by hand; what cannot be built so,
or comes out without the layers that make it what it is, is listed as not tried. The results are kept in packing.json;
docs/reference/packing.md is drawn from them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunesmith.kernels.packed_attention import NAME, why_not_packed
from tunesmith.models.quiet import quiet

RESULTS = Path(__file__).parent / "packing.json"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "packing.md"
OURS, OWN, NOT_TRIED = "ours", "own", "not tried: "
SECONDS = 60
MOST_WEIGHTS = 200 * 10**6
VOCABULARY = 100
_WIDTHS = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size_mlp", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "attention_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim"), 16),
    "rotary_dim": 4,
}
_COUNTS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_query_groups", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
}
_PLACES = {
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **{"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"sliding_window": 6, "attention_chunk_size": 4, "is_decoder": True},
}
SIZES: dict[str, Any] = {**_WIDTHS, **_COUNTS, **_PLACES}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "layer_types": None, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "layer_types": None},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 6, "layer_types": None},
}
"""What single architectures need beyond that; None takes a key away."""
_UNLIKE_ATTENTION = re.compile(
    "Mamba|ShortConv|DeltaNet|DeltaAttention|Lightning|Recurrent|Rwkv|[ms]LSTM|SSM|LinearAttention|ShortConvolution"
)
"""Names of layers that carry a state from token to token instead of attending."""


def architectures() -> list[str]:
    """The model types of transformers that write text."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(kind: str) -> Any:
    """A tiny random model of a type, from the generic configuration.

    Raises:
        OverflowError: Parts that the configuration does not reach make it large.
    """
    default: Any = CONFIG_MAPPING[kind]()
    known = {**default.to_dict(), **getattr(default, "attribute_map", {})}
    settings = {key: value for key, value in SIZES.items() if key in known}
    if known.get("sliding_window", 0) is None and "layer_types" not in known:
        del settings["sliding_window"]  # off by default, and not for a layer of its own
    if kinds := list(dict.fromkeys(known.get("layer_types") or ())):
        settings["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        settings["num_hidden_layers"] = len(settings["layer_types"])
        if mlps := known.get("mlp_layer_types"):
            settings["mlp_layer_types"] = (list(dict.fromkeys(mlps)) * 4)[: settings["num_hidden_layers"]]
    settings = {**settings, **SPECIAL.get(kind, {})}
    torch.manual_seed(0)
    config = type(default)(**{key: value for key, value in settings.items() if value is not None})
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_WEIGHTS:
        raise OverflowError(f"{size:,} weights")
    return AutoModelForCausalLM.from_config(config).eval()


def missing_layers(model: Any) -> list[str]:
    """Layers with a state that the architecture's source has and this model has not."""
    source = importlib.import_module(type(model).__module__)
    has = {type(part).__name__ for part in model.modules()}
    kinds = [
        name
        for name, kind in inspect.getmembers(source, inspect.isclass)
        if issubclass(kind, torch.nn.Module) and kind.__module__ == source.__name__ and _UNLIKE_ATTENTION.search(name)
    ]
    mixers = [name for name in kinds if not re.search("Norm|Model|For[A-Z]|PreTrained|Cache|Block|Layer$", name)]
    return [name for name in mixers if name not in has] if not has & set(mixers) else []


def outcome(kind: str) -> str:
    """The attention that a packed type has, "ours" or its "own"; why it is padded; or why it is not tried."""

    def stop(*unused: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with quiet():
            try:
                model = build(kind)
            except TimeoutError:
                raise
            except OverflowError:
                return f"{NOT_TRIED}the generic configuration leaves it large"
            except Exception as fault:  # whatever a configuration that was not made for it leads to
                return f"{NOT_TRIED}the generic configuration gives {type(fault).__name__}"
            if missing := missing_layers(model):
                return f"{NOT_TRIED}the tiny model has no {missing[0]}"
            reason = why_not_packed(model, VOCABULARY)
    except TimeoutError as fault:
        return f"{NOT_TRIED}{fault}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return reason or (OURS if model.config._attn_implementation == NAME else OWN)


def read_results() -> dict[str, str]:
    """The kept results by model type."""
    found: dict[str, str] = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    return found


def page(kept: dict[str, Any]) -> str:
    """The results as lists."""
    results: dict[str, str] = kept["results"]
    packed = sum(result in {OURS, OWN} for result in results.values())
    tried = sum(not result.startswith(NOT_TRIED) for result in results.values())
    lines = [
        "<!-- Written by `make matrix` from the contract tests' results; do not edit. -->",
        "",
        "# Which decoders are packed",
        "",
        f"Every model type of transformers {kept['transformers']} that writes text, tried as a tiny random model from "
        f"one generic configuration, in fp32 on a processor: of {len(results)}, {tried} could be tried, "
        f"{packed} are packed. The others train all the same, in padded groups of like length. A run tries its own "
        "model again, so what counts for yours is the line that the run begins with; `train.packing=on` refuses "
        "instead of padding.",
    ]
    groups = [
        (OURS, "Packed, through [our kernels](../explanation/kernels.md)"),
        (OWN, "Packed, through their own attention with transformers' masks, which computes the whole row's square"),
        *((reason, f"Padded: {reason}") for reason in _reasons(results)),
    ]
    for result, title in groups:
        kinds = [kind for kind, one in results.items() if one == result]
        if kinds:
            lines += ["", f"## {title} ({len(kinds)})", "", ", ".join(f"`{kind}`" for kind in kinds) + "."]
    lines += ["", "## Not tried", "", "| model type | why |", "| --- | --- |"]
    lines += [
        f"| `{kind}` | {result.removeprefix(NOT_TRIED)} |"
        for kind, result in results.items()
        if result.startswith(NOT_TRIED)
    ]
    return "\n".join(lines) + "\n"


def write(kinds: Iterable[str]) -> None:
    """Try the types, keep what came out, and draw the page."""
    kept = {"transformers": transformers.__version__, "results": {kind: outcome(kind) for kind in kinds}}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")


def _reasons(results: dict[str, str]) -> list[str]:
    found = dict.fromkeys(result for result in results.values() if result not in {OURS, OWN})
    return [reason for reason in found if not reason.startswith(NOT_TRIED)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(architectures())
