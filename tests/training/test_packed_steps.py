"""Training on packed rows is training on padded rows: the same loss, step after step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith.core.plugins import build
from tunesmith.kernels.packed_attention import NAME, give
from tunesmith.methods.full import Full
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import tiny
from tunesmith.objectives.base import Features
from tunesmith.training.learner import Learner

LENGTHS = ((9, 3, 14), (30, 2, 8), (5, 5), (17, 2, 4, 12), (3, 40))
"""Of the examples of five steps; many reach beyond the windows of 6."""
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def _learner(architecture: str, packing: Any, sizes: dict[str, Any]) -> Learner:
    model, tokenizer = tiny(architecture, "causal", **sizes)
    method, objective = Full(), build("objectives", "clm")
    loaded = Loaded(model, tokenizer, "causal", (), "tiny")
    attached = method.attach(model)
    return Learner.make(loaded, attached, method=method, objective=objective, precision="fp32", packing=packing)


def _losses(learner: Learner) -> list[float]:
    """The loss per token of each step, before its update."""
    optimizer = torch.optim.AdamW(learner.trainable().values(), lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for lengths in LENGTHS:
        rows = [tuple(torch.randint(8, 300, (length,), generator=generator).tolist()) for length in lengths]
        batch = learner.batch([Features(ids, (-100, *ids[1:]), float(len(ids) - 1)) for ids in rows])
        is_one_row = batch.tensors["input_ids"].shape == (1, sum(lengths))
        assert is_one_row is learner.layout.is_packed
        loss = learner.loss(batch)[0] / batch.weight
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("architecture", "sizes"), [("llama", {}), ("gemma3_text", WINDOWS), ("gpt2", {}), ("qwen2", {})]
)
def test_packed_steps_have_the_losses_of_padded_ones(architecture: str, sizes: dict[str, Any]) -> None:
    packed = _learner(architecture, "on", sizes)
    assert packed.model.config._attn_implementation == NAME  # type: ignore[union-attr]
    padded = _learner(architecture, "off", sizes)
    give(padded.model, "eager")  # transformers' own products
    losses = _losses(packed)
    assert losses == pytest.approx(_losses(padded), rel=1e-5)
    assert max(losses) - min(losses) > 1e-2  # the steps changed something
