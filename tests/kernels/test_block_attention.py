"""Block attention against one mask over the whole row, in plain products: values and all gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tunesmith.kernels import block_attention as module
from tunesmith.kernels import example_groups
from tunesmith.kernels.block_attention import block_attention
from tunesmith.kernels.example_groups import Attend, groups, kept

PACK = [(0, 0, 3, 0, 3), (0, 3, 4, 3, 4), (0, 4, 13, 4, 13), (0, 13, 16, 13, 16)]
ROWS = [(0, 0, 12, 0, 12), (1, 4, 16, 4, 16), (2, 0, 11, 0, 11)]
"""Padded on the right, on the left, and so alike that they go through the products together."""
CROSS = [(0, 0, 16, 0, 7), (1, 0, 16, 0, 11), (2, 0, 16, 0, 16)]


def states(num_rows: int, key_heads: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(num_rows, 16, heads, 8) for heads in (4, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def reference(query, key, value, spans, attend, sinks=None, keep=None):
    """The same by one mask [T, T] a row; `keep` is 1 where a probability is not dropped."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * attend.scale
    if attend.softcap:
        scores = attend.softcap * torch.tanh(scores / attend.softcap)
    seen = torch.zeros(query.shape[0], query.shape[2], key.shape[2], dtype=torch.bool)
    for row, first, end, low, high in spans:
        distance = torch.arange(end - first)[:, None] - torch.arange(high - low)[None, :]
        inside = (distance <= attend.left) | (attend.left < 0)
        seen[row, first:end, low:high] = inside & ((-distance <= attend.right) | (attend.right < 0))
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), -1)
    probabilities = scores.softmax(-1).nan_to_num(0.0)[..., : key.shape[2]]
    if keep is not None:
        probabilities = probabilities * keep / (1 - attend.dropout)
    return (probabilities @ value).transpose(1, 2)


@pytest.fixture(params=["small blocks", "one block"])
def blocks(request, monkeypatch):
    if request.param == "small blocks":
        monkeypatch.setattr(example_groups, "BLOCK", 4)
        monkeypatch.setattr(module, "BLOCK", 4)
        monkeypatch.setattr(example_groups, "WHOLE_BLOCK", 5)
        monkeypatch.setattr(example_groups, "STEP", 1)
    module._later.cache_clear()
    yield
    module._later.cache_clear()


CASES = [
    (PACK, Attend(0.3)),
    (PACK, Attend(0.3, softcap=0.8)),
    (PACK, Attend(0.3, left=2)),
    (ROWS, Attend(0.3, -1, -1)),
    (ROWS, Attend(0.3, 2, 2)),
    (ROWS, Attend(0.3, 3, 1, softcap=2.0)),
    (ROWS, Attend(0.3)),
    (CROSS, Attend(0.3, -1, -1)),
]


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize(("spans", "attend"), CASES)
def test_values_and_gradients_are_those_of_one_mask_over_the_row(spans, attend, has_sinks, keeps, blocks):
    results = []
    for is_mine in (True, False):
        leaves = states(3)
        sinks = torch.tensor([0.5, -1.0, 0.0, 2.0], requires_grad=True) if has_sinks else None
        if is_mine:
            num_kept = kept(spans, attend.left, attend.right) if keeps else 0
            output = block_attention(*leaves, torch.tensor(spans), attend, sinks_H=sinks, num_kept=num_kept)
        else:
            output = reference(*leaves, spans, attend, sinks)
        output.cos().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in [*leaves, *([sinks] if has_sinks else [])])])
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(("spans", "attend"), [(PACK, Attend(0.3, dropout=0.3)), (ROWS, Attend(0.3, -1, -1, 0.0, 0.3))])
def test_forward_and_backward_drop_the_same_probabilities(spans, attend, keeps, dtype, blocks):
    num_kept = kept(spans, attend.left, attend.right) if keeps else 0
    query, key, _ = states(3, key_heads=4)
    eye = torch.eye(16).expand(3, 4, 16, 16).to(dtype)
    torch.manual_seed(5)
    dropped = block_attention(query.to(dtype), key.to(dtype), eye, torch.tensor(spans), attend, num_kept=num_kept)
    whole = reference(query, key, eye.float(), spans, replace(attend, dropout=0.0))
    keep = (dropped != 0).transpose(1, 2).float()
    assert 0.6 < float(keep.sum() / (whole != 0).sum()) < 0.8
    results = []
    for is_mine in (True, False):
        leaves = states(3, key_heads=4, dtype=dtype if is_mine else torch.float32)
        torch.manual_seed(5)
        if is_mine:
            output = block_attention(*leaves, torch.tensor(spans), attend, num_kept=num_kept)
        else:
            output = reference(*leaves, spans, attend, keep=keep)
        output.float().cos().sum().backward()
        results.append([output.detach().float(), *(leaf.grad.float() for leaf in leaves)])
    tolerance = 2e-6 if dtype == torch.float32 else 3e-2
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, atol=tolerance, rtol=tolerance)


def test_the_operator_keeps_pytorchs_rules():
    query, key, value = states(3)
    numbers = (0.3, -1, 0, 0.0, 0.0, kept(ROWS))
    torch.library.opcheck(module._attention, (query, key, value, torch.tensor(ROWS), None, None, *numbers))


def test_short_examples_of_like_length_go_together_and_all_of_them_once():
    lengths = [40, 39, 400, 8, 33, 41, 390, 7]
    spans = [(row, 0, length, 0, length) for row, length in enumerate(lengths)]
    together = [[span[0] for span in group] for group in groups(spans)]
    assert together == [[2], [6], [5, 0, 1, 4], [3, 7]]


def test_one_examples_tokens_change_no_bit_of_anothers_output():
    query, key, value = (leaf.detach().bfloat16() for leaf in states(1))
    before = block_attention(query, key, value, torch.tensor(PACK), Attend(0.3))
    for changed in (query, key, value):
        changed[:, :, 4:13] += 1
    after = block_attention(query, key, value, torch.tensor(PACK), Attend(0.3))
    assert not torch.equal(before[:, 4:13], after[:, 4:13])
    assert torch.equal(before[:, :4], after[:, :4])
    assert torch.equal(before[:, 13:], after[:, 13:])
