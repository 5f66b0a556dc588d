"""Memory that runs out inside the optimiser's step: done whole, tried again, or refused."""

from __future__ import annotations

import copy

import pytest
import torch

from made_training import make_loop
from tunesmith.core.errors import UserError
from tunesmith.core.events import Warning
from tunesmith.core.plugins import names
from tunesmith.kernels import blockwise_adam
from tunesmith.methods.full import Full
from tunesmith.methods.lora import LoRA
from tunesmith.models.anatomy import hidden_matrices
from tunesmith.models.tiny import tiny
from tunesmith.recipe import TrainSettings
from tunesmith.training.optim import make_optimizer, set_learning_rate
from tunesmith.training.optimizer_step import no_room_to_step, take_step


def _optimizer(name, model):
    hidden = hidden_matrices(model)
    tensors = dict(model.named_parameters())
    optimizer = make_optimizer(tensors, TrainSettings(optimizer=name), is_hidden=lambda one: id(one) in hidden)
    set_learning_rate(optimizer, 1e-2)
    return optimizer


def _give_gradients(model, seed, without=""):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        gradient = torch.randn(weight.shape, generator=generator)
        weight.grad = None if without and without in name else gradient


def _refusal(is_half_done):
    return UserError("halfway" if is_half_done else "twice", code="out_of_memory")


class Allocation:
    """Stands in for torch.zeros_like, with which optimisers make what they remember: fails at some calls."""

    def __init__(self, monkeypatch, *fatal):
        self.fatal, self.calls, self.honest = fatal, 0, torch.zeros_like
        monkeypatch.setattr(torch, "zeros_like", self)

    def __call__(self, *args, **settings):
        self.calls += 1
        if self.calls in self.fatal:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.honest(*args, **settings)


def _same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", names("optimizers"))
def test_its_numbers_are_those_of_one_call_for_all(name):
    """Also where a tensor gets its first gradient later, as an expert that no row has met before."""
    ours = tiny("llama", hidden_size=64, intermediate_size=96)[0]
    theirs = copy.deepcopy(ours)
    optimizers = _optimizer(name, ours), _optimizer(name, theirs)
    for step, without in enumerate(("layers.1.mlp", "layers.0", "")):
        for model in (ours, theirs):
            _give_gradients(model, step, without)
        assert not take_step(optimizers[0], _refusal)
        optimizers[1].step()
        assert _same(ours.state_dict(), theirs.state_dict())
    states = [one.state_dict()["state"] for one in optimizers]
    assert states[0].keys() == states[1].keys()
    assert all(_same(entry, states[1][number]) for number, entry in states[0].items())


@pytest.mark.parametrize("fatal", [1, 2, 3, 20])
def test_it_is_tried_again_with_nothing_half_made(fatal, monkeypatch):
    ours = tiny("llama")[0]
    theirs = copy.deepcopy(ours)
    optimizers = _optimizer("adamw", ours), _optimizer("adamw", theirs)
    for model in (ours, theirs):
        _give_gradients(model, 1)
    optimizers[1].step()
    with monkeypatch.context() as patch:
        allocation = Allocation(patch, fatal)
        assert take_step(optimizers[0], _refusal)
    assert allocation.calls > fatal
    assert _same(ours.state_dict(), theirs.state_dict())
    assert all(weight.grad is not None for weight in ours.parameters())


def test_twice_is_refused_and_what_was_made_is_whole(monkeypatch):
    model = tiny("llama")[0]
    optimizer = _optimizer("adamw", model)
    _give_gradients(model, 1)
    before = copy.deepcopy(model.state_dict())
    with monkeypatch.context() as patch, pytest.raises(UserError, match="twice"):
        Allocation(patch, 2, 4)  # the second moment of the first tensor, both times
        take_step(optimizer, _refusal)
    assert _same(model.state_dict(), before)
    assert not optimizer.state
    assert not take_step(optimizer, _refusal)


def test_a_step_that_broke_off_halfway_is_not_done_twice(monkeypatch):
    model = tiny("llama", hidden_size=64, intermediate_size=96)[0]
    optimizer = _optimizer("adamw_8bit", model)
    _give_gradients(model, 1)
    take_step(optimizer, _refusal)

    def no_room(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(blockwise_adam, "unsigned_bytes", no_room)
    with pytest.raises(UserError, match="halfway"):
        take_step(optimizer, _refusal)


def test_other_faults_are_not_taken_for_it():
    model = tiny("llama")[0]
    optimizer = _optimizer("adamw", model)
    _give_gradients(model, 1)
    optimizer.param_groups[0]["betas"] = ("no", "numbers")
    with pytest.raises(TypeError):
        take_step(optimizer, _refusal)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_run_goes_on_and_says_so(tmp_path, monkeypatch):
    runs, events = {}, []
    for name in ("roomy", "tight"):
        torch.manual_seed(1)
        loop = runs[name] = make_loop(tmp_path / name, Full(), "llama", "clm")
        loop.room.emit = events.append
        with monkeypatch.context() as patch:
            if name == "tight":
                Allocation(patch, 8)
            loop.fit(lambda step: None)
    assert all(torch.equal(one, runs["tight"].tensors[key]) for key, one in runs["roomy"].tensors.items())
    assert runs["tight"].state.times_out_of_memory == 1
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert warning.message.startswith("memory ran out in the optimiser's step, which was tried again")


def test_a_run_without_room_ends_with_the_optimisers_that_take_less(tmp_path, monkeypatch):
    loop = make_loop(tmp_path, Full(), "llama", "clm")
    Allocation(monkeypatch, *range(1, 99))
    with pytest.raises(UserError) as caught:
        loop.fit(lambda step: None)
    assert (caught.value.code, caught.value.where) == ("out_of_memory", "train.optimizer")
    assert caught.value.message == "memory ran out in the optimiser's step, twice."
    assert caught.value.remedy.startswith("Set train.optimizer=adafactor (")
    assert " or muon (" in caught.value.remedy
    assert "instead of adamw (" in caught.value.remedy and "method=lora" in caught.value.remedy


def test_an_adapter_is_not_told_to_take_muon():
    model = tiny("llama", hidden_size=64, intermediate_size=96)[0]
    tensors = dict(model.named_parameters())
    fault = no_room_to_step(TrainSettings(), LoRA(), tensors, hidden_matrices(model), is_half_done=True)
    assert "muon" not in fault.remedy and "adamw_8bit" in fault.remedy
    assert fault.message.endswith("changed in part, so the run ends, and its last checkpoint stands.")
    lightest = TrainSettings(optimizer="adafactor")
    fault = no_room_to_step(lightest, LoRA(), tensors, hidden_matrices(model), is_half_done=False)
    assert fault.remedy == "Close other programs."
