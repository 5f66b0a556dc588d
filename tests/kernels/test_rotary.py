"""Rotary positions: transformers' values and gradients, and only functions that prove to be the same."""

from __future__ import annotations

import pytest
import torch
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama

from tunesmith.kernels.instance_forward import take_off
from tunesmith.kernels.rotary import _is_the_same, fuse_rotary, reference_rotary, rotary
from tunesmith.models.tiny import tiny


def _states(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 6, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
    return [x, *(torch.randn(2, 5, 6, generator=generator, dtype=dtype) for _ in range(2))]


def test_gradients_are_right_numerically():
    x, cos, sin = _states()
    assert torch.autograd.gradcheck(lambda x: rotary(x, cos, sin), (x,))


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_values_gradients_and_dtypes_are_the_references(dtypes):
    states, positions = (getattr(torch, name) for name in dtypes)
    results = []
    for function in (rotary, reference_rotary):
        x, cos, sin = _states(torch.float32)
        x = x.detach().to(states).requires_grad_()
        output = function(x, cos.to(positions), sin.to(positions))
        (output.float() * torch.linspace(-1, 1, 180).view(2, 3, 5, 6)).sum().backward()
        results.append((output.detach(), x.grad))
    tolerance = 1e-5 if states == torch.float32 else 5e-2
    for mine, reference in zip(*results, strict=True):
        assert mine.dtype == reference.dtype
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance)


def test_a_quarter_turn_by_hand():
    """cos 0 and sin 1: [a, b] becomes [-b, a]."""
    mine = rotary(torch.tensor([[[[1.0, 2.0]]]]), torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
    assert mine.flatten().tolist() == [-2.0, 1.0]


@pytest.mark.parametrize(
    "architecture, number", [("llama", 3), ("qwen3", 3), ("gemma", 3), ("mixtral", 3), ("gpt2", 0), ("bert", 0)]
)
def test_a_models_loss_and_gradients_stay(architecture, number):
    model, _ = tiny(architecture, "causal" if architecture != "bert" else None)
    ids = torch.arange(12).view(2, 6) + 5
    results = []
    for is_fused in (False, True):
        if is_fused:
            assert fuse_rotary(model) == number
        model.zero_grad()
        model(input_ids=ids).logits.sin().sum().backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    assert take_off(model) == number


def test_heads_that_are_turned_in_part_keep_their_own_function():
    model, _ = tiny("gpt_neox")
    ids = torch.arange(6)[None] + 5
    assert model.config.rope_parameters["partial_rotary_factor"] < 1
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        fuse_rotary(model)
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_another_order_of_the_pairs_is_noticed():
    assert _is_the_same(modeling_llama.apply_rotary_pos_emb)
    assert not _is_the_same(modeling_cohere.apply_rotary_pos_emb)
