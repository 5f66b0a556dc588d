"""Every optimiser: it learns, its memory is what it says, its state comes back as it was."""

from __future__ import annotations

import pytest
import torch

from made_training import make_loop
from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build, names
from tunesmith.methods.full import Full
from tunesmith.methods.lora import LoRA
from tunesmith.models.anatomy import hidden_matrices
from tunesmith.models.tiny import tiny
from tunesmith.optimizers.adafactor import TINY
from tunesmith.optimizers.base import Trained
from tunesmith.recipe import TrainSettings
from tunesmith.training.optim import make_optimizer, optimizer_bytes, set_learning_rate

OPTIMIZERS = names("optimizers")


def _settings(name, **others):
    return TrainSettings(optimizer=name, **others)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_it_remembers_is_what_it_says(name):
    model = tiny("llama", hidden_size=64, intermediate_size=96)[0]
    tensors, hidden = dict(model.named_parameters()), hidden_matrices(model)

    def is_hidden(parameter):
        return id(parameter) in hidden

    optimizer = make_optimizer(tensors, _settings(name), is_hidden=is_hidden)
    set_learning_rate(optimizer, 1e-3)
    for parameter in tensors.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    assert all(isinstance(value, torch.Tensor) for value in state)  # a checkpoint keeps tensors
    assert sum(value.nbytes for value in state) == optimizer_bytes(tensors, _settings(name), is_hidden)


def test_memory_in_bytes_a_weight():
    weight = Trained(torch.nn.Parameter(torch.empty(4096, 1024, device="meta")), is_hidden=True)
    sizes = {name: build("optimizers", name).state_bytes([weight]) / weight.parameter.numel() for name in OPTIMIZERS}
    assert sizes == pytest.approx(
        {"adamw": 8, "adamw_8bit": 2.03, "adafactor": 4 / 1024 + 4 / 4096, "muon": 4}, rel=0.01
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns(name, tmp_path):
    loop = make_loop(tmp_path, Full(), "llama", "clm", optimizer=name, lr=2e-2, steps=12, tokens_per_step=64)
    before = loop.validate().loss
    loop.fit(lambda step: None)
    assert loop.validate().loss < 0.7 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    def loop(folder, **settings):
        wide = {"steps": 6, "lr": 5e-3, "tokens_per_step": 64, "schedule": "constant", "warmup": 0.0}
        made = make_loop(folder, Full(), "llama", "clm", optimizer=name, **{**wide, **settings})
        made.restore()
        made.fit(lambda step: None)
        return made

    whole = loop(tmp_path / "whole")
    loop(tmp_path / "halves", steps=3)
    resumed = loop(tmp_path / "halves")
    assert resumed.state.step == 6
    assert all(torch.equal(whole.tensors[key], value) for key, value in resumed.tensors.items())
    before, after = (one.optimizer.state_dict()["state"] for one in (whole, resumed))
    assert {n: entry.keys() for n, entry in before.items()} == {n: entry.keys() for n, entry in after.items()}
    for number, entry in before.items():
        for key, value in entry.items():
            other = after[number][key]
            assert value.dtype == other.dtype and torch.equal(value, other), (number, key)


def test_muon_makes_singular_values_alike_and_steps_as_large_as_adamw():
    """Newton-Schulz of five steps leaves them between 0.7 and 1.2; times 0.2 sqrt(max) (arXiv:2502.16982)."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(48, 96))
    optimizer = build("optimizers", "muon").make([Trained(weight, is_hidden=True)])
    set_learning_rate(optimizer, 1.0)
    weight.grad = torch.randn(48, 8) @ torch.randn(8, 96) + 0.1 * torch.randn(48, 96)
    optimizer.step()
    values = torch.linalg.svdvals(weight.data) / (0.2 * 96**0.5)
    assert values.min() > 0.6 and values.max() < 1.25
    assert weight.data.square().mean().sqrt().item() == pytest.approx(0.2 * (48 / 48) ** 0.5, rel=0.15)


def test_muon_leaves_embeddings_head_and_vectors_to_adamw():
    model = tiny("gpt2")[0]
    hidden = hidden_matrices(model)
    optimizer = make_optimizer(
        dict(model.named_parameters()), _settings("muon"), is_hidden=lambda parameter: id(parameter) in hidden
    )
    muon, adamw = optimizer.parts
    taken = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    assert taken == {id(p) for name, p in model.named_parameters() if ".h." in name and p.ndim == 2}
    assert any(p is model.transformer.wte.weight for group in adamw.param_groups for p in group["params"])


def test_muon_refuses_adapters_before_weights_load():
    muon = build("optimizers", "muon")
    with pytest.raises(UserError, match="lora trains an adapter beside them") as caught:
        muon.check_method("lora", trains_base_weights=LoRA.trains_base_weights)
    assert caught.value.code == "optimizer_unfit"
    with pytest.raises(UserError, match="no matrix of a block trains"):
        muon.make([Trained(torch.nn.Parameter(torch.zeros(3)))])


def test_adafactor_knows_small_gradients_by_rows_and_columns():
    """V = R C / mean R: for |g| of rank one the first step is the gradient's sign, however small (eq. 4)."""
    weight = torch.nn.Parameter(torch.ones(6, 5))
    optimizer = build("optimizers", "adafactor").make([Trained(weight)])
    set_learning_rate(optimizer, 1e-3)
    weight.grad = 1e-9 * torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 6)) * torch.ones(6, 5)
    weight.grad[:, 2] *= -1
    optimizer.step()
    torch.testing.assert_close(weight.data, 1.0 - 1e-3 * weight.grad.sign())


def test_adafactor_leaves_rows_without_gradients_alone():
    """An embedding's unused words: 0 / 0 must not arise, which a smaller TINY would give."""
    weight = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = build("optimizers", "adafactor").make([Trained(weight)])
    set_learning_rate(optimizer, 1e-3)
    weight.grad = torch.zeros(4, 3)
    weight.grad[0] = 1.0
    optimizer.step()
    assert torch.equal(weight.data[1:], torch.ones(3, 3)) and (weight.data[0] < 1).all()
    assert torch.tensor(TINY) ** 2 > 0


def test_adafactor_may_step_in_proportion_to_the_weights():
    weight = torch.nn.Parameter(torch.full((4, 4), 0.5))
    optimizer = build("optimizers", {"name": "adafactor", "scale_by_weights": True}).make([Trained(weight)])
    set_learning_rate(optimizer, 1e-2)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((4, 4), 0.5 - 0.5 * 1e-2))
