"""Random models of a few thousand weights, one of every architecture Tunesmith is tested on.

They are real transformers models with a real byte-level tokenizer, built offline in well under a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.models.configuration import HEADED, LABELLED, NUMBER
from tunesmith.models.fresh import random_model
from tunesmith.models.quiet import quiet
from tunesmith.objectives.base import Problem, Task

ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "mixtral")
ENCODER_DECODERS = ("t5", "bart")
ARCHITECTURES = (*ENCODERS, *DECODERS, *ENCODER_DECODERS)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 256
SPECIAL = ("<pad>", "<eos>", "<cls>", "<sep>", "<mask>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
# Qwen 2 is always given <|endoftext|> by transformers, so it is in the vocabulary.
_TEXT = (
    "the machine makes coffee and the user cleans the machine",
    "what does the light mean when the water tank is empty",
    "press the button and wait until the green light is on",
    "assistant user system question answer",
)


def task_of(architecture: str) -> Task:
    """The task an architecture is mostly used for."""
    if architecture in ENCODERS:
        return "classify"
    return "seq2seq" if architecture in ENCODER_DECODERS else "causal"


def tiny(
    architecture: str,
    task: Task | None = None,
    *,
    labels: Sequence[str] = ("no", "yes", "maybe"),
    problem: Problem = "single_label_classification",
    seed: int = 1,
    has_template: bool = True,
    **sizes: Any,
) -> tuple[Any, Any]:
    """A random model and its tokenizer; `sizes` overrule the configuration (`num_hidden_layers=4`)."""
    task = task or task_of(architecture)
    reads_target = architecture in ENCODER_DECODERS
    tokenizer = tiny_tokenizer("seq2seq" if reads_target else task, has_template=has_template)
    config = {**tiny_config(architecture), **sizes}
    names = (NUMBER,) if problem == "regression" else labels if task in LABELLED else ()
    model = random_model(config, tokenizer, task, labels=names, problem=problem, seed=seed)
    return model.eval(), tokenizer


def write_tiny(folder: Path, architecture: str, task: Task | None = None, **settings: Any) -> Path:
    """Save a tiny model and its tokenizer as transformers does; returns the folder."""
    model, tokenizer = tiny(architecture, task, **settings)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def tiny_config(architecture: str) -> dict[str, Any]:
    """The configuration, as `model.config` of a recipe takes it (the vocabulary comes from the tokenizer)."""
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    decoder = {**wide, "max_position_embeddings": CONTEXT}
    grouped = {**decoder, "num_key_value_heads": 2}
    special: dict[str, dict[str, Any]] = {
        "roberta": {**decoder, "max_position_embeddings": CONTEXT + 1},
        "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4, "max_position_embeddings": CONTEXT},
        "modernbert": {**decoder, "local_attention": 16},
        "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT},
        "bert": decoder,
        "qwen3": {**grouped, "head_dim": 8},
        "gemma": {**grouped, "head_dim": 8},
        "gpt_neox": decoder,
        "phi": decoder,
        "mistral": {**grouped, "sliding_window": None},
        "mixtral": {**grouped, "sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
        "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3},
        "bart": {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": CONTEXT,
        },
    }
    return {"model_type": architecture, **special.get(architecture, grouped)}


def tiny_tokenizer(task: Task = "causal", *, has_template: bool = True) -> Any:
    """A byte-level tokenizer of 320 tokens that can write any text."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_trained())
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    if task in HEADED:
        tokenizer.post_processor = TemplateProcessing(
            single="<cls> $A <sep>",
            pair="<cls> $A <sep> $B <sep>",
            special_tokens=[("<cls>", ids["<cls>"]), ("<sep>", ids["<sep>"])],
        )
    elif task == "seq2seq":
        tokenizer.post_processor = TemplateProcessing(
            single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", ids["<eos>"])]
        )
    wrapped: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>" if task == "causal" and has_template else "<eos>",
        cls_token="<cls>",
        sep_token="<sep>",
        mask_token="<mask>",
        model_max_length=CONTEXT,
    )
    if task == "causal" and has_template:
        wrapped.chat_template = CHATML
    return wrapped


@cache
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    text: str = tokenizer.to_str()
    return text
