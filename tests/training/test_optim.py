import math

import pytest
import torch

from tunesmith.recipe import TrainSettings
from tunesmith.training.optim import learning_rate_at, make_optimizer, scale_and_clip, set_learning_rate


def _rates(num_steps=100, **settings):
    return [learning_rate_at(step, num_steps, 1.0, TrainSettings(**settings)) for step in range(num_steps)]


def test_the_rate_rises_linearly_and_reaches_its_peak():
    rates = _rates(warmup=0.1)
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0


def test_cosine_is_half_way_down_in_the_middle():
    rates = _rates(num_steps=200, warmup=0.0, schedule="cosine")
    assert rates[100] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_linear_falls_to_the_final_share():
    rates = _rates(warmup=0.0, schedule="linear", final_lr=0.2)
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.6)
    assert rates[-1] == pytest.approx(0.208)


def test_constant_stays():
    assert set(_rates(warmup=0.0, schedule="constant")) == {1.0}


def test_only_matrices_decay_and_only_what_trains_is_held():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    groups = make_optimizer(_trainable(model), TrainSettings(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 1), (0.0, 4)]


def test_a_step_is_adamws():
    """One step from zero moments: theta (1 - lr decay) - lr g / (|g| + eps), arXiv:1711.05101 algorithm 2."""
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(1.0)
    optimizer = make_optimizer(_trainable(model), TrainSettings(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    model.weight.grad = torch.tensor([[2.0, -3.0]])
    optimizer.step()
    torch.testing.assert_close(model.weight.data, torch.tensor([[0.95 - 0.1, 0.95 + 0.1]]))


def test_a_factor_multiplies_the_rate_of_its_own_weights():
    model = torch.nn.Linear(2, 1)
    optimizer = make_optimizer(
        _trainable(model), TrainSettings(weight_decay=0.0), lambda name: 4.0 if name == "bias" else 1.0
    )
    set_learning_rate(optimizer, 0.1)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize(("max_norm", "left"), [(0.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (9.0, [3.0, 4.0])])
def test_gradients_are_divided_by_their_weight_and_then_clipped(max_norm, left):
    weight, idle = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([6.0, 8.0])
    assert scale_and_clip([weight, idle], 2.0, max_norm).item() == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor(left))


def _trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
