"""What a configuration says of a model, and whether that fits the task and the tokenizer, before weights are read."""

from __future__ import annotations

from typing import Any, Literal

from transformers.models.auto import modeling_auto

from tunesmith.core.errors import UserError
from tunesmith.objectives.base import Problem, Task

Family = Literal["encoder", "decoder", "encoder-decoder"]
NO_POSITIONS = 512
"""Context of models with relative positions only (T5), which were trained on rows of 512 tokens."""
LABELLED: tuple[Task, ...] = ("classify", "tag")
"""Tasks whose head gives classes."""
HEADED: tuple[Task, ...] = (*LABELLED, "mask")
"""Tasks whose head may be new."""
NUMBER = "number"
"""The name of the one output of a regression."""
_TABLES = {
    "classify": (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "a classifier"),
    "tag": (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "a classifier of words"),
    "mask": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "a head for hidden words"),
}
_SUFFIXES: dict[str, Task] = {
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForMaskedLM": "mask",
}
_OFFSET = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm", "xmod"}
"""These begin counting positions after the padding token's index, so that many positions are never used."""
_AS_CHAT = (
    " Pairs become chats, for sft, with data.columns={source: prompt, target: completion} (under the names here)."
)


def context_length(config: Any) -> int:
    """The longest row in tokens that the model has positions for."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or NO_POSITIONS
    if text.model_type in _OFFSET:
        longest -= (text.pad_token_id or 0) + 1
    return int(longest)


def family(config: Any) -> Family:
    """What kind of model a configuration makes, told from transformers' own tables."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    is_masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "decoder" if is_causal and not (is_masked and not getattr(config, "is_decoder", False)) else "encoder"


def infer_task(config: Any, name: str) -> Task:
    """The task a checkpoint was saved for.

    Raises:
        UserError: It is a bare encoder, which answers nothing.
    """
    saved = (getattr(config, "architectures", None) or [""])[0]
    for suffix, task in _SUFFIXES.items():
        if saved.endswith(suffix):
            return task
    kind = family(config)
    if kind == "encoder":
        raise UserError(
            f"{saved or config.model_type} is an encoder without a trained head; it cannot answer.",
            code="wrong_task",
            where=name,
            remedy="Train it first, with `objective: classification`.",
        )
    return "seq2seq" if kind == "encoder-decoder" else "causal"


def check_task(config: Any, task: Task, name: str) -> None:
    """Refuse a model that cannot do the task, from its configuration alone.

    Raises:
        UserError: The model is of another kind.
    """
    kind = family(config)
    needed = {"causal": "decoder", "seq2seq": "encoder-decoder", "mask": "encoder"}.get(task)
    fitting = {
        "encoder": "classification, token_classification or mlm",
        "decoder": "sft, clm or classification",
        "encoder-decoder": "seq2seq",
    }[kind]
    if needed and kind != needed:
        raise UserError(
            f"the task needs {_a(needed)}, and this model ({config.model_type}) is {_a(kind)}.",
            code="wrong_task",
            where=name,
            remedy=f"Choose another model, or an objective for it: {fitting}."
            + (_AS_CHAT if (task, kind) == ("seq2seq", "decoder") else ""),
        )
    table, noun = _TABLES.get(task, ({config.model_type: ""}, ""))
    if config.model_type not in table:
        raise UserError(
            f"transformers has no {noun.partition(' ')[2]} for {config.model_type}.",
            code="wrong_task",
            where=name,
            remedy=f"Choose another model, or an objective for it: {fitting}.",
        )


def check_vocabulary(config: Any, tokenizer: Any, name: str) -> None:
    """Refuse a model whose table of embeddings is smaller than the tokenizer's highest token.

    Raises:
        UserError: It is.
    """
    size = getattr(config.get_text_config(), "vocab_size", None)
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size is not None and needed > size:
        raise UserError(
            f"the tokenizer has {needed:,} tokens and the model only {size:,} embeddings.",
            code="vocabulary_mismatch",
            where=name,
            remedy="Use the tokenizer that belongs to the model.",
        )


def check_mask(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer without a token that stands for a hidden word.

    Raises:
        UserError: It has none.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no token that hides a word.",
            code="no_mask_token",
            where=name,
            remedy="Set `mask_token` in its tokenizer_config.json, or train with another objective.",
        )


def labels_of(config: Any) -> tuple[str, ...]:
    """The labels of a classifier in the order of its outputs; empty where it names none."""
    return tuple(config.id2label[index] for index in sorted(config.id2label)) if config.id2label else ()


def set_labels(
    config: Any,
    labels: tuple[str, ...],
    tokenizer: Any,
    problem: Problem = "single_label_classification",
    task: Task = "classify",
) -> None:
    """Make a configuration one of a classifier with these labels (a regression has one, `NUMBER`).

    `problem` makes transformers alone compute the same loss.

    Raises:
        UserError: There are fewer than two.
    """
    if len(labels) < 2 and problem != "regression":
        raise UserError(
            f"a classifier needs at least two labels, not {len(labels)}.",
            code="too_few_labels",
            remedy="Check the label column of your rows.",
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = problem if task == "classify" else None
    if config.pad_token_id is None or family(config) == "decoder":
        config.pad_token_id = tokenizer.pad_token_id  # decoders read the class off the last token that is no padding


def _a(noun: str) -> str:
    return f"{'an' if noun[0] == 'e' else 'a'} {noun}"
