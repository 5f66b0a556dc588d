"""full, last_k and feature_extraction: exactly which weights train, and in which mode."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.methods.feature_extraction import FeatureExtraction
from tunesmith.methods.full import Full
from tunesmith.methods.last_k import LastK
from tunesmith.models.anatomy import blocks, embeddings
from tunesmith.models.tiny import tiny


def training_names(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_last_k_trains_the_last_blocks_the_norm_and_an_untied_head() -> None:
    model, _ = tiny("llama", tie_word_embeddings=False)
    names = training_names(LastK(k=1).attach(model))
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"2"}
    assert {"model.norm.weight", "lm_head.weight"} <= names
    assert "model.embed_tokens.weight" not in names


def test_last_k_leaves_a_tied_head_frozen() -> None:
    model, _ = tiny("llama", tie_word_embeddings=True)
    names = training_names(LastK(k=1).attach(model))
    assert not embeddings(model).weight.requires_grad  # type: ignore[union-attr]
    assert "model.norm.weight" in names


def test_last_k_of_an_encoder_decoder_is_the_decoders() -> None:
    names = training_names(LastK(k=1).attach(tiny("bart")[0]))
    assert all(name.startswith("model.decoder.layers.2.") for name in names), names


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"`method\.k` is 9, and the model has 3 blocks"):
        LastK(k=9).attach(tiny("llama")[0])


def test_last_k_drops_out_only_where_it_trains() -> None:
    model = LastK(k=1).attach(tiny("gpt2")[0])
    LastK(k=1).set_training(model)
    assert [block.training for block in blocks(model)] == [False, False, True]


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("bert", {"bert.pooler", "classifier"}),
        ("roberta", {"classifier"}),
        ("distilbert", {"pre_classifier", "classifier"}),
        ("modernbert", {"head", "classifier"}),
        ("llama", {"score"}),
    ],
)
def test_feature_extraction_trains_the_head_and_keeps_dropout_off(architecture: str, heads: set[str]) -> None:
    model, _ = tiny(architecture, "classify")
    FeatureExtraction().attach(model)
    assert all(any(name.startswith(f"{head}.") for head in heads) for name in training_names(model))
    FeatureExtraction().set_training(model)
    training = {name for name, module in model.named_modules() if module.training}
    assert heads <= training
    assert not any(block.training for block in blocks(model))


def test_full_trains_everything() -> None:
    model, _ = tiny("t5")
    assert training_names(Full().attach(model)) == {name for name, _ in model.named_parameters()}
