"""Native passes give what the references give, to the last rounding, and only tensors they can take reach them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tunesmith.kernels.block_attention import block_attention
from tunesmith.kernels.cross_entropy import chunked_cross_entropy, reference_cross_entropy
from tunesmith.kernels.example_groups import Attend, kept
from tunesmith.kernels.fuse import fuse
from tunesmith.kernels.fused_lora import Terms
from tunesmith.kernels.gated_mlp import gated_mlp, reference_gated_mlp
from tunesmith.kernels.native_passes import NativePasses, in_use, native, used
from tunesmith.kernels.rms_norm import reference_rms_norm, rms_norm
from tunesmith.kernels.rotary import reference_rotary, rotary
from tunesmith.models.probe import probe
from tunesmith.models.rates import compiler
from tunesmith.models.tiny import tiny
from tunesmith.training.native import native_passes

BF16, FP32 = torch.bfloat16, torch.float32
ROUNDING = {BF16: 2**-8, FP32: 2**-21}
"""Of the largest number of a result: bf16 is rounded once; sums of fp32 numbers come in another order."""


@pytest.fixture(scope="module")
def passes() -> NativePasses:
    if not compiler():
        pytest.skip("needs a C++ compiler, which is not here")
    found = native_passes()
    assert found.passes is not None, found.why
    return found.passes


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _states(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert bool(torch.isfinite(found).all())
    assert float((found.double() - expected.double()).abs().max()) <= tolerance * float(expected.abs().max())


def _exact_gradients(function, upstream: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients in fp64."""
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    output = function(*doubles)
    return (output.detach(), *torch.autograd.grad(output, doubles, upstream.double()))


@pytest.mark.parametrize("states", [BF16, FP32])
@pytest.mark.parametrize("output", [BF16, FP32])
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (7, 33), (64, 576)])
def test_rms_norm(passes, threads, states, output, rows, width):
    x, weight = _states(1, rows, width, dtype=states).requires_grad_(), _states(width, seed=1).requires_grad_()
    upstream = _states(1, rows, width, dtype=output, seed=2)
    with used(passes):
        mine = rms_norm(x, weight, 1e-5, 1.0, output)
        found = (mine.detach(), *torch.autograd.grad(mine, (x, weight), upstream))

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * (1 + weight)

    expected = _exact_gradients(norm, upstream, x, weight)
    assert (found[0].dtype, found[1].dtype, found[2].dtype) == (output, states, FP32)
    torch.testing.assert_close(reference_rms_norm(x, weight, 1e-5, 1.0), expected[0].float(), rtol=1e-5, atol=1e-5)
    for one, exact, dtype in zip(found, expected, (output, states, FP32), strict=True):
        _near(one, exact, 2 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_gated_mlp(passes, threads, dtype, kind):
    x, *weights = (_states(*shape, dtype=dtype, seed=sum(shape)) for shape in ((1, 9, 5), (24, 5), (24, 5), (5, 24)))
    for one in (x, *weights):
        one.requires_grad_()
    upstream = _states(1, 9, 5, dtype=dtype, seed=3)
    with used(passes):
        mine = gated_mlp(x, *(Terms(weight) for weight in weights), kind)
        found = (mine.detach(), *torch.autograd.grad(mine, (x, *weights), upstream))

    def mlp(x, *weights):
        return reference_gated_mlp(x, *(Terms(weight) for weight in weights), kind)

    for one, exact in zip(found, _exact_gradients(mlp, upstream, x, *weights), strict=True):
        _near(one, exact, 8 * ROUNDING[dtype])


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_activations_far_out(passes, kind):
    """Where e^x overflows or vanishes the value is x or 0, and what is no number stays none."""
    gate = torch.tensor([-1e30, -100.0, -20.0, 0.0, 20.0, 100.0, 1e30, float("inf"), float("nan")])
    ones = torch.ones_like(gate)
    expected = torch.nn.functional.silu(gate) if kind == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    torch.testing.assert_close(passes.gated(kind, gate, ones)[:7], expected[:7], rtol=1e-5, atol=1e-6)
    assert not bool(torch.isfinite(passes.gated(kind, gate, ones)[7:]).any())
    grad, into_up = torch.ones_like(gate), torch.empty_like(gate)
    passes.gated_backward_(kind, gate, ones, grad, into_up)
    torch.testing.assert_close(grad[1:6], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), rtol=1e-5, atol=1e-6)
    assert bool(torch.isnan(grad[8]))


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (FP32, FP32), (BF16, FP32)])
@pytest.mark.parametrize("positions", [1, 2])
def test_rotary(passes, threads, dtypes, positions):
    """Heads side by side at each token, as a projection leaves them, alone or beside others."""
    states, angles = dtypes
    joint = _states(2, 6, 5 * 8, dtype=states).requires_grad_()
    cos, sin = (_states(positions, 6, 8, dtype=angles, seed=seed) for seed in (1, 2))
    upstream = _states(2, 6, 3, 8, dtype=torch.promote_types(states, angles), seed=3).transpose(1, 2)

    def heads(joint):
        return joint[..., 8:32].unflatten(-1, (3, 8)).transpose(1, 2)

    with used(passes):
        mine = rotary(heads(joint), cos, sin)
        found = (mine.detach(), *torch.autograd.grad(mine, joint, upstream))
    assert mine.transpose(1, 2).is_contiguous() and mine.dtype == torch.promote_types(states, angles)

    def turn(joint):
        return reference_rotary(heads(joint), cos.double(), sin.double())

    for one, exact in zip(found, _exact_gradients(turn, upstream, joint), strict=True):
        _near(one, exact, 2 * ROUNDING[one.dtype])


