"""Blocks computed again: the same gradients bit for bit, fewer states kept, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from made_training import make_learner, make_rows
from tunesmith.core.plugins import build
from tunesmith.kernels.recompute import Recomputation, kept_bytes
from tunesmith.models.anatomy import blocks, encoder_blocks

COMBINATIONS = [
    ("full", "llama", "clm"),
    ("full", "mixtral", "clm"),
    ("lora", "llama", "sft"),
    ("lora", "gpt2", "clm"),
    ("lora", "qwen2", "classification"),
    ("last_k", "llama", "clm"),
    ("prompt_tuning", "llama", "sft"),
    ("llama_adapter", "llama", "clm"),
    ("bottleneck", "bert", "classification"),
    ("full", "bert", "classification"),
    ("lora", "distilbert", "token_classification"),
    ("full", "modernbert", "mlm"),
    ("lora", "t5", "seq2seq"),
    ("full", "bart", "seq2seq"),
]
DROPOUTS = ("dropout", "attention_dropout", "attn_pdrop", "resid_pdrop", "hidden_dropout", "dropout_rate")


def _learner(method, architecture, objective):
    learner = make_learner(build("methods", method), architecture, build("objectives", objective))
    for module in learner.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    learner.method.set_training(learner.model)
    return learner


def _all_blocks(learner):
    return [*encoder_blocks(learner.model), *blocks(learner.model)]


def _gradients(learner):
    torch.manual_seed(3)
    rows = make_rows(learner.objective, _tokenizer(learner)).features
    loss, _ = learner.loss(learner.batch(list(rows)))
    loss.backward()
    found = {
        name: parameter.grad.clone() for name, parameter in learner.trainable().items() if parameter.grad is not None
    }
    learner.model.zero_grad(set_to_none=True)
    return loss.detach(), found


def _tokenizer(learner):
    from tunesmith.models.tiny import tiny_tokenizer

    return tiny_tokenizer(learner.objective.task)


@pytest.mark.parametrize(("method", "architecture", "objective"), COMBINATIONS)
def test_gradients_are_the_same_bit_for_bit(method, architecture, objective):
    learner = _learner(method, architecture, objective)
    loss, plain = _gradients(learner)
    assert plain and any(gradient.abs().max() > 0 for gradient in plain.values())
    own = _all_blocks(learner)
    again = Recomputation(own)
    for number in (1, len(own)):
        again.use(number)
        other, found = _gradients(learner)
        assert torch.equal(other, loss) and found.keys() == plain.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize(
    ("method", "architecture", "objective"), [one for one in COMBINATIONS if one[0] not in ("last_k", "llama_adapter")]
)
def test_only_the_states_that_go_in_are_kept(method, architecture, objective):
    learner = _learner(method, architecture, objective)
    rows = list(make_rows(learner.objective, _tokenizer(learner)).features)
    own = _all_blocks(learner)

    before = kept_bytes(learner.model, own, lambda: learner.loss(learner.batch(rows)))
    assert all(block > 3 * states for block, states in zip(before.blocks, before.inputs, strict=True) if block)
    assert max(before.blocks) > 0
    Recomputation(own, len(own))
    shared = max(before.inputs)  # masks, positions, the encoder's states
    assert _held(learner, rows) < before.rest + before.copies + sum(before.inputs) + 2 * shared


def _held(learner, rows):
    """Bytes of what autograd holds at the end of a forward pass, in or out of blocks."""
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in learner.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = learner.loss(learner.batch(rows))
    assert loss.requires_grad
    return sum(size for address, size in sizes.items() if address not in weights)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_what_is_counted_is_what_autograd_holds(architecture):
    objective = "classification" if architecture == "bert" else "clm"
    learner = _learner("full", architecture, objective)
    rows = list(make_rows(learner.objective, _tokenizer(learner)).features)
    own = _all_blocks(learner)
    found = kept_bytes(learner.model, own, lambda: learner.loss(learner.batch(rows)))
    assert found.rest + found.copies + sum(found.blocks) == pytest.approx(_held(learner, rows), rel=0.02)


def test_frozen_blocks_below_keep_nothing():
    learner = make_learner(build("methods", {"name": "last_k", "k": 1}), "llama", build("objectives", "clm"))
    rows = list(make_rows(learner.objective, _tokenizer(learner)).features)
    learner.method.set_training(learner.model)
    found = kept_bytes(learner.model, _all_blocks(learner), lambda: learner.loss(learner.batch(rows)))
    assert found.blocks[:2] == (0, 0) and found.inputs[:2] == (0, 0) and found.blocks[2] > 0


def test_blocks_are_left_as_they_were_found():
    learner = _learner("lora", "llama", "clm")
    own = _all_blocks(learner)

    def other(*args, **kwargs):
        return type(own[0]).forward(own[0], *args, **kwargs)

    own[0].forward = other
    again = Recomputation(own, 3)
    assert own[0].forward is not other and "forward" in vars(own[1])
    again.use(1)
    assert "forward" not in vars(own[1]) and own[0].forward is not other
    again.use(0)
    assert own[0].forward is other and again.number == 0


def test_answers_still_use_their_cache():
    from tunesmith.models.sample import Sampling, generate

    learner = _learner("full", "llama", "clm")
    settings = Sampling(max_new_tokens=8)
    before = generate(learner.model, _tokenizer(learner), [[5, 6, 7], [8, 9]], settings)
    Recomputation(_all_blocks(learner), 3)
    after = generate(learner.model, _tokenizer(learner), [[5, 6, 7], [8, 9]], settings)
    assert [one.token_ids for one in after] == [one.token_ids for one in before]


def test_compiled_blocks_are_recomputed_as_they_are():
    """Compiled inside, recomputed outside: nothing compiles anew, and gradients are the compiled block's."""
    from torch._dynamo.utils import counters

    from tunesmith.kernels.compiled_blocks import CompiledBlocks, calls_of

    learner = _learner("lora", "llama", "sft")
    rows = list(make_rows(learner.objective, _tokenizer(learner)).features)
    own = _all_blocks(learner)
    compiled = CompiledBlocks(own, backend="aot_eager")
    compiled.warm(calls_of(own, lambda: learner.loss(learner.batch(rows)), learner.autocast))
    compiled.use(True)
    counters.clear()
    _, kept = _gradients(learner)
    again = Recomputation(own, len(own))
    _, found = _gradients(learner)
    assert all(torch.equal(found[name], gradient) for name, gradient in kept.items())
    assert not counters["stats"]  # no graph was captured since it was warm
    again.use(0)
    compiled.take_off()
    assert not any("forward" in vars(block) for block in own)
