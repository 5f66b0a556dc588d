"""Compiled runs: decided by measurement, continued bit for bit, and never a reason to fail."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from made_training import loop_in, make_learner, make_rows
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning
from tunesmith.core.plugins import build
from tunesmith.kernels.compiled_blocks import Call
from tunesmith.models.rates import compiler
from tunesmith.models.tiny import tiny
from tunesmith.recipe import TrainSettings
from tunesmith.training.choices import choices
from tunesmith.training.compiling import (
    Measured,
    _file_of,
    _not_worth_it,
    _seconds,
    require_compiler,
    why_no_compiler,
)
from tunesmith.training.loop import Loop

SETTINGS = {"steps": 4, "tokens_per_step": 60, "micro_tokens": 30, "lr": 1e-2, "validations": 2, "patience": 0}


def _loop(folder: Path, events: list[Event], **settings) -> Loop:
    objective = build("objectives", "sft")
    learner = make_learner(build("methods", "lora"), "llama", objective)
    rows = make_rows(objective, tiny("llama", "causal")[1])
    return loop_in(folder, learner, rows, rows, {**SETTINGS, **settings}, events.append)


def _weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in loop.tensors.items()}


class _Killed(Exception):  # noqa: N818 - it stands for kill -9, which is no error
    pass


def _die(step: int) -> None:
    raise _Killed


def _quiet(step: int) -> None:
    pass


@pytest.mark.skipif(not compiler(), reason="no C++ compiler is here")
def test_a_compiled_run_learns_the_same_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    events: list[Event] = []
    plain = _loop(tmp_path / "plain", events, compile="off")
    plain.fit(_quiet)
    whole = _loop(tmp_path / "whole", events, compile="on")
    assert whole.compiling.choice.value is True
    whole.fit(_quiet)
    for name, weight in _weights(plain).items():
        torch.testing.assert_close(whole.tensors[name].detach(), weight, rtol=1e-3, atol=1e-5)
    killed = _loop(tmp_path / "killed", events, compile="on")
    with pytest.raises(_Killed):
        killed.fit(_two_validations_then(_die))
    resumed = _loop(tmp_path / "killed", events, compile="on")
    assert resumed.restore() == 2
    resumed.fit(_quiet)
    for name, weight in _weights(whole).items():
        assert torch.equal(resumed.tensors[name], weight), name
    assert not [event for event in events if isinstance(event, Warning)]


def _two_validations_then(end):
    seen: list[int] = []

    def sample(step: int) -> None:
        seen.append(step)
        if len(seen) == 2:
            end(step)

    return sample


def test_a_block_that_cannot_be_compiled_is_said_and_trained_as_it_is(tmp_path: Path) -> None:
    events: list[Event] = []
    objective = build("objectives", "sft")
    learner = make_learner(build("methods", "lora"), "llama", objective)
    for layer in learner.model.get_base_model().model.layers:
        layer.input_layernorm.register_forward_hook(lambda module, args, output: print(output.detach().sum().item()))
    rows = make_rows(objective, tiny("llama", "causal")[1])
    loop = loop_in(tmp_path / "run", learner, rows, rows, {**SETTINGS, "compile": "on"}, events.append)
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert warning.code == "not_compiled"
    assert warning.message.startswith("blocks are not compiled: torch.compile: ")
    assert loop.fit(_quiet).step == 4
    assert loop.compiling.line().startswith("not compiled: torch.compile: ")


def test_a_short_run_is_not_compiled_and_keeps_the_reason(tmp_path: Path) -> None:
    loop = _loop(tmp_path / "run", [])
    kept = choices(loop.run)["compile"]
    assert kept.value is False
    assert kept.why == (
        "no C++ compiler" if not compiler() else "too short a run: 30 s to compile, 0 s to gain at best"
    )
    assert loop.compiling.compiled is None


def test_a_run_that_goes_on_keeps_its_choice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "choices.json").write_text(json.dumps({"compile": {"value": False, "why": "measured before"}}))
    assert _loop(folder, []).compiling.line() == "not compiled: measured before"


def test_what_was_measured_decides_with_the_length_of_the_run() -> None:
    fast = Measured(plain=6e-5, compiled=5e-5, cold_seconds=30.0, warm_seconds=5.0)
    assert _not_worth_it(fast, 1_000_000) == ""
    assert _not_worth_it(fast, 100_000) == "too short a run: 5 s to compile, 1 s to gain"
    slow = Measured(plain=5e-5, compiled=5e-5, cold_seconds=30.0)
    assert _not_worth_it(slow, 10**12) == "a compiled block is 1.00 times as fast, which does not pay"
    assert Measured(**asdict(slow)).cost_seconds == 8.0


class _Waits(torch.nn.Linear):
    """A layer in whose place the processor does other work for a while."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2)
        return super().forward(x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured by the clock")
def test_other_work_on_the_processor_is_not_counted() -> None:
    assert 0 < _seconds(Call(_Waits(2, 2), (torch.ones(1, 3, 2),), {})) < 0.1


def test_what_was_measured_is_kept_for_blocks_of_one_shape(tmp_path: Path) -> None:
    loop, same = _loop(tmp_path / "a", [], compile="off"), _loop(tmp_path / "b", [], compile="off")
    other = make_learner(build("methods", "full"), "llama", build("objectives", "sft"))
    assert _file_of(loop.compiling.blocks, loop.learner) == _file_of(same.compiling.blocks, same.learner)
    assert _file_of(loop.compiling.blocks, other) != _file_of(tuple(other.model.model.layers), other)


def test_without_a_compiler_a_wish_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    compiler.cache_clear()
    try:
        assert why_no_compiler(torch.device("cpu")) == "no C++ compiler"
        with pytest.raises(UserError, match="blocks cannot be compiled: no C") as refused:
            require_compiler(TrainSettings(compile="on"), torch.device("cpu"))
        assert refused.value.code == "no_compiler"
        require_compiler(TrainSettings(), torch.device("cpu"))
    finally:
        compiler.cache_clear()
