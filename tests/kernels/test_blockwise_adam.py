"""Eight bits are right on average, wide in range, and AdamW's steps come out of them."""

from __future__ import annotations

import pytest
import torch

from tunesmith.kernels.blockwise_adam import (
    BLOCK,
    BlockwiseAdamW,
    _threshold,
    numbers,
    signed_bytes,
    signed_numbers,
    unsigned_bytes,
)

CPU = torch.device("cpu")


def _thresholds(count):
    return [_threshold(step, CPU) for step in range(1, count + 1)]


def test_what_is_read_back_is_within_a_level():
    """One level: the fourth root moves by 1/127, so a share a is off by 4 a^(3/4) / 127, to first order."""
    torch.manual_seed(0)
    values = torch.randn(40, BLOCK) * torch.logspace(-12, 3, 40)[:, None]
    scale = values.abs().amax(1, keepdim=True)
    back = signed_numbers(*signed_bytes(values, _threshold(1, CPU)))
    assert ((back - values).abs() / scale <= 4 / 127 * ((values / scale).abs() ** 0.25 + 1 / 127) ** 3 + 1e-6).all()
    squares = values.square()
    back, share = numbers(*unsigned_bytes(squares, _threshold(1, CPU))), squares / squares.amax(1, keepdim=True)
    level = 8 / 255 * (share**0.125 + 1 / 255) ** 7
    assert ((back - squares).abs() / squares.amax(1, keepdim=True) <= level + 1e-6).all()


def test_a_mean_square_far_below_its_block_is_not_lost():
    """A weight whose mean square became 0 beside a mean that did not would leap by mean / eps."""
    values = torch.full((1, BLOCK), 1e-16)
    values[0, 0] = 1.0
    back = [numbers(*unsigned_bytes(values, threshold)) for threshold in _thresholds(200)]
    assert torch.stack(back).mean(0)[0, 1:] == pytest.approx(torch.full((BLOCK - 1,), 1e-16), rel=0.1)


def test_rounding_is_right_on_average_over_the_steps():
    torch.manual_seed(1)
    values = torch.randn(4, BLOCK)
    mean = torch.stack([signed_numbers(*signed_bytes(values, t)) for t in _thresholds(1000)]).mean(0)
    torch.testing.assert_close(mean, values, rtol=0, atol=2e-4)
    nearest = torch.stack([signed_numbers(*signed_bytes(values, torch.full((BLOCK,), 0.5))) for _ in range(1)])[0]
    assert (nearest - values).abs().max() > 0.01  # what one step is off, and plain rounding always


def test_a_mean_square_follows_when_gradients_become_small():
    """At beta2 = 0.999 a step changes less than half a level, so plain rounding would keep the old mean for ever."""
    values = torch.linspace(0.1, 1.0, BLOCK)[None].clone()
    kept = unsigned_bytes(values, _threshold(1, CPU))
    for threshold in _thresholds(2000):
        decayed = numbers(*kept) * 0.999
        decayed[0, -1] = 1.0  # one weight keeps the block's scale
        kept = unsigned_bytes(decayed, threshold)
    after = numbers(*kept)[0, :-1] / values[0, :-1]
    assert after.mean().item() == pytest.approx(0.999**2000, rel=0.15)


def test_its_steps_are_those_of_adamw():
    torch.manual_seed(2)
    start = torch.randn(70, 100)  # 7,000 numbers: the last block is not full
    weights = {kind: torch.nn.Parameter(start.clone()) for kind in ("8", "32")}
    optimizers = {
        "8": BlockwiseAdamW([{"params": [weights["8"]], "weight_decay": 0.1}]),
        "32": torch.optim.AdamW([weights["32"]], weight_decay=0.1, lr=1e-3),
    }
    mean = 0.3 * torch.randn_like(start)
    for _ in range(100):
        gradient = torch.randn_like(start) + mean
        for kind, optimizer in optimizers.items():
            weights[kind].grad = gradient.clone()
            optimizer.step()
    change = weights["32"].data - start
    assert ((weights["8"].data - weights["32"].data).norm() / change.norm()).item() < 0.05


def test_the_first_step_is_the_closed_form():
    """theta (1 - lr decay) - lr sign(g), whatever is kept: bytes are read back only by the next step."""
    weight = torch.nn.Parameter(torch.ones(BLOCK * 20))
    weight.grad = torch.where(torch.arange(BLOCK * 20) % 3 == 0, -2.0, 0.5)
    BlockwiseAdamW([{"params": [weight], "weight_decay": 0.5, "lr": 0.1}]).step()
    torch.testing.assert_close(weight.data, 0.95 - 0.1 * weight.grad.sign())


def test_chunks_change_nothing(monkeypatch):
    """Memory beyond a chunk is not taken, and the numbers are the same."""
    torch.manual_seed(3)
    gradients = [torch.randn(3000) for _ in range(3)]
    found = []
    for size in (BLOCK, 1 << 20):
        monkeypatch.setattr("tunesmith.kernels.blockwise_adam.CHUNK_CPU", size)
        weight = torch.nn.Parameter(torch.zeros(3000))
        optimizer = BlockwiseAdamW([{"params": [weight]}])
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
        found.append(weight.data)
    assert torch.equal(*found)
