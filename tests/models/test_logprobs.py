"""Losses of labelled tokens: every architecture's logits are met, whatever it does to them after its head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    GraniteMoeConfig,
    LlamaConfig,
)

from tunesmith.kernels.cross_entropy import PLAIN, LogitTransform
from tunesmith.models.logprobs import Likelihood, logit_transform
from tunesmith.models.tiny import ARCHITECTURES, task_of, tiny
from tunesmith.objectives.base import Batch

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.tensor([[5, 9, 12, 7, 3], [8, 4, 6, 30, 2]])
LABELS = torch.tensor([[-100, 9, 12, 7, 3], [-100, -100, 6, 30, 2]])
WITH_TRANSFORM = {
    "a softcap": (Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0), LogitTransform(softcap=3.0)),
    "a factor": (CohereConfig(**SMALL, logit_scale=0.25), LogitTransform(scale=0.25)),
    "a divisor": (GraniteConfig(**SMALL, logits_scaling=4.0), LogitTransform(scale=0.25)),
    "a divisor, experts": (
        GraniteMoeConfig(**SMALL, logits_scaling=4.0, num_local_experts=2, num_experts_per_tok=1),
        LogitTransform(scale=0.25),
    ),
    "nothing": (LlamaConfig(**SMALL), PLAIN),
}


def _batch(model) -> Batch:
    tensors = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": LABELS}
    if model.config.is_encoder_decoder:
        tensors |= {"decoder_input_ids": IDS}
    return Batch(tensors, 7.0)


def _plain_losses(model, *, is_causal: bool) -> torch.Tensor:
    batch = _batch(model)
    logits = model(**{name: tensor for name, tensor in batch.tensors.items() if name != "labels"}).logits.float()
    if is_causal:
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten(), reduction="none")
    else:
        losses = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="none")
    return losses[losses != 0]


def _gradients(model, losses: torch.Tensor) -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(losses.sum(), list(model.parameters()), allow_unused=True))


@pytest.mark.parametrize("name", WITH_TRANSFORM)
def test_a_head_with_a_transform_goes_through_chunks_with_the_models_own_losses(name):
    config, transform = WITH_TRANSFORM[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    likelihood = Likelihood(model, is_causal=True)
    assert likelihood.head is not None
    assert likelihood.transform == transform == logit_transform(model)
    mine, own = likelihood(_batch(model)).nats_N, _plain_losses(model, is_causal=True)
    torch.testing.assert_close(mine, own)
    for one, other in zip(_gradients(model, mine), _gradients(model, own), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["a softcap", "a factor"])
def test_a_transform_that_the_configuration_does_not_tell_is_noticed_however_small_the_logits(name):
    config, _ = WITH_TRANSFORM[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e-4)
    likelihood = Likelihood(model, is_causal=True)
    likelihood.transform = PLAIN
    assert not likelihood._is_head_last()


def test_a_model_that_does_something_else_to_its_logits_takes_the_plain_path():
    model, _ = tiny("llama", "causal")
    forward = model.forward

    def squared(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits**2
        return output

    model.forward = squared
    likelihood = Likelihood(model, is_causal=True)
    assert likelihood.head is None
    torch.testing.assert_close(likelihood(_batch(model)).nats_N, _plain_losses(model, is_causal=True))


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if task_of(name) in ("causal", "seq2seq")])
def test_every_architecture_goes_through_chunks(architecture):
    model, _ = tiny(architecture)
    is_causal = task_of(architecture) == "causal"
    if hasattr(model, "final_logits_bias"):  # BART's is zero until someone resizes or trains it elsewhere
        model.final_logits_bias.normal_()
    likelihood = Likelihood(model, is_causal=is_causal)
    assert likelihood.head is not None
    torch.testing.assert_close(
        likelihood(_batch(model)).nats_N, _plain_losses(model, is_causal=is_causal), rtol=1e-4, atol=1e-5
    )


def test_the_z_loss_reaches_the_weights_the_same_way_on_both_paths():
    model, _ = tiny("llama", "causal")
    gradients = []
    for has_head in (True, False):
        likelihood = Likelihood(model, is_causal=True)
        if not has_head:
            likelihood.head = None
        without, with_it = likelihood(_batch(model)).nats_N, likelihood(_batch(model), z_loss=0.1).nats_N
        torch.testing.assert_close(without, with_it)
        gradients.append(_gradients(model, with_it))
        assert not torch.allclose(gradients[-1][0], _gradients(model, without)[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
