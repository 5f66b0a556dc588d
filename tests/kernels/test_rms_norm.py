"""RMS norms: the reference's values and gradients in every precision, and only norms that prove to be one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tunesmith.kernels.rms_norm import fuse_rms_norms, reference_rms_norm, rms_norm
from tunesmith.models.tiny import tiny

NORMS = (LlamaRMSNorm, GemmaRMSNorm, Olmo2RMSNorm, T5LayerNorm)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradients_are_right_numerically(offset):
    x = torch.randn(2, 3, 5, dtype=torch.float64).requires_grad_()
    weight = torch.randn(5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 0.1, offset), (x, weight))


def test_a_norm_by_hand():
    """3 and 4: the mean square is 12.5."""
    mine = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(mine, torch.tensor([3.0, 8.0]) / 12.5**0.5)
    torch.testing.assert_close(reference_rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0), mine)


def test_a_norm_that_lowers_the_precision_of_fp32_states_is_left_alone():
    assert fuse_rms_norms(T5LayerNorm(8).bfloat16()) == 0


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("autocast", [False, True])
def test_every_module_gives_its_own_values_and_gradients(kind, dtypes, autocast):
    states, weights = (getattr(torch, name) for name in dtypes)
    if kind is T5LayerNorm and weights == torch.bfloat16:
        pytest.skip("left alone, see above")
    torch.manual_seed(0)
    module = kind(8)
    with torch.no_grad():
        module.weight.add_(torch.randn(8))
    module.to(weights)
    results = []
    for is_fused in (False, True):
        if is_fused:
            assert fuse_rms_norms(module) == 1
        module.zero_grad()
        x = torch.linspace(-2, 3, 48).view(2, 3, 8).to(states).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = module(x)
        output.float().sin().sum().backward()
        results.append((output.detach(), x.grad, module.weight.grad))
    tolerance = 1e-5 if states == torch.float32 else 3e-2
    for plain, fused in zip(*results, strict=True):
        assert plain.dtype == fused.dtype
        torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance)


def test_in_bf16_it_is_nearer_to_the_truth_than_the_module():
    torch.manual_seed(0)
    module = LlamaRMSNorm(64)
    with torch.no_grad():
        module.weight.copy_(torch.rand(64) + 0.5)
    module.bfloat16()
    x = torch.randn(100, 64).bfloat16()
    truth = reference_rms_norm(x, module.weight, module.variance_epsilon)
    plain = (module(x) - truth).abs().mean()
    fuse_rms_norms(module)
    assert (module(x) - truth).abs().mean() < plain


class _Other(nn.Module):
    def __init__(self, twist: str) -> None:
        super().__init__()
        self.weight, self.eps, self.twist = nn.Parameter(torch.rand(8)), 1e-6, twist

    def forward(self, x):
        if self.twist == "takes the mean off":
            x = x - x.mean(-1, keepdim=True)
        square = x.pow(2).sum(-1, keepdim=True) if self.twist == "sums" else x.pow(2).mean(-1, keepdim=True)
        if self.twist == "another epsilon":
            square = square + 1e-5
        return self.weight * x * torch.rsqrt(square + self.eps)


def test_only_what_computes_an_rms_norm_is_replaced():
    assert fuse_rms_norms(_Other("")) == 1
    for twist in ("takes the mean off", "sums", "another epsilon"):
        assert fuse_rms_norms(_Other(twist)) == 0
    for module in (nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.Linear(8, 8), nn.Embedding(8, 8)):
        assert fuse_rms_norms(module) == 0


@pytest.mark.parametrize("architecture, number", [("llama", 7), ("qwen3", 13), ("gemma", 7), ("t5", 15), ("bert", 0)])
def test_every_rms_norm_of_a_model_is_found(architecture, number):
    assert fuse_rms_norms(tiny(architecture)[0]) == number


def test_only_the_input_is_kept():
    x, weight = torch.randn(50, 8, requires_grad=True), torch.ones(8)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
        rms_norm(x, weight, 1e-6)
    assert sorted(sizes) == [8, 50, 400]


def test_a_compiler_follows_it():
    module, x = LlamaRMSNorm(8), torch.randn(3, 8)
    fuse_rms_norms(module)
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)
