"""Native attention gives what plain attention gives in fp32, to bf16's rounding, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tunesmith.kernels import native_attention as module
from tunesmith.kernels.block_attention import block_attention
from tunesmith.kernels.example_groups import Attend
from tunesmith.kernels.native_attention import attends_natively, native_attention
from tunesmith.kernels.native_passes import NativePasses, used
from tunesmith.models.rates import compiler
from tunesmith.training.native import native_passes

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def passes() -> NativePasses:
    if not compiler():
        pytest.skip("needs a C++ compiler, which is not here")
    found = native_passes()
    if found.passes is None or not found.passes.attends:
        pytest.skip(f"needs native attention, which is not here ({found.line()})")
    return found.passes


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "_TASKS", 0)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _spans(lengths, key_lengths=None) -> Tensor:
    rows, first, first_key = [], 0, 0
    for length, num_keys in zip(lengths, key_lengths or lengths, strict=True):
        rows.append((0, first, first + length, first_key, first_key + num_keys))
        first, first_key = first + length, first_key + num_keys
    return torch.tensor([*rows, (0, 0, 0, 0, 0)])


def _states(spans, heads, key_heads, width, tail=0) -> list[Tensor]:
    """Queries, keys and values [1, heads, T, D], with heads side by side at each token, and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    length, num_keys = int(spans[:, 2].max()) + tail, int(spans[:, 4].max()) + tail
    shapes = ((length, heads), (num_keys, key_heads), (num_keys, key_heads), (length, heads))
    made = [torch.randn(1, *shape, width, generator=generator).to(BF16) for shape in shapes]
    return [*(one.transpose(1, 2).requires_grad_() for one in made[:3]), made[3]]


def _with_gradients(function, states) -> list[Tensor]:
    output = function(*states[:3])
    return [output.detach(), *torch.autograd.grad(output, states[:3], states[3].to(output.dtype))]


def _compare(passes, spans, states, attend) -> None:
    exact = [one.detach().float().requires_grad_() for one in states]
    expected = _with_gradients(lambda *given: block_attention(*given, spans, attend), exact)
    with used(passes):
        assert attends_natively(*states[:3], spans, attend)
        found = _with_gradients(lambda *given: block_attention(*given, spans, attend), states)
    for one, right in zip(found, expected, strict=True):
        assert one.dtype == BF16 and one.shape == right.shape
        assert float((one.float() - right).abs().max()) <= 2**-7 * float(right.abs().max()) + 1e-5


@pytest.mark.parametrize(
    ("lengths", "heads", "key_heads", "width"),
    [
        ((1,), 1, 1, 32),
        ((5, 64, 65, 17), 4, 2, 64),
        ((200, 130), 9, 3, 64),
        ((63, 2, 128), 2, 2, 96),
        ((1100, 3), 2, 1, 64),
        ((90, 33), 2, 1, 256),
    ],
)
def test_causal(passes, lengths, heads, key_heads, width) -> None:
    spans = _spans(lengths)
    _compare(passes, spans, _states(spans, heads, key_heads, width), Attend(width**-0.5))


@pytest.mark.parametrize(("left", "right"), [(-1, -1), (100, 0), (7, 0), (513, 3), (10, 10), (0, 0), (-1, 5)])
def test_what_a_query_sees(passes, left, right) -> None:
    spans = _spans((700, 70, 1))
    _compare(passes, spans, _states(spans, 4, 2, 64), Attend(0.2, left, right))


def test_other_keys_than_queries(passes) -> None:
    spans = _spans((50, 60, 3), (133, 20, 600))
    _compare(passes, spans, _states(spans, 4, 2, 64), Attend(0.125, -1, -1))


def test_rows_of_a_batch_and_what_lies_in_no_example(passes) -> None:
    spans = torch.tensor([(0, 3, 40, 3, 40), (1, 0, 25, 0, 25)])
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, heads, 48, 32, generator=generator).to(BF16) for heads in (4, 2, 2)]
    states = [*(one.requires_grad_() for one in made), torch.randn(2, 48, 4, 32, generator=generator).to(BF16)]
    _compare(passes, spans, states, Attend(0.3))
    with used(passes):
        output, *grads = _with_gradients(lambda *given: native_attention(*given, spans, Attend(0.3)), states)
    outside = torch.ones(2, 48, dtype=torch.bool)
    outside[0, 3:40] = outside[1, :25] = False
    for one in (output, *(grad.transpose(1, 2) for grad in grads)):
        assert not one[outside].any() and one[~outside].any()


