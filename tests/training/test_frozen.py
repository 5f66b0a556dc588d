"""Frozen blocks run once a row: the same losses as when they run always, on every architecture, and exact resume."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from made_training import loop_in
from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Progress, silent
from tunesmith.core.records import LabelExample, Origin, PairExample, TextExample
from tunesmith.methods.feature_extraction import FeatureExtraction
from tunesmith.methods.full import Full
from tunesmith.methods.last_k import LastK
from tunesmith.models.anatomy import blocks, encoder_blocks
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import ARCHITECTURES, ENCODERS, tiny, tiny_config
from tunesmith.objectives.classification import Classification
from tunesmith.objectives.clm import CLM
from tunesmith.objectives.seq2seq import Seq2Seq
from tunesmith.training import frozen
from tunesmith.training.encode import encode_rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop

LABELS = ("no", "yes", "maybe")
TEXTS = [f"row {number} says " + "so " * (number * 5 % 7 + 1) for number in range(24)]
SETTINGS = {"epochs": 4.0, "tokens_per_step": 240, "micro_tokens": 120, "lr": 1e-2, "validations": 3, "patience": 0}
TASKS = {"causal": CLM(), "seq2seq": Seq2Seq(), "classify": Classification()}


def _example(task: str, line: int, text: str):
    origin = Origin("t.txt", line)
    if task == "classify":
        return LabelExample(origin=origin, text=text, label=LABELS[line % 3])
    if task == "seq2seq":
        return PairExample(origin=origin, source=text, target=text[:9])
    return TextExample(origin=origin, text=text)


def _loop(folder: Path, architecture: str, task: str, method, *, events: list[Event] | None = None, **settings) -> Loop:
    model, tokenizer = tiny(architecture, task)
    _turn_dropout_on(model)
    objective = TASKS[task]
    loaded = Loaded(model, tokenizer, task, LABELS if task == "classify" else (), "tiny")
    learner = Learner.make(
        loaded, method.attach(model), method=method, objective=objective, precision="fp32", packing="auto"
    )
    examples = [_example(task, line, text) for line, text in enumerate(TEXTS, 1)]
    rows = encode_rows(examples, objective, tokenizer, max_length=64, labels=loaded.labels)[0]
    held_out = encode_rows(examples[:9], objective, tokenizer, max_length=64, labels=loaded.labels)[0]
    torch.manual_seed(3)
    emit = silent if events is None else events.append
    return loop_in(folder, learner, rows, held_out, {**SETTINGS, **settings}, emit)


def _turn_dropout_on(model) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2


def _digest(loop: Loop) -> str:
    digest = hashlib.sha256()
    for _, parameter in sorted(loop.tensors.items()):
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def _losses(loop: Loop) -> list[float]:
    records = loop.run.read_metrics()
    return [record.get("validation_loss") or record["train_loss"] for record in records]


def _quiet(step: int) -> None:
    pass


CASES = [(name, task) for name in ARCHITECTURES for task in ("classify", "causal", "seq2seq")]
CASES = [
    (name, task)
    for name, task in CASES
    if task == "classify" or ((task == "seq2seq") == (name in ("t5", "bart")) and name not in ENCODERS)
]


@pytest.mark.parametrize(("architecture", "task"), CASES)
@pytest.mark.parametrize("method", [FeatureExtraction(), LastK(k=1)], ids=["feature_extraction", "last_k"])
def test_losses_are_those_of_a_run_without_it(tmp_path, architecture, task, method):
    """With dropout in what trains; 1e-4 is for the last digits in which differently padded batches differ."""
    if method.name == "feature_extraction" and task != "classify":
        pytest.skip("it needs a new head")
    kept = _loop(tmp_path / "kept", architecture, task, method)
    assert kept.frozen.place == "memory", kept.frozen.reason
    kept.fit(_quiet)
    plain = _loop(tmp_path / "plain", architecture, task, method, cache="off")
    plain.fit(_quiet)
    assert len(_losses(kept)) == len(_losses(plain)) > 6
    assert _losses(kept) == pytest.approx(_losses(plain), rel=1e-4)


def test_a_row_goes_through_the_frozen_blocks_once(tmp_path):
    loop = _loop(tmp_path, "bert", "classify", FeatureExtraction())
    seen: list[int] = []
    query = loop.learner.model.bert.encoder.layer[0].attention.self.query
    query.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    loop.fit(_quiet)
    assert loop.state.step == 4 * loop.order.steps_per_epoch
    assert sum(seen) == 24 + 9
    assert max(seen) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_state_a_row_is_kept_where_the_head_reads_one(tmp_path, architecture):
    method = FeatureExtraction()
    plan = _loop(tmp_path, architecture, "classify", method).frozen
    assert plan.position == ("first" if architecture in ENCODERS else "last")
    assert plan.num_bytes == (24 + 9) * 32 * 4
    assert "features of 33 rows, one state a row: 4.1 KiB in memory" in plan.line()


def test_a_head_over_the_mean_of_a_row_gets_all_of_it(tmp_path, monkeypatch):
    config = {**tiny_config("modernbert"), "classifier_pooling": "mean"}
    monkeypatch.setattr("tunesmith.models.tiny.tiny_config", lambda name: config)
    loop = _loop(tmp_path, "modernbert", "classify", FeatureExtraction())
    assert loop.frozen.position == "all"
    loop.fit(_quiet)
    plain = _loop(tmp_path / "plain", "modernbert", "classify", FeatureExtraction(), cache="off")
    plain.fit(_quiet)
    assert _losses(loop) == pytest.approx(_losses(plain), rel=1e-4)


class _Killed(Exception):  # noqa: N818 - it stands for kill -9, which is no error
    pass


@pytest.mark.parametrize(("architecture", "task"), [("bert", "classify"), ("llama", "causal"), ("t5", "seq2seq")])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, architecture, task, place):
    straight = _loop(tmp_path / "straight", architecture, task, LastK(k=1))
    straight.fit(_quiet)
    killed = _loop(tmp_path / "killed", architecture, task, LastK(k=1), cache=place)
    steps = []

    def die_at_the_second(step: int) -> None:
        steps.append(step)
        if len(steps) == 2:
            raise _Killed

    with pytest.raises(_Killed):
        killed.fit(die_at_the_second)
    assert not list((tmp_path / "killed").glob("frozen_states*"))
    resumed = _loop(tmp_path / "killed", architecture, task, LastK(k=1), cache=place)
    assert resumed.restore() == steps[0]
    resumed.fit(_quiet)
    assert resumed.frozen.place == place
    assert _digest(resumed) == _digest(straight)
    assert _losses(resumed) == _losses(straight)


def test_the_model_is_whole_outside_a_loss(tmp_path):
    loop = _loop(tmp_path, "llama", "causal", LastK(k=1))
    ids = torch.arange(5, 12)[None]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            loop.learner.model.eval()
            return loop.learner.model(input_ids=ids).logits

    before = logits()
    during = []
    loop.fit(lambda step: during.append(logits()))
    for block in blocks(loop.learner.model):
        assert "forward" not in vars(block)
    assert not torch.equal(during[0], before)  # the last block has learnt
    assert torch.equal(during[-1], logits())
    assert loop.learner.frozen is None


def test_what_freezes_nothing_keeps_nothing(tmp_path):
    loop = _loop(tmp_path, "bert", "classify", Full())
    assert loop.frozen.place is None
    assert loop.frozen.line() == ""
    assert not (tmp_path / "frozen.json").exists()


def test_an_encoder_decoder_keeps_what_its_encoder_gives(tmp_path):
    model, _ = tiny("t5", "seq2seq")
    assert LastK(k=1).num_frozen_blocks(model) == len(encoder_blocks(model)) + len(blocks(model)) - 1
    loop = _loop(tmp_path, "t5", "seq2seq", LastK(k=1))
    assert loop.frozen.blocks is not None
    assert [*loop.frozen.blocks.blocks] == encoder_blocks(loop.learner.model)


def test_one_epoch_keeps_validation_rows_alone(tmp_path):
    assert len(_loop(tmp_path / "one", "bert", "classify", LastK(k=1), epochs=1.0).frozen.rows) == 9
    assert len(_loop(tmp_path / "two", "bert", "classify", LastK(k=1), epochs=2.0).frozen.rows) == 24 + 9
    once = _loop(tmp_path / "once", "bert", "classify", LastK(k=1), epochs=1.0, validations=1)
    assert once.frozen.place is None


class _Dropping(LastK):
    """Leaves dropout on below, as a method of one's own may."""

    def set_training(self, model) -> None:
        model.train()


