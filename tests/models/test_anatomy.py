"""The parts of every architecture are found by structure."""

from __future__ import annotations

import pytest

from tunesmith.models import anatomy
from tunesmith.models.tiny import ARCHITECTURES, DECODERS, ENCODER_DECODERS, ENCODERS, task_of, tiny

NORMS = {"modernbert": "LayerNorm", "gpt2": "LayerNorm", "gpt_neox": "LayerNorm", "phi": "LayerNorm"}
HEADS = {
    "bert": ["bert.pooler", "classifier"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"],
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_the_models_layers_in_order(architecture: str) -> None:
    model, _ = tiny(architecture)
    blocks = anatomy.blocks(model)
    assert len(blocks) == 3
    assert len({type(block) for block in blocks}) == 1
    scope = model.get_decoder() if architecture in ENCODER_DECODERS else model
    names = [name for name, module in scope.named_modules() if any(module is block for block in blocks)]
    assert [name.rpartition(".")[2] for name in names] == ["0", "1", "2"]
    assert len(anatomy.encoder_blocks(model)) == (2 if architecture in ENCODER_DECODERS else 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_is_what_gives_the_output(architecture: str) -> None:
    model, _ = tiny(architecture)
    modules = anatomy.head_modules(model)
    assert list(modules) == HEADS.get(architecture, ["lm_head"])
    assert anatomy.head(model) is list(modules.values())[-1]
    assert anatomy.is_classifier(model) == (architecture in ENCODERS)


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODER_DECODERS])
def test_a_generating_architecture_can_classify_too(architecture: str) -> None:
    model, _ = tiny(architecture, "classify")
    assert anatomy.is_classifier(model)
    assert len(anatomy.head_modules(model)) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_final_norm_follows_the_last_block(architecture: str) -> None:
    model, _ = tiny(architecture)
    norm = anatomy.final_norm(model)
    if architecture in ("bert", "roberta", "distilbert", "bart"):
        assert norm is None  # each block ends with its own
        return
    assert norm is not None
    assert type(norm).__name__.endswith("Norm")
    assert not any(norm is module for block in anatomy.blocks(model) for module in block.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_and_the_rest_are_all_matrices(architecture: str) -> None:
    model, _ = tiny(architecture)
    attention, rest = set(anatomy.linears(model, "attention")), set(anatomy.linears(model, "mlp"))
    assert attention
    assert not attention & rest
    assert attention | rest == set(anatomy.linears(model))
    heads = tuple(anatomy.head_modules(model))
    assert not any(name.startswith(heads) for name in attention | rest)


def test_matrices_of_llama_are_known() -> None:
    model, _ = tiny("llama")
    last = {name.rpartition(".")[2] for name in anatomy.linears(model, "attention")}
    assert last == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {n.rpartition(".")[2] for n in anatomy.linears(model, "mlp")} == {"gate_proj", "up_proj", "down_proj"}


def test_parts_are_found_under_an_adapter_too() -> None:
    from tunesmith.methods.lora import LoRA

    model, _ = tiny("llama")
    blocks = anatomy.blocks(model)
    attached = LoRA().attach(model)
    assert anatomy.blocks(attached) == blocks
    assert anatomy.head(attached) is model.lm_head


@pytest.mark.parametrize(
    ("architecture", "is_tied"), [("gpt2", True), ("gemma", True), ("llama", False), ("bert", False)]
)
def test_a_tied_head_is_seen(architecture: str, is_tied: bool) -> None:
    assert anatomy.is_tied(tiny(architecture)[0]) is is_tied


def test_a_tied_table_counts_once() -> None:
    model, tokenizer = tiny("llama", tie_word_embeddings=True)
    untied, _ = tiny("llama", tie_word_embeddings=False)
    assert anatomy.num_parameters(untied)[1] - anatomy.num_parameters(model)[1] == len(tokenizer) * 32
    model.requires_grad_(False)
    assert anatomy.num_parameters(model)[0] == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models_are_tiny_and_the_same_again(architecture: str) -> None:
    import torch

    first, second = (tiny(architecture, task_of(architecture))[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert sum(tensor.numel() for tensor in first.values()) < 200_000
