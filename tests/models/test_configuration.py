"""A configuration alone says what its model can do."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import UserError
from tunesmith.models.configuration import NUMBER, context_length, infer_task, set_labels
from tunesmith.models.tiny import ARCHITECTURES, CONTEXT, tiny, tiny_tokenizer
from tunesmith.objectives.base import Task


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_context_is_how_far_positions_go(architecture: str) -> None:
    model, _ = tiny(architecture)
    assert context_length(model.config) == (512 if architecture == "t5" else CONTEXT)


@pytest.mark.parametrize(("suffix", "task"), [("TokenClassification", "tag"), ("MaskedLM", "mask")])
def test_a_checkpoint_says_what_it_was_saved_for(suffix: str, task: Task) -> None:
    model, _ = tiny("roberta", task)
    assert type(model).__name__.endswith(suffix)
    model.config.architectures = [type(model).__name__]
    assert infer_task(model.config, "x") == task


def test_a_decoder_reads_its_class_before_the_padding_that_is_really_used() -> None:
    """A configuration may name another padding token than the tokenizer; the class would be read off padding."""
    config = tiny("llama")[0].config
    tokenizer = tiny_tokenizer("classify")
    config.pad_token_id = 77
    set_labels(config, ("no", "yes"), tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    encoder = tiny("roberta")[0].config
    encoder.pad_token_id = 5  # its positions count from it
    set_labels(encoder, ("no", "yes"), tokenizer)
    assert encoder.pad_token_id == 5


def test_one_output_is_a_number_and_never_a_class() -> None:
    config, tokenizer = tiny("bert")[0].config, tiny_tokenizer("classify")
    set_labels(config, (NUMBER,), tokenizer, "regression")
    assert (config.num_labels, config.problem_type) == (1, "regression")
    with pytest.raises(UserError, match="a classifier needs at least two labels, not 1"):
        set_labels(config, ("yes",), tokenizer)
