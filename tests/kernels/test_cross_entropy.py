import pytest
import torch

from tunesmith.kernels import cross_entropy
from tunesmith.kernels.cross_entropy import chunked_cross_entropy, reference_cross_entropy


def _inputs(has_bias: bool, trains_head: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(31, 8, generator=generator).to(dtype).requires_grad_(trains_head)
    bias = torch.randn(31, generator=generator).to(dtype).requires_grad_(trains_head) if has_bias else None
    labels = torch.randint(31, (23,), generator=generator)
    return hidden, weight, labels, bias


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("chunk_positions", [1, 5, 100])
def test_losses_and_gradients_equal_the_reference(has_bias, trains_head, chunk_positions, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_positions * 4 * 31)
    upstream = torch.linspace(-1, 2, 23)
    gradients = []
    losses = []
    for function in (chunked_cross_entropy, reference_cross_entropy):
        hidden, weight, labels, bias = _inputs(has_bias, trains_head)
        loss = function(hidden, weight, labels, bias)
        (loss * upstream).sum().backward()
        losses.append(loss.detach())
        gradients.append([tensor.grad for tensor in (hidden, weight, bias) if tensor is not None])
    torch.testing.assert_close(*losses)
    for mine, reference in zip(*gradients, strict=True):
        assert (mine is None) == (reference is None)
        if mine is not None:
            torch.testing.assert_close(mine, reference)


def test_gradients_are_right_numerically():
    hidden, weight, labels, bias = _inputs(True, True)
    hidden, weight, bias = (tensor.detach()[:7].double().requires_grad_() for tensor in (hidden, weight, bias))
    labels = labels[:7] % 7

    def plain(hidden, weight, bias):
        return reference_cross_entropy(hidden, weight, labels, bias)

    mine = torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels, bias).sum(), (hidden, weight, bias))
    exact = torch.autograd.grad(plain(hidden, weight, bias).sum(), (hidden, weight, bias))
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_uniform_head_costs_the_logarithm_of_the_vocabulary():
    losses = chunked_cross_entropy(torch.ones(3, 4), torch.zeros(16, 4), torch.tensor([0, 7, 15]))
    torch.testing.assert_close(losses, torch.full((3,), torch.tensor(16.0).log().item()))


def test_the_head_trains_through_a_mix_of_precisions():
    hidden, weight, labels, _ = _inputs(False, True)
    low = hidden.detach().bfloat16().requires_grad_()
    chunked_cross_entropy(low, weight, labels).sum().backward()
    reference_cross_entropy(hidden, weight.detach(), labels).sum().backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(low.grad.float(), hidden.grad, rtol=0.1, atol=0.05)


def test_nothing_is_computed_for_a_hidden_state_that_needs_no_gradient():
    hidden, weight, labels, _ = _inputs(False, False)
    losses = chunked_cross_entropy(hidden.detach(), weight, labels)
    assert not losses.requires_grad
