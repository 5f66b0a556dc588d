"""Kept states: what is captured is what the blocks gave, and a replay gives what the whole model gives."""

from __future__ import annotations

import functools

import pytest
import torch

from tunesmith.kernels.activation_cache import KeptStates, capture, replaying
from tunesmith.models.anatomy import blocks, encoder_blocks
from tunesmith.models.tiny import ARCHITECTURES, task_of, tiny

IDS = torch.tensor([[5, 6, 7, 9, 1], [8, 4, 3, 1, 1]])


def _frozen(model) -> list[torch.nn.Module]:
    return encoder_blocks(model) or blocks(model)[:2]


def _run(model):
    given = {"decoder_input_ids": IDS} if encoder_blocks(model) else {}
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_replay_is_the_whole_model_bit_for_bit(architecture):
    model, _ = tiny(architecture, task_of(architecture))
    whole = _run(model).logits
    frozen, states = capture(_frozen(model), lambda: _run(model))
    ran: list[int] = []
    for block in frozen.blocks:
        inner = next(module for module in block.modules() if not list(module.children()))
        inner.register_forward_hook(lambda module, inputs, output: ran.append(1))
    with replaying(frozen, states):
        again = _run(model).logits
    assert torch.equal(again, whole)
    assert ran == []
    assert torch.equal(_run(model).logits, whole)
    assert ran


@torch.no_grad()
def test_what_is_captured_is_what_transformers_shows():
    model, _ = tiny("llama", "causal")
    shown = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True).hidden_states
    _, states = capture(blocks(model)[:2], lambda: _run(model))
    assert torch.equal(states, shown[2])


def test_nothing_above_the_frozen_blocks_runs_while_capturing():
    model, _ = tiny("llama", "causal")
    blocks(model)[2].register_forward_pre_hook(lambda module, inputs: pytest.fail("it ran"))
    capture(blocks(model)[:2], lambda: _run(model))


def test_a_replay_puts_back_a_forward_that_a_wrapper_has_set():
    model, _ = tiny("llama", "causal")
    frozen, states = capture(blocks(model)[:2], lambda: _run(model))
    wrapped = blocks(model)[0].forward = functools.partial(blocks(model)[0].forward)
    with replaying(frozen, states):
        assert blocks(model)[0].forward is not wrapped
    assert blocks(model)[0].forward is wrapped
    assert "forward" not in vars(blocks(model)[1])


def test_a_fault_in_a_replay_leaves_the_blocks_whole():
    model, _ = tiny("llama", "causal")
    frozen, states = capture(blocks(model)[:2], lambda: _run(model))
    with pytest.raises(KeyError), replaying(frozen, states):
        raise KeyError
    assert all("forward" not in vars(block) for block in frozen.blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_states_come_back_in_any_order(tmp_path, dtype, is_on_disk):
    rows = [torch.randn(length, 3).to(dtype) for length in (2, 1, 3)]
    kept = KeptStates([2, 1, 3], 3, dtype, tmp_path / "states" if is_on_disk else None)
    for number in (1, 2, 0):
        kept.put(number, rows[number])
    assert torch.equal(kept.packed([2, 0])[0], torch.cat([rows[2], rows[0]]))
    padded = kept.padded([1, 2])
    assert padded.shape == (2, 3, 3)
    assert torch.equal(padded[0], rows[1].expand(3, 3))  # filled up with its last state
    assert torch.equal(padded[1], rows[2])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError):
        KeptStates([1 << 44], 64, torch.float32, tmp_path / "states")
    assert list(tmp_path.iterdir()) == []
