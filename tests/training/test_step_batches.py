"""A run reads its batches ahead of its steps: the numbers are those of batches made in place, and waiting is logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from made_training import make_loop
from tunesmith.methods.full import Full
from tunesmith.training.ahead import Key
from tunesmith.training.loop import Loop
from tunesmith.training.optim import learning_rate_at

NUM_STEPS = 5


def _loop(folder: Path, objective: str, architecture: str) -> Loop:
    torch.manual_seed(4)
    return make_loop(folder, Full(), architecture, objective, steps=NUM_STEPS, micro_tokens=12)


@pytest.mark.parametrize(("objective", "architecture"), [("clm", "llama"), ("mlm", "bert"), ("classification", "bert")])
def test_batches_made_ahead_change_no_bit(tmp_path: Path, objective: str, architecture: str) -> None:
    ahead, in_place = (_loop(tmp_path / name, objective, architecture) for name in ("ahead", "place"))
    torch.manual_seed(5)  # of dropout
    ahead.fit(lambda step: None)
    torch.manual_seed(5)
    for step in range(NUM_STEPS):
        rate = learning_rate_at(step, NUM_STEPS, in_place.peak_learning_rate, in_place.settings)
        in_place.update(in_place.order.rows(step), rate)
        in_place.state.step += 1
    for name, tensor in ahead.tensors.items():
        assert torch.equal(tensor, in_place.tensors[name]), name
    waits = [record["wait_seconds"] for record in ahead.run.read_metrics() if "train_loss" in record]
    assert len(waits) == NUM_STEPS and min(waits) >= 0
    assert sum(waits) == pytest.approx(ahead.state.wait_seconds, abs=1e-4)
    assert 0 < ahead.state.wait_seconds < ahead.state.train_seconds


def test_a_step_is_its_rows_whatever_was_read_before(tmp_path: Path) -> None:
    loop = _loop(tmp_path, "mlm", "bert")
    key = Key(3, (0, 1, 2, 3), 12)
    with loop._batches().ahead(is_threaded=True) as reader:
        list(reader.items(Key(0, loop.order.rows(0), 12)))
        weights, *found = reader.items(key)
    again, *wanted = loop._batches().make(key)
    assert weights == again
    assert len(found) == len(wanted) > 1
    for (name, batch), (other, same) in zip(found, wanted, strict=True):
        assert (name, batch.weight) == (other, same.weight)
        assert all(torch.equal(tensor, same.tensors[part]) for part, tensor in batch.tensors.items())
    _, *others = loop._batches().make(Key(4, key.rows, 12))  # another step hides other words of the same rows
    pairs = zip(others, wanted, strict=True)
    assert not all(torch.equal(one.tensors["input_ids"], same.tensors["input_ids"]) for (_, one), (_, same) in pairs)
