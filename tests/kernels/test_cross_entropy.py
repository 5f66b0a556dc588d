import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.kernels import cross_entropy
from tunesmith.kernels.cross_entropy import LogitTransform, chunked_cross_entropy, reference_cross_entropy


def _inputs(has_bias: bool, trains_head: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(31, 8, generator=generator).to(dtype).requires_grad_(trains_head)
    bias = torch.randn(31, generator=generator).to(dtype).requires_grad_(trains_head) if has_bias else None
    labels = torch.randint(31, (23,), generator=generator)
    return hidden, weight, labels, bias


def _cut(monkeypatch, chunk_positions: int, slice_positions: int = 2) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_positions * 4 * 31)
    monkeypatch.setattr(cross_entropy, "SLICE_BYTES", slice_positions * 4 * 31)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("chunk_positions", [1, 5, 100])
def test_losses_and_gradients_equal_the_reference(has_bias, trains_head, chunk_positions, monkeypatch):
    _cut(monkeypatch, chunk_positions)
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


@pytest.mark.parametrize(
    "transform", [LogitTransform(scale=0.3), LogitTransform(softcap=2.0), LogitTransform(2.0, 3.0)]
)
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("weighs", ["as a sum", "a multiple of the sum", "each position differently"])
def test_transforms_and_z_loss_have_the_references_gradients(transform, z_loss, trains_head, weighs, monkeypatch):
    _cut(monkeypatch, 7)
    factor = torch.linspace(-1, 2, 23) if "each" in weighs else 1.0
    gradients = []
    for function in (chunked_cross_entropy, reference_cross_entropy):
        hidden, weight, labels, bias = _inputs(True, trains_head, torch.float64)
        losses = function(hidden, weight, labels, bias, transform=transform, z_loss=z_loss)
        ((losses * factor).sum() * (0.25 if "multiple" in weighs else 1)).backward()
        gradients.append([tensor.grad for tensor in (hidden, weight, bias) if tensor.requires_grad])
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference)


def test_the_z_loss_is_in_the_gradient_and_never_in_the_value():
    hidden, weight, labels, bias = _inputs(True, False)
    plain = chunked_cross_entropy(hidden, weight, labels, bias)
    assert torch.equal(chunked_cross_entropy(hidden, weight, labels, bias, z_loss=0.1), plain)


def test_the_gradient_of_log_z_squared_by_hand():
    """Two equal logits of 0: Z = 2, so that d(z log^2 Z)/d logit = 2 z ln 2 x 1/2 each, and nll's are -1/2 and 1/2."""
    hidden = torch.zeros(1, 1, dtype=torch.float64)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.float64)
    chunked_cross_entropy(hidden, weight, torch.tensor([0]), bias, z_loss=0.5).sum().backward()
    half = 0.5 * torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(bias.grad, torch.stack([half - 0.5, half + 0.5]))


@pytest.mark.parametrize("upstream", ["sum", "weighted"])
def test_no_tensor_of_all_positions_and_words_is_ever_made(upstream, monkeypatch):
    _cut(monkeypatch, 5)
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            sizes.extend(one.numel() for one in (output,) if isinstance(one, torch.Tensor))
            return output

    hidden, weight, labels, bias = _inputs(True, True)
    factor = torch.linspace(-1, 2, 23) if upstream == "weighted" else 1
    with Watch():
        (chunked_cross_entropy(hidden, weight, labels, bias) * factor).sum().backward()
    assert max(sizes) <= max(5 * 31, weight.numel())


def test_gradients_of_a_second_backward_pass_are_the_same():
    hidden, weight, labels, bias = _inputs(True, True)
    loss = chunked_cross_entropy(hidden, weight, labels, bias).sum() * 3
    first = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    for one, again in zip(first, torch.autograd.grad(loss, (hidden, weight, bias)), strict=True):
        assert torch.equal(one, again)


def test_no_labelled_position_is_no_loss():
    hidden, weight, _, _ = _inputs(False, True)
    losses = chunked_cross_entropy(hidden[:0], weight, torch.empty(0, dtype=torch.long))
    losses.sum().backward()
    assert len(losses) == 0
    assert not weight.grad.any()


def test_without_gradients_none_are_made(monkeypatch):
    hidden, weight, labels, bias = _inputs(True, True)
    products: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in str(function):
                products.append(str(function))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        chunked_cross_entropy(hidden, weight, labels, bias)
    assert len(products) == 1
