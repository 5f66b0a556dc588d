"""Blocks compiled once: the same numbers, one compilation for all lengths, and nothing where no gradient is made."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from made_training import make_learner, make_rows
from tunesmith.core.plugins import build
from tunesmith.kernels.activation_cache import FrozenBlocks, replaying
from tunesmith.kernels.compiled_blocks import (
    CannotCompileError,
    CompiledBlocks,
    calls_of,
    kind_of,
    why_not_compiled,
)
from tunesmith.kernels.recompute import Recomputation
from tunesmith.models.anatomy import blocks, encoder_blocks
from tunesmith.models.tiny import tiny


class _Trained:
    """A tiny learner with its blocks compiled by PyTorch's tracing alone, which needs no C++ compiler."""

    def __init__(self, architecture: str, objective: str, method: str, dropout: float = 0.0) -> None:
        built = build("objectives", objective)
        self.learner = make_learner(build("methods", method), architecture, built)
        self.model = self.learner.model
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        self.rows = make_rows(built, tiny(architecture, built.task)[1]).features
        self.learner.method.set_training(self.model)
        self.blocks = [*encoder_blocks(self.model), *blocks(self.model)]
        self.compiled = CompiledBlocks(self.blocks, backend="aot_eager")

    def warmed(self) -> _Trained:
        before = _num_graphs()
        self.compiled.warm(calls_of(self.blocks, lambda: self.loss((0, 1, 2))))
        assert _num_graphs() == before + 1
        return self

    def loss(self, picked):
        torch.manual_seed(3)
        return self.learner.loss(self.learner.batch([self.rows[row] for row in picked]))[0]

    def gradients(self, picked, is_used):
        self.compiled.use(is_used)
        self.model.zero_grad()
        loss = self.loss(picked)
        loss.backward()
        found = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
        return loss.detach(), found


def _num_graphs() -> int:
    """How many there were in this process."""
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture(scope="module")
def warmed():
    """A decoder with adapters, traced once for all tests, which takes seconds."""
    return _Trained("llama", "sft", "lora").warmed()


@pytest.fixture
def trained(warmed):
    before = _num_graphs()
    yield warmed
    warmed.compiled.use(False)
    assert _num_graphs() == before


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_compiled_blocks_give_the_same_and_other_lengths_compile_nothing(kind, warmed):
    trained = warmed if kind == "decoder" else _Trained("bert", "classification", "full", dropout=0.2).warmed()
    before = _num_graphs()
    for picked in ((0, 1, 2), (3, 1), (2, 0, 0, 1, 3)):
        calls = calls_of(trained.blocks, lambda picked=picked: trained.loss(picked))
        assert all(trained.compiled.fits(call) for call in calls)
        plain, mine = (trained.gradients(picked, is_used) for is_used in (False, True))
        torch.testing.assert_close(mine, plain)
    assert _num_graphs() == before


def test_blocks_computed_again_in_the_backward_pass_may_be_compiled(trained):
    plain = trained.gradients((0, 1, 2), False)
    again = Recomputation(trained.blocks, 2)
    torch.testing.assert_close(trained.gradients((0, 1, 2), True), plain)
    again.use(0)
    torch.testing.assert_close(trained.gradients((0, 1, 2), True), plain)


def test_frozen_blocks_are_replayed_over_compiled_ones(trained):
    trained.compiled.use(True)
    kept = torch.randn(1, sum(row.num_tokens for row in trained.rows[:2]), 32)
    before = [vars(block)["forward"] for block in trained.blocks]
    with replaying(FrozenBlocks(tuple(trained.blocks[:2])), kept):
        replayed = trained.loss((0, 1))
    assert [vars(block)["forward"] for block in trained.blocks] == before
    trained.compiled.use(False)
    with replaying(FrozenBlocks(tuple(trained.blocks[:2])), kept):
        torch.testing.assert_close(replayed, trained.loss((0, 1)))


def test_passes_without_gradients_and_without_the_adapter_take_the_blocks_as_they_are(trained):
    plain = [_answers(trained, is_disabled) for is_disabled in (False, True)]
    trained.compiled.use(True)
    for block in trained.blocks:
        block.mlp.register_forward_hook(lambda *_: seen.append(torch.compiler.is_compiling()))
    seen: list[bool] = []
    mine = [_answers(trained, is_disabled) for is_disabled in (False, True)]
    torch.testing.assert_close(mine, plain, rtol=0, atol=0)
    assert seen and not any(seen)


def _answers(trained, is_disabled):
    with torch.no_grad():
        if not is_disabled:
            return trained.loss((0, 1))
        with trained.learner.method.disabled(trained.model):
            return trained.loss((0, 1))


def test_what_would_compile_anew_runs_as_it_is(trained):
    block = trained.blocks[0]
    trained.compiled.use(True)
    call = calls_of(trained.blocks, lambda: trained.loss((0,)))[0]
    angles = tuple(part[:, :4].double() for part in call.kwargs["position_embeddings"])
    trained.model.double()  # weights of another type than what was compiled
    states = torch.randn(1, 4, 32, dtype=torch.float64, requires_grad=True)
    output = block(states, **{**call.kwargs, "position_embeddings": angles, "attention_mask": None})
    trained.model.float()
    assert output.dtype == torch.float64


def test_blocks_are_what_they_were_once_taken_off():
    trained = _Trained("llama", "sft", "lora")
    assert all("forward" in vars(block) for block in trained.blocks)
    trained.compiled.use(True)
    trained.compiled.take_off()
    assert not any("forward" in vars(block) for block in trained.blocks)


def test_a_block_that_cannot_be_traced_says_so():
    trained = _Trained("llama", "sft", "lora")
    for block in trained.blocks:
        block.input_layernorm.register_forward_hook(lambda module, args, output: print(output.detach().sum().item()))
    with pytest.raises(CannotCompileError, match=r"^torch.compile: .+"):
        trained.warmed()


def test_a_fault_of_the_model_itself_is_not_taken_for_one_of_the_compiler():
    assert why_not_compiled(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) == ""
    assert why_not_compiled(torch._dynamo.exc.Unsupported("Graph break\nmore")) == "torch.compile: Graph break"
    assert why_not_compiled(ImportError("x.so: file too short")) == "torch.compile: x.so: file too short"


def test_blocks_of_other_settings_are_of_other_kinds():
    model, _ = tiny("llama", "causal")
    first, second, third = model.model.layers[:3]
    assert kind_of(first) == kind_of(second)
    third.self_attn.sliding_window = 8
    second.mlp.up_proj.weight.requires_grad_(False)
    assert len({kind_of(block) for block in (first, second, third)}) == 3