def test_large_scores_and_nan(passes) -> None:
    spans = _spans((70, 20))
    query, key, value, upstream = _states(spans, 2, 2, 32)
    with torch.no_grad():
        query *= 1e4
    with used(passes):
        found = _with_gradients(
            lambda *given: native_attention(*given, spans, Attend(1.0)), [query, key, value, upstream]
        )
    expected = block_attention(query.float(), key.float(), value.float(), spans, Attend(1.0)).detach()
    torch.testing.assert_close(found[0].float(), expected, rtol=2**-7, atol=2**-7)
    assert all(bool(one.isfinite().all()) for one in found)
    with torch.no_grad():
        key[0, 0, 5] = float("nan")
        with used(passes):
            output = native_attention(query, key, value, spans, Attend(1.0))
    assert output[0, 6:70, 0].isnan().all() and not output[0, :5].isnan().any()
    assert not output[0, 70:].isnan().any() and not output[0, :, 1].isnan().any()


def test_gradients_outside_of_the_passes(passes) -> None:
    spans = _spans((30, 40))
    states = _states(spans, 2, 2, 32)
    with used(passes):
        inside = _with_gradients(lambda *given: block_attention(*given, spans, Attend(0.2)), states)
        output = block_attention(*states[:3], spans, Attend(0.2))
    for one, other in zip(torch.autograd.grad(output, states[:3], states[3]), inside[1:], strict=True):
        assert torch.equal(one, other)


def test_the_same_bits_whatever_the_threads(passes, threads) -> None:
    spans = _spans((100, 300, 20, 77))
    states = _states(spans, 4, 2, 64)
    with used(passes):
        found = _with_gradients(lambda *given: native_attention(*given, spans, Attend(0.125)), states)
        torch.set_num_threads(1)
        alone = _with_gradients(lambda *given: native_attention(*given, spans, Attend(0.125)), states)
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


def test_what_it_does_not_take(passes, monkeypatch) -> None:
    spans = _spans((30, 40))
    query, key, value, _ = (one.detach() for one in _states(spans, 4, 2, 64))
    with used(passes):
        assert attends_natively(query, key, value, spans, Attend(0.1))
        assert not attends_natively(query.float(), key, value, spans, Attend(0.1))
        assert not attends_natively(query, key, value[..., :32], spans, Attend(0.1))
        assert not attends_natively(*(one[..., :40] for one in (query, key, value)), spans, Attend(0.1))
        assert not attends_natively(*(one[..., ::2] for one in (query, key, value)), spans, Attend(0.1))
        assert not attends_natively(query, key, value, spans, Attend(0.1, softcap=5.0))
        assert not attends_natively(query, key, value, spans, Attend(0.1, dropout=0.1))
        monkeypatch.setattr(module, "_TASKS", 7)
        assert not attends_natively(query, key, value, spans, Attend(0.1))  # six pieces of work
    assert not attends_natively(query, key, value, spans, Attend(0.1))


def test_sinks_and_dropout_go_the_plain_way(passes) -> None:
    spans = _spans((30, 40))
    query, key, value, _ = (one.detach() for one in _states(spans, 4, 2, 64))
    sinks = torch.zeros(4)
    with used(passes):
        with_sinks = block_attention(query, key, value, spans, Attend(0.1), sinks_H=sinks)
        without = block_attention(query, key, value, spans, Attend(0.1))
    assert float(with_sinks.norm() / without.norm()) < 0.99


def test_shapes_without_numbers(passes) -> None:
    spans = _spans((30, 40))
    states = _states(spans, 4, 2, 64)
    with used(passes):
        real = _with_gradients(lambda *given: block_attention(*given, spans, Attend(0.1)), states)
        mode = FakeTensorMode()
        fakes = [mode.from_tensor(one.detach()).requires_grad_() for one in states]
        places = mode.from_tensor(spans)
        with mode:
            made = _with_gradients(lambda *given: block_attention(*given, places, Attend(0.1)), fakes)
    assert [(one.shape, one.stride(), one.dtype) for one in real] == [(o.shape, o.stride(), o.dtype) for o in made]
