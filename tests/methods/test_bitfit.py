"""BitFit: which biases train in each architecture, and which models have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.methods.bitfit import BitFit
from tunesmith.models.anatomy import head_modules, is_classifier, num_parameters
from tunesmith.models.tiny import ARCHITECTURES, tiny

WITH_BIASES = ("bert", "roberta", "distilbert", "gpt2", "gpt_neox", "qwen2", "phi", "bart")


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_bias_trains_or_the_model_is_refused_before_its_weights(architecture: str) -> None:
    model, _ = tiny(architecture)
    if architecture not in WITH_BIASES:
        for refuse in (lambda: BitFit().check_model(model.config, "causal"), lambda: BitFit().attach(model)):
            with pytest.raises(UserError, match="this model's blocks have no biases") as caught:
                refuse()
            assert caught.value.code == "method_refused"
            assert "ia3" in caught.value.remedy and "lora" in caught.value.remedy
        return
    BitFit().check_model(model.config, "causal")
    heads = tuple(f"{name}." for name in head_modules(model)) if is_classifier(model) else ()
    wanted = {name for name, _ in model.named_parameters() if name.endswith("bias") or name.startswith(heads or "-")}
    assert trained(BitFit().attach(model)) == wanted


def test_bert_trains_the_papers_share() -> None:
    # BERT-base has 102,912 biases and norm biases in its 12 blocks: 11 D + D_ff of each, and 0.09 % of its weights.
    model, _ = tiny("bert")
    head = sum(p.numel() for module in head_modules(model).values() for p in module.parameters())
    width, hidden = 32, 64
    in_blocks = 3 * (3 * width + width + width + hidden + width + width)  # q, k, v, output, norm, MLP's two, norm
    assert num_parameters(BitFit().attach(model))[0] == in_blocks + width + head  # the embeddings' norm


@pytest.mark.parametrize(
    ("architecture", "endings"),
    [
        ("bert", {"query.bias", "intermediate.dense.bias"}),
        ("distilbert", {"q_lin.bias", "lin1.bias"}),
        ("phi", {"q_proj.bias", "fc1.bias"}),
        ("bart", {"q_proj.bias", "fc1.bias"}),
    ],
)
def test_two_biases_of_each_block_as_in_the_papers_fourth_section(architecture: str, endings: set[str]) -> None:
    method = BitFit(biases="query_mlp")
    model, _ = tiny(architecture)
    method.check_model(model.config, "causal")
    heads = tuple(f"{name}." for name in head_modules(model)) if is_classifier(model) else ("-",)
    found = {name for name in trained(method.attach(model)) if not name.startswith(heads)}
    assert {next(end for end in endings if name.endswith(end)) for name in found} == endings


@pytest.mark.parametrize(("architecture", "what"), [("gpt2", "queries"), ("qwen2", "the MLP's first matrix")])
def test_a_model_without_those_two_is_refused(architecture: str, what: str) -> None:
    model, _ = tiny(architecture)
    with pytest.raises(UserError, match=f"needs a bias of {what} alone") as caught:
        BitFit(biases="query_mlp").check_model(model.config, "causal")
    assert caught.value.remedy.startswith("Set method.biases=all")


def test_only_biases_move() -> None:
    model: Any = BitFit().attach(tiny("gpt2")[0])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.tensor([[20, 21, 22, 23, 1]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all(name.endswith("bias") for name in moved)
