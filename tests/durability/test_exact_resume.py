"""Killed in the midst of a step or of a validation and gone on with: the same weights, state and losses, to the bit.

Over every objective and every optimiser. The kill falls between two micro-batches, or while validation rows are
scored; shuffling, packing where there is any, and dropout are on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from made_training import make_loop
from tunesmith.core.plugins import build, names
from tunesmith.methods.full import Full
from tunesmith.methods.lora import LoRA
from tunesmith.training.loop import Loop

ARCHITECTURES = {"causal": "llama", "seq2seq": "t5", "classify": "distilbert", "tag": "bert", "mask": "bert"}
SETTINGS = {"steps": 7, "tokens_per_step": 40, "micro_tokens": 20, "validations": 3, "keep": "best"}


class _Killed(Exception):  # noqa: N818 - it stands for kill -9, which is no error
    pass


def _digest(loop: Loop) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(loop.tensors.items()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
        for key, value in sorted(loop.optimizer.state[parameter].items()):
            data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if torch.is_tensor(value) else b""
            digest.update(f"{key} {getattr(value, 'dtype', value)}".encode() + data)
    return digest.hexdigest()


def _losses(loop: Loop) -> list[Any]:
    keys = ("step", "train_loss", "grad_norm", "learning_rate", "tokens", "validation_loss")
    return [[record.get(key) for key in keys] for record in loop.run.read_metrics()]


def _begun(folder: Path, method: Any, objective: str, **settings: Any) -> Loop:
    """A process's start: everything is made from seeds, dropout is on."""
    torch.manual_seed(3)
    loop = make_loop(folder, method, ARCHITECTURES[build("objectives", objective).task], objective, **settings)
    for module in loop.learner.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    torch.manual_seed(4)
    return loop


def _die_at(loop: Loop, call: int, *, is_training: bool) -> None:
    """The model's so-manieth call in training (or in validation) from now on is the last thing that happens."""
    left = call

    def count(module: torch.nn.Module, args: Any) -> None:
        nonlocal left
        left -= module.training is is_training
        if left <= 0:
            raise _Killed

    loop.learner.model.register_forward_pre_hook(count)


def _check(folder: Path, kills: list[tuple[int, bool]], method: Any, objective: str, **settings: Any) -> None:
    wanted = {**SETTINGS, **settings}
    straight = _begun(folder / "straight", method, objective, **wanted)
    calls = 0

    def count(module: torch.nn.Module, args: Any) -> None:
        nonlocal calls
        calls += module.training

    hook = straight.learner.model.register_forward_pre_hook(count)
    straight.fit(lambda step: None)
    hook.remove()
    assert calls > SETTINGS["steps"], "several micro-batches a step, or the kill would not fall between two"
    for number, (call, is_training) in enumerate(kills):
        place = folder / f"killed-{number}"
        killed = _begun(place, method, objective, **wanted)
        _die_at(killed, call if not is_training else round(calls * call / 100), is_training=is_training)
        with pytest.raises(_Killed):
            killed.fit(lambda step: None)
        resumed = _begun(place, method, objective, **wanted)
        assert 0 < resumed.restore() < straight.order.num_steps
        resumed.fit(lambda step: None)
        assert _losses(resumed) == _losses(straight)
        assert _digest(resumed) == _digest(straight)


@pytest.mark.parametrize("objective", names("objectives"))
def test_every_objective_goes_on_bit_for_bit(tmp_path: Path, objective: str) -> None:
    """Killed at 90 % of the model's calls in training: in the midst of a step after the second checkpoint."""
    _check(tmp_path, [(90, True)], Full(), objective)


@pytest.mark.parametrize("optimizer", names("optimizers"))
def test_every_optimiser_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    _check(tmp_path, [(85, True)], Full(), "sft", optimizer=build("optimizers", optimizer))


def test_a_kill_while_validation_rows_are_scored_changes_nothing(tmp_path: Path) -> None:
    _check(tmp_path, [(6, False)], LoRA(rank=2, dropout=0.1), "sft")


def test_the_same_seed_twice_is_the_same_to_the_bit(tmp_path: Path) -> None:
    found = set()
    for name in ("one", "two"):
        loop = _begun(tmp_path / name, LoRA(rank=2, dropout=0.1), "sft", **SETTINGS)
        loop.fit(lambda step: None)
        found.add(_digest(loop))
    assert len(found) == 1
