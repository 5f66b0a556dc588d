"""Gated MLPs: the reference's values and gradients, and only what proves to be one is replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tunesmith.kernels.fused_lora import Terms
from tunesmith.kernels.gated_mlp import KINDS, fuse_gated_mlps, gated_mlp, reference_gated_mlp
from tunesmith.kernels.instance_forward import plain_forwards, take_off
from tunesmith.models.tiny import tiny

WIDTH, INNER, RANK = 4, 6, 2


def _terms(outputs: int, inputs: int, *, has_lora: bool, trains: bool, seed: int) -> Terms:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, requires_grad: bool) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)

    weight, bias = draw(outputs, inputs, requires_grad=trains), draw(outputs, requires_grad=trains)
    if not has_lora:
        return Terms(weight, bias)
    return Terms(weight, bias, draw(RANK, inputs, requires_grad=True), draw(outputs, RANK, requires_grad=True), 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_values_and_gradients_are_the_references(kind, has_lora, trains):
    layers = [
        _terms(*size, has_lora=has_lora, trains=trains, seed=seed)
        for seed, size in enumerate([(INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)])
    ]
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).requires_grad_()
    leaves = [x, *(one for layer in layers for one in layer[:4] if one is not None and one.requires_grad)]
    outputs = [function(x, *layers, kind) for function in (gated_mlp, reference_gated_mlp)]
    torch.testing.assert_close(*outputs)
    mine, reference = (torch.autograd.grad(output.sin().sum(), leaves) for output in outputs)
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_right_numerically():
    layers = [_terms(*size, has_lora=True, trains=True, seed=1) for size in ((3, 2), (3, 2), (2, 3))]
    x = torch.randn(2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *flat: gated_mlp(x, *layers, "silu"), (x, *layers[0][:4]))


def test_of_the_inner_states_it_keeps_gate_and_up_alone():
    layers = [_terms(*size, has_lora=True, trains=False, seed=1) for size in ((64, 2), (64, 2), (2, 64))]
    x = torch.randn(50, 2, dtype=torch.float64).requires_grad_()
    kept = []
    for function in (gated_mlp, reference_gated_mlp):
        sizes: dict[int, int] = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(x, *layers, "silu")
        kept.append(sum(size for size in sizes.values() if size == 50 * 64))
    assert kept == [2 * 50 * 64, 4 * 50 * 64]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
@pytest.mark.parametrize("adapted", [False, True])
def test_every_gated_mlp_is_found_and_gives_the_modules_own_gradients(architecture, adapted):
    model, _ = tiny(architecture, "causal")
    torch.manual_seed(0)
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ids = torch.arange(12).view(2, 6) + 5
    results = []
    for is_fused in (False, True):
        if is_fused:
            assert fuse_gated_mlps(model) == model.config.num_hidden_layers
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "phi", "bert", "t5", "bart", "modernbert", "mixtral"])
def test_other_mlps_are_left_alone(architecture):
    assert fuse_gated_mlps(tiny(architecture)[0]) == 0


class _Mlp(nn.Module):
    """Looks like a gated MLP; `twist` makes it another thing."""

    def __init__(self, twist: str = "") -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.act = nn.ReLU() if twist == "another activation" else nn.SiLU()
        self.twist = twist

    def forward(self, x):
        inner = self.act(self.gate(x)) * self.up(x)
        if self.twist == "adds its input":
            return self.down(inner) + x
        return self.down(inner * 2 if self.twist == "doubles" else inner)


@pytest.mark.parametrize("twist", ["adds its input", "doubles", "another activation"])
def test_what_looks_like_one_and_computes_something_else_is_left_alone(twist):
    assert fuse_gated_mlps(_Mlp(twist)) == 0


def test_gate_and_up_are_told_apart_whatever_their_order_and_names():
    module = _Mlp()
    x = torch.randn(3, 4)
    expected = module(x)
    assert fuse_gated_mlps(module) == 1
    assert module.gated_mlp[:3] == ("gate", "up", "down")
    torch.testing.assert_close(module(x), expected)


def test_a_module_that_someone_listens_to_is_left_alone():
    module = _Mlp()
    module.gate.register_forward_hook(lambda *given: None)
    assert fuse_gated_mlps(module) == 0


def test_under_autocast_it_computes_in_bf16_and_trains_fp32_weights():
    module, x = _Mlp(), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(x)
        fuse_gated_mlps(module)
        mine = module(x)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, expected, rtol=0.05, atol=0.02)
    mine.float().sum().backward()
    assert module.gate.weight.grad.dtype == torch.float32


def test_the_plain_forwards_come_back_for_a_while_and_for_good():
    model, _ = tiny("llama", "causal")
    number = fuse_gated_mlps(model)
    mlp = model.model.layers[0].mlp
    with plain_forwards(model):
        assert "forward" not in vars(mlp)
    assert "forward" in vars(mlp)
    assert take_off(model) == number
    assert "forward" not in vars(mlp)


def test_a_compiler_follows_it():
    module, x = _Mlp(), torch.randn(3, 4)
    fuse_gated_mlps(module)
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)


def test_a_model_without_values_is_fused_where_one_with_values_would_be():
    for architecture in ("llama", "gpt2"):
        model, _ = tiny(architecture, "causal")
        empty = copy.deepcopy(model).to("meta")
        assert fuse_gated_mlps(empty) == fuse_gated_mlps(model) == (3 if architecture == "llama" else 0)
        assert all(one.is_meta for one in empty.parameters())
