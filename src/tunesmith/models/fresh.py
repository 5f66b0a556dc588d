"""Weights that no checkpoint gives: a whole model from a configuration, or the head of a classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from tunesmith.core.errors import UserError, unknown_name
from tunesmith.models.anatomy import head_modules
from tunesmith.models.configuration import LABELLED, check_mask, check_task, check_vocabulary, set_labels
from tunesmith.models.number_head import make_exact
from tunesmith.models.opened import LOADING_FAULTS, auto_class, first_line
from tunesmith.models.quiet import quiet
from tunesmith.objectives.base import Problem, Task


def random_model(
    values: Mapping[str, Any],
    tokenizer: Any,
    task: Task,
    *,
    labels: Sequence[str] = (),
    problem: Problem = "single_label_classification",
    seed: int,
) -> Any:
    """A model with random fp32 weights from a transformers configuration.

    What `values` leaves out about tokens (vocabulary size, padding, end) comes from the tokenizer.

    Raises:
        UserError: `model_type` is missing or unknown, a key has no effect, or the sizes do not fit together.
    """
    config = make_config(values, tokenizer)
    place = f"model.config ({values['model_type']})"
    check_task(config, task, place)
    check_vocabulary(config, tokenizer, place)
    if task == "mask":
        check_mask(tokenizer, place)
    if task in LABELLED:
        set_labels(config, tuple(labels), tokenizer, problem, task)
    try:
        with seeded(seed), quiet():
            return make_exact(auto_class(task).from_config(config, dtype=torch.float32).eval())
    except LOADING_FAULTS as fault:
        raise UserError(
            f"the sizes do not fit together: {first_line(fault)}.", code="bad_config", where=place
        ) from None


def renew_head(model: Any) -> None:
    """Forget a head that was trained for other labels: equal shapes would hide the change."""
    for module in head_modules(model).values():
        for part in module.modules():
            if hasattr(part, "_is_hf_initialized"):
                del part._is_hf_initialized
            for parameter in part.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            model._init_weights(part)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it torch draws from `seed`; its random state is put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def make_config(values: Mapping[str, Any], tokenizer: Any) -> Any:
    """The transformers configuration of `model.config`; what it leaves out about tokens comes from the tokenizer.

    Raises:
        UserError: `model_type` is missing or unknown, or a key has no effect.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str):
        remedy = "Set it, for example: {model_type: llama, hidden_size: 256, …}."
        raise UserError("`model.config.model_type` is missing.", code="bad_config", remedy=remedy)
    known_kinds = transformers.CONFIG_MAPPING
    if kind not in known_kinds:
        raise unknown_name("model type", kind, known_kinds.keys())
    default = known_kinds[kind]()
    known = {*default.to_dict(), *default.attribute_map, "vocab_size"}
    for key in values:
        if key not in known:
            raise unknown_name("setting of model.config", key, known)
    tokens = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if getattr(default, "is_encoder_decoder", False):
        tokens |= {"decoder_start_token_id": tokenizer.pad_token_id}
        tokens |= {key: None for key in ("forced_bos_token_id", "forced_eos_token_id") if hasattr(default, key)}
    settings = {**tokens, **{key: value for key, value in values.items() if key != "model_type"}}
    try:
        with quiet():
            return known_kinds[kind](**settings)
    except (*LOADING_FAULTS, TypeError) as fault:
        raise UserError(f"`model.config` does not hold: {first_line(fault)}.", code="bad_config") from None
