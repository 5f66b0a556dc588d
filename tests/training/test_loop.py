"""The loop: exact resume, one division by the whole weight, numbers that break, memory that runs out."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest
import torch

from made_training import loop_in
from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Event, Metric, Warning, silent
from tunesmith.core.records import Origin, TextExample
from tunesmith.methods.full import Full
from tunesmith.methods.lora import LoRA
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import tiny
from tunesmith.objectives.clm import CLM
from tunesmith.training.encode import Rows, encode_rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop, validation_steps

TEXTS = [f"row {number} says " + "so " * (number % 7 + 1) for number in range(24)]
SETTINGS = {"epochs": 2.0, "tokens_per_step": 160, "micro_tokens": 80, "lr": 1e-2, "validations": 3, "patience": 0}


def _rows(tokenizer) -> Rows:
    examples = [TextExample(origin=Origin("t.txt", line), text=text) for line, text in enumerate(TEXTS, 1)]
    return encode_rows(examples, CLM(), tokenizer, max_length=64, labels=())[0]


def _loop(folder: Path, events: list[Event] | None = None, *, method=None, dropout=0.0, **settings) -> Loop:
    torch.manual_seed(0)
    model, tokenizer = tiny("llama", "causal")
    model.config.attention_dropout = dropout
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    method = method or Full()
    loaded = Loaded(model, tokenizer, "causal", (), "tiny")
    learner = Learner.make(
        loaded, method.attach(model), method=method, objective=CLM(), precision="fp32", packing="auto"
    )
    rows = _rows(tokenizer)
    return loop_in(folder, learner, rows, rows, {**SETTINGS, **settings}, silent if events is None else events.append)


def _digest(loop: Loop) -> str:
    digest = hashlib.sha256()
    for _, parameter in sorted(loop.tensors.items()):
        digest.update(parameter.detach().numpy().tobytes())
    for _, entry in sorted(loop.optimizer.state_dict()["state"].items()):
        digest.update(entry["exp_avg"].numpy().tobytes() + entry["exp_avg_sq"].numpy().tobytes())
    return digest.hexdigest()


class _Killed(Exception):  # noqa: N818 - it stands for kill -9, which is no error
    pass


def _quiet(step: int) -> None:
    pass


def _die_at(last: int):
    def sample(step: int) -> None:
        if step >= last:
            raise _Killed

    return sample


def _losses(loop: Loop) -> list[tuple[int, float]]:
    keys = ("train_loss", "validation_loss")
    return [(r["step"], *(r.get(key) for key in keys)) for r in loop.run.read_metrics()]


@pytest.mark.parametrize("method", [Full(), LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("kill_at_mark", [1, 2, 3])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, method, kill_at_mark):
    """With dropout, shuffling and packing; the kill falls after a validation and before its checkpoint."""
    straight = _loop(tmp_path / "straight", method=method, dropout=0.3, keep="last")
    straight.fit(_quiet)
    marks = sorted(validation_steps(straight.order.num_steps, 3))
    killed = _loop(tmp_path / "killed", method=method, dropout=0.3, keep="last")
    with pytest.raises(_Killed):
        killed.fit(_die_at(marks[kill_at_mark - 1]))
    resumed = _loop(tmp_path / "killed", method=method, dropout=0.3, keep="last")
    torch.manual_seed(99)  # whatever the new process drew before
    assert resumed.restore() == (marks[kill_at_mark - 2] if kill_at_mark > 1 else 0)
    if kill_at_mark == 1:
        torch.manual_seed(0)
        resumed = _loop(tmp_path / "killed", method=method, dropout=0.3, keep="last")
        resumed.restore()
    resumed.fit(_quiet)
    assert _digest(resumed) == _digest(straight)
    assert _losses(resumed) == _losses(straight)


def test_ctrl_c_finishes_the_step_saves_and_can_go_on(tmp_path):
    straight = _loop(tmp_path / "straight")
    straight.fit(_quiet)
    loop = _loop(tmp_path / "stopped")
    first_mark = min(validation_steps(loop.order.num_steps, 3))
    told = []
    loop.journal.emit = told.append
    with pytest.raises(Interrupted, match=f"stopped after step {first_mark}") as caught:
        loop.fit(lambda step: os.kill(os.getpid(), signal.SIGINT))
    said = [event.message for event in told if isinstance(event, Warning)]
    assert said == [f"validating after step {first_mark}, then saving; again to stop now"]
    assert caught.value.resume == f"tunesmith train --resume {tmp_path / 'stopped'}"
    resumed = _loop(tmp_path / "stopped")
    assert resumed.restore() == first_mark
    resumed.fit(_quiet)
    assert _digest(resumed) == _digest(straight)


def test_the_same_seed_twice_gives_the_same_weights(tmp_path):
    digests = set()
    for name in ("one", "two"):
        loop = _loop(tmp_path / name, dropout=0.3)
        loop.fit(_quiet)
        digests.add(_digest(loop))
    assert len(digests) == 1


def test_micro_batches_change_nothing_but_memory(tmp_path):
    weights = []
    for micro_tokens in (40, 160):
        loop = _loop(tmp_path / str(micro_tokens), micro_tokens=micro_tokens, epochs=1.0)
        loop.fit(_quiet)
        weights.append(torch.cat([tensor.detach().flatten() for tensor in loop.tensors.values()]))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    events: list[Event] = []
    _loop(tmp_path).fit(_quiet)
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "model.safetensors").write_bytes(bytes(data))
    resumed = _loop(tmp_path, events)
    assert 0 < resumed.restore() < resumed.order.num_steps
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert newest.name in warning.message and "model.safetensors" in warning.message


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    _loop(tmp_path).fit(_quiet)
    other = _loop(tmp_path)
    other.identity = {"fingerprint": "another"}
    with pytest.raises(UserError, match="written with other settings: fingerprint: f → another"):
        other.restore()


def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    _loop(tmp_path, validations=5, checkpoints=2).fit(_quiet)
    names = sorted(path.name.partition("-")[0] for path in (tmp_path / "checkpoints").iterdir())
    assert names in (["best", "step", "step"], ["best", "best", "step", "step"])


def test_the_run_ends_with_its_best_weights_and_stops_when_nothing_improves(tmp_path):
    events: list[Event] = []
    loop = _loop(tmp_path, events, lr=3.0, schedule="constant", warmup=0.0, validations=12, patience=1, epochs=12.0)
    state = loop.fit(_quiet)
    losses = {event.at: event.values["validation_loss"] for event in events if isinstance(event, Metric)}
    assert state.step < loop.order.num_steps
    assert state.best_step == min(losses, key=losses.get)
    assert loop.validate().loss == pytest.approx(losses[state.best_step], rel=1e-5)


def test_a_loss_that_is_no_number_is_skipped_and_then_stops_the_run(tmp_path):
    events: list[Event] = []
    loop = _loop(tmp_path, events, max_bad_steps=1)
    before = {name: tensor.detach().clone() for name, tensor in loop.tensors.items()}
    honest = loop.learner.objective.loss
    poisoned = type(loop.learner.objective).loss
    try:
        type(loop.learner.objective).loss = lambda self, learner, batch: (honest(learner, batch)[0] * float("nan"), {})
        with pytest.raises(UserError, match=r"2 steps in a row.*not a finite number \(rows t.txt:\d+") as caught:
            loop.fit(_quiet)
    finally:
        type(loop.learner.objective).loss = poisoned
    assert caught.value.code == "not_finite" and "train.lr" in caught.value.remedy
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.tensors.items())
    assert [event.code for event in events if isinstance(event, Warning)] == ["not_finite"] * 2


def test_validations_are_spread_evenly_and_the_last_step_is_one():
    assert validation_steps(100, 4) == {25, 50, 75, 100}
    assert validation_steps(3, 10) == {1, 2, 3}