def test_other_layouts_of_heads_are_turned_as_before(passes):
    cos, sin = (_states(1, 6, 8, seed=seed) for seed in (1, 2))
    by_head, beside = _states(2, 3, 6, 8), _states(2, 6, 3, 8)
    with used(passes):
        torch.testing.assert_close(rotary(by_head, cos, sin), reference_rotary(by_head, cos, sin))
        torch.testing.assert_close(rotary(beside, cos, sin, 2), reference_rotary(beside, cos, sin, 2))


def test_rounding_is_pytorchs(passes):
    """To nearest, ties to even, by turning with cos 1 and sin 0: every bf16 number, and all halfway between two."""
    bits = torch.arange(2**16, dtype=torch.int32) << 16
    numbers = torch.cat([bits, bits | 0x8000, bits | 0x7FFF, bits | 0x8001]).view(FP32).view(1, -1, 1, 2)
    numbers = numbers[torch.isfinite(numbers).all(-1)].view(1, -1, 1, 2)
    cos, sin = torch.ones(1, numbers.shape[1], 2), torch.zeros(1, numbers.shape[1], 2)
    mine = passes.rotary(numbers.transpose(1, 2), cos, sin, BF16, turns_back=False)
    assert torch.equal(mine.transpose(1, 2), numbers.to(BF16))


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("reach", [(-1, 0), (-1, -1), (20, 0), (3, 3), (0, 0)])
def test_attention(passes, threads, dtype, reach):
    spans = torch.tensor([[0, 0, 150, 0, 150], [0, 150, 190, 150, 190], [0, 190, 191, 190, 191]])
    leaves = [_states(1, 191, heads, 16, dtype=dtype, seed=seed) for seed, heads in enumerate((4, 2, 2))]
    upstream = _states(1, 191, 4, 16, dtype=dtype, seed=5)
    attend = Attend(0.25, *reach)

    def run(*leaves):
        states = (leaf.transpose(1, 2) for leaf in leaves)
        return block_attention(*states, spans, attend, num_kept=kept(spans.tolist(), *reach))

    expected = _exact_gradients(run, upstream, *leaves)  # in fp64 by PyTorch's operations
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with used(passes):
        mine = run(*leaves)
        found = (mine.detach(), *torch.autograd.grad(mine, leaves, upstream))
    for one, exact in zip(found, expected, strict=True):
        _near(one, exact, 16 * ROUNDING[dtype])


def test_softmax_of_what_a_query_sees(passes):
    scores = torch.tensor([[0.0, 9.0, 9.0], [0.0, 0.0, 9.0], [float("nan"), 1.0, 2.0], [-200.0, 0.0, 200.0]])
    seen = passes.softmax(scores, torch.empty_like(scores), 2, -5, 1)  # rows 0 and 2 see one key, 1 and 3 see two
    torch.testing.assert_close(seen[[0, 1, 3]], torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    assert bool(torch.isnan(seen[2, 0])) and seen[2, 1:].tolist() == [0.0, 0.0]
    assert passes.softmax(scores, scores, 2, 5, 9).eq(0).all()  # nothing to see


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("vocabulary", [5, 5000])
def test_cross_entropy(passes, threads, dtype, z_loss, vocabulary):
    hidden, weight = _states(7, 12, dtype=dtype), _states(vocabulary, 12, dtype=dtype, seed=1)
    labels = torch.arange(7) % vocabulary
    exact_hidden = hidden.double().requires_grad_()
    plain = reference_cross_entropy(exact_hidden, weight.double(), labels)
    whole = reference_cross_entropy(exact_hidden, weight.double(), labels, z_loss=z_loss)
    (gradient,) = torch.autograd.grad(whole.sum(), exact_hidden)
    with used(passes):
        hidden.requires_grad_()
        losses = chunked_cross_entropy(hidden, weight, labels, z_loss=z_loss)
        (mine,) = torch.autograd.grad(losses.sum(), hidden)
    _near(losses.detach(), plain.detach(), 8 * ROUNDING[dtype])
    _near(mine, gradient, 8 * ROUNDING[dtype])


def test_a_label_outside_the_vocabulary_is_a_fault_and_no_read_of_foreign_memory(passes):
    with used(passes), pytest.raises((IndexError, RuntimeError)):
        chunked_cross_entropy(_states(2, 4), _states(6, 4), torch.tensor([1, 6]))


def test_only_what_they_take_reaches_them(passes):
    fits = _states(4, 6)
    assert native(fits) is None and not in_use()
    with used(passes):
        assert native(fits, fits.bfloat16()) is passes and in_use()
        others = (fits.double(), fits.half(), fits.T, fits[:, :3], fits.to("meta"), torch.nn.Parameter(fits))
        assert [native(fits, other) for other in others] == [None] * len(others)
        with used(None):
            assert native(fits) is None
    assert native(fits) is None


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_a_model_learns_the_same(passes, architecture):
    torch.manual_seed(0)
    model = tiny(architecture, "causal")[0].train()
    fuse(model, lambda: probe(model))
    ids = torch.arange(3, 43)[None]
    results = []
    for some in (None, passes):
        model.zero_grad()
        with used(some):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        results.append((loss.detach(), *(one.grad.clone() for one in model.parameters() if one.grad is not None)))
    for plain, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)