def test_dropout_below_is_said(tmp_path):
    line = _loop(tmp_path, "bert", "classify", _Dropping(k=1)).frozen.line()
    assert line == "none: the frozen blocks' dropout is on"


class _Masking(CLM):
    """Another view of a row in every epoch."""

    is_fixed = False


def test_rows_that_change_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "causal", _Masking())
    line = _loop(tmp_path, "llama", "causal", LastK(k=1)).frozen.line()
    assert line.startswith("none: ")
    assert line.endswith("shows the rows differently in every epoch")


def test_blocks_that_hand_down_more_than_states_are_found_out(tmp_path):
    """Of T5's decoder alone, the first block computes the positions that all of them use."""

    class OneOfTheEncoder(LastK):
        def num_frozen_blocks(self, model) -> int:
            return 1

    line = _loop(tmp_path, "t5", "seq2seq", OneOfTheEncoder(k=1)).frozen.line()
    assert line == "none: this model's upper blocks need more of the lower ones than their states"


def _room(monkeypatch, *, memory: int, disk: int) -> None:
    monkeypatch.setattr(frozen, "free_memory_bytes", lambda: memory)
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: SimpleNamespace(free=disk))


def test_it_goes_to_disk_where_memory_is_short_and_says_where_both_are(tmp_path, monkeypatch):
    needed = _loop(tmp_path / "a", "bert", "classify", LastK(k=1)).frozen.num_bytes
    _room(monkeypatch, memory=4 * needed - 1, disk=2 * needed)
    assert _loop(tmp_path / "b", "bert", "classify", LastK(k=1)).frozen.place == "disk"
    _room(monkeypatch, memory=4 * needed - 1, disk=needed - 1)
    none = _loop(tmp_path / "c", "bert", "classify", LastK(k=1)).frozen
    assert none.place is None
    assert "none: features of 33 rows take" in none.line()
    assert "of disk are free" in none.line()
    with pytest.raises(UserError, match="features of 33 rows take") as caught:
        _loop(tmp_path / "d", "bert", "classify", LastK(k=1), cache="disk")
    assert caught.value.code == "no_room"


def test_a_resumed_run_keeps_to_what_it_began_with(tmp_path, monkeypatch):
    needed = _loop(tmp_path / "kept", "bert", "classify", LastK(k=1)).frozen.num_bytes
    _room(monkeypatch, memory=0, disk=0)
    with pytest.raises(UserError, match=r"0\.0 KiB of disk are free") as caught:
        _loop(tmp_path / "kept", "bert", "classify", LastK(k=1))
    assert caught.value.code == "no_room"
    assert _loop(tmp_path / "none", "bert", "classify", LastK(k=1)).frozen.place is None
    _room(monkeypatch, memory=9 * needed, disk=0)
    assert _loop(tmp_path / "none", "bert", "classify", LastK(k=1)).frozen.place is None


def test_the_pass_over_the_rows_is_told(tmp_path):
    events: list[Event] = []
    _loop(tmp_path, "bert", "classify", LastK(k=1), events=events).fit(_quiet)
    told = [event for event in events if isinstance(event, Progress) and event.label == "frozen blocks"]
    assert [(told[-1].done, told[-1].total, told[-1].unit)] == [(33, 33, "row")]
