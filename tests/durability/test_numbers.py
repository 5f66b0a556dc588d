"""NaN and infinity: noticed on their step, never saved, never hidden."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from made_training import loop_in, make_learner, make_rows
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning
from tunesmith.methods.full import Full
from tunesmith.models.tiny import tiny
from tunesmith.objectives.sft import SFT
from tunesmith.training.encode import Rows
from tunesmith.training.loop import Loop

SETTINGS = {"steps": 4, "tokens_per_step": 16, "lr": 1e-2, "validations": 2, "patience": 0}


def _loop(folder: Path, events: list[Event], rows: Rows | None = None) -> Loop:
    learner = make_learner(Full(), "llama", SFT())
    held_out = make_rows(SFT(), tiny("llama", "causal")[1])
    return loop_in(folder, learner, rows or held_out, held_out, SETTINGS, events.append)


def test_weights_that_break_stop_the_run_at_that_step_and_are_not_saved(tmp_path: Path) -> None:
    """As an optimiser can with finite gradients: its step is poisoned the way a wild rate would."""
    loop = _loop(tmp_path, [])
    name = next(iter(loop.tensors))

    def spoil(optimizer: object, args: object, kwargs: object) -> None:
        if loop.state.step == 2:
            with torch.no_grad():
                loop.tensors[name].view(-1)[0] = float("inf")

    loop.optimizer.register_step_post_hook(spoil)
    with pytest.raises(
        UserError, match=rf'step 3 made weights that are not finite numbers, in "{name}" \(rows rows'
    ) as e:
        loop.fit(lambda step: None)
    assert e.value.code == "not_finite"
    assert f"tunesmith train --resume {tmp_path} train.lr=… --allow train.lr" in e.value.remedy
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == ["step-000002"]
    assert max(record["step"] for record in loop.run.read_metrics()) == 2


def test_a_validation_that_is_no_number_is_said_and_never_the_best(tmp_path: Path) -> None:
    events: list[Event] = []
    loop = _loop(tmp_path, events)

    def spoil(module: torch.nn.Module, args: object, kwargs: object, output: object) -> None:
        if not module.training:
            output.last_hidden_state.fill_(float("nan"))  # type: ignore[attr-defined]

    loop.learner.model.model.register_forward_hook(spoil, with_kwargs=True)
    state = loop.fit(lambda step: None)
    assert (state.best_step, state.best_loss) == (0, float("inf"))
    said = [event.message for event in events if isinstance(event, Warning)]
    assert said == [
        f"step {step}: the validation loss is not a finite number; it cannot be the best" for step in (2, 4)
    ]
    losses = [record["validation_loss"] for record in loop.run.read_metrics() if "validation" in record]
    assert losses == [None, None]
    assert not list((tmp_path / "checkpoints").glob("best-*"))


def test_a_step_whose_labels_are_all_masked_names_its_rows(tmp_path: Path) -> None:
    rows = make_rows(SFT(), tiny("llama", "causal")[1])
    masked = [replace(one, labels=(-100,) * len(one.labels), weight=0.0) for one in rows.features]
    with pytest.raises(
        UserError, match=r"step 1 has nothing to learn: every label .* masked \(rows.jsonl:\d"
    ) as caught:
        _loop(tmp_path, [], replace(rows, features=masked)).fit(lambda step: None)
    assert caught.value.code == "nothing_trained"
