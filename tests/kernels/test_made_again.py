"""What can be made again is not kept, and comes out to the bit."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tunesmith.core.plugins import build
from tunesmith.kernels.fuse import fuse
from tunesmith.kernels.fused_lora import Terms, linears
from tunesmith.kernels.gated_mlp import gated_mlp
from tunesmith.kernels.made_again import how_made, note_how_made
from tunesmith.kernels.rms_norm import rms_norm
from tunesmith.models.probe import probe
from tunesmith.models.tiny import tiny


def _states(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


GATED = [Terms(_states(*shape)) for shape in ((16, 8), (16, 8), (8, 16))]
ADAPTED = Terms(_states(4, 8), None, _states(2, 8).requires_grad_(), _states(4, 2), 2.0)
READERS = {"linears": lambda x: linears(x, [ADAPTED])[0], "gated_mlp": lambda x: gated_mlp(x, *GATED, "silu")}


@pytest.mark.parametrize("reader", READERS)
def test_a_norm_behind_a_reader_is_made_again_to_the_bit(reader):
    results = []
    for is_noted in (True, False):
        x, weight = _states(1, 5, 8).requires_grad_(), _states(8).requires_grad_()
        normal = rms_norm(x, weight, 1e-5)
        kept = weakref.ref(normal.untyped_storage())
        output = READERS[reader](normal if is_noted else normal.view_as(normal))  # a view has no note
        del normal
        gc.collect()
        assert (kept() is None) == is_noted
        results.append(torch.autograd.grad(output.sin().sum(), (x, weight)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_an_input_that_was_changed_meanwhile_is_a_fault():
    leaf = _states(1, 5, 8).requires_grad_()
    x = leaf * 1
    output = READERS["gated_mlp"](rms_norm(x, _states(8), 1e-5))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_tensor_that_was_changed_since_it_was_made_is_kept():
    x = _states(1, 5, 8).requires_grad_()
    normal = rms_norm(x, _states(8), 1e-5)
    normal.mul_(2)
    assert how_made(normal).inputs == (normal,)


def test_nothing_is_noted_without_gradients_and_another_tensor_is_kept():
    x = _states(3, 8)
    with torch.no_grad():
        normal = rms_norm(x, _states(8), 1e-5)
    how = how_made(normal)
    assert how.inputs == (normal,) and how.make(*how.inputs) is normal
    note_how_made(normal, torch.neg, x)
    assert torch.equal(how_made(normal).make(*how_made(normal).inputs), -x)


def test_a_lora_model_keeps_no_norm_and_learns_the_same(monkeypatch):
    alive, gradients = _norms_alive_and_gradients()
    assert alive == [False] * len(alive)
    monkeypatch.setattr("tunesmith.kernels.rms_norm.note_how_made", lambda *arguments: None)
    alive, others = _norms_alive_and_gradients()
    assert alive == [True] * len(alive)
    for one, other in zip(gradients, others, strict=True):
        assert torch.equal(one, other)


def _norms_alive_and_gradients() -> tuple[list[bool], list[torch.Tensor]]:
    """Whether each block's norms are still there after a forward pass, and what is learnt."""
    torch.manual_seed(0)
    model = build("methods", "lora").attach(tiny("llama", "causal")[0]).train()
    fuse(model, lambda: probe(model))
    made: list[weakref.ref] = []
    for name, module in model.named_modules():
        if name.endswith("layernorm"):
            module.register_forward_hook(lambda module, _, output: made.append(weakref.ref(output.untyped_storage())))
    ids = torch.arange(3, 43)[None]
    loss = model(input_ids=ids, labels=ids).loss
    alive = [one() is not None for one in made]
    assert len(alive) == 2 * model.config.num_hidden_layers
    loss.backward()
    return alive, [one.grad for one in model.parameters() if one.grad is not None]
