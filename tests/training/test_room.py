"""Memory that runs out in training and validation, and how many blocks are computed again from the start."""

from __future__ import annotations

import pytest
import torch

from made_training import loop_in, make_learner, make_loop, make_rows
from narrow import Narrow
from tunesmith.core.errors import UserError
from tunesmith.core.events import Warning
from tunesmith.core.plugins import build
from tunesmith.kernels.recompute import Kept
from tunesmith.methods.full import Full
from tunesmith.methods.lora import LoRA
from tunesmith.models.anatomy import blocks
from tunesmith.models.tiny import tiny
from tunesmith.training.choices import choices
from tunesmith.training.recompute import choose_recompute, refuse_recompute, trial_group

MB = 1 << 20


def _loop(folder, events=None, **settings):
    wanted = {"steps": 3, "tokens_per_step": 160, "micro_tokens": 160, "lr": 1e-2, "validations": 1, "patience": 0}
    learner = make_learner(Full(), "llama", build("objectives", "clm"))
    rows = make_rows(learner.objective, tiny("llama")[1])
    emit = (lambda event: None) if events is None else events.append
    return loop_in(folder, learner, rows, rows, {**wanted, "keep": "last", **settings}, emit)


def _warnings(events):
    return [event for event in events if isinstance(event, Warning) and event.code == "out_of_memory"]


def test_blocks_are_recomputed_first_where_micro_batches_are_small_and_nothing_else_changes(tmp_path):
    """Dropout on: the step that was tried again is the step that would have been, bit for bit."""
    loops, events = {}, []
    for name in ("roomy", "tight"):
        loop = loops[name] = _loop(tmp_path / name, events if name == "tight" else None)
        for module in loop.learner.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        torch.manual_seed(7)
        if name == "roomy":
            loop.fit(lambda step: None)
        else:
            with Narrow(loop.learner.model, 30, only_training=True, until_recomputed=True):
                loop.fit(lambda step: None)
    assert loops["tight"].state.num_recomputed == 3 and loops["tight"].state.micro_tokens == 160
    assert all(torch.equal(one, loops["roomy"].tensors[name]) for name, one in loops["tight"].tensors.items())
    (warning,) = _warnings(events)
    assert "computes all 3 blocks again" in warning.message and warning.values["recomputed_blocks"] == 3
    assert "forward" not in vars(blocks(loops["tight"].learner.model)[0])  # blocks are as they were


def test_the_micro_batch_halves_and_the_step_stays(tmp_path):
    events = []
    roomy, tight = _loop(tmp_path / "roomy"), _loop(tmp_path / "tight", events, recompute="none")
    largest = int(tight.rows.lengths.sum())
    roomy.fit(lambda step: None)
    with Narrow(tight.learner.model, largest - 1, only_training=True) as narrow:
        tight.fit(lambda step: None)
    assert tight.state.micro_tokens == largest // 2 and tight.state.num_recomputed == 0
    assert max(narrow.sizes) < largest
    (warning,) = _warnings(events)
    assert warning.message == f"memory ran out: from now on {largest // 2} tokens at once; steps stay the same"
    assert tight.state.times_out_of_memory == 1
    for name, tensor in tight.tensors.items():
        torch.testing.assert_close(tensor, roomy.tensors[name], rtol=1e-3, atol=1e-4)


def test_large_micro_batches_halve_before_blocks_are_recomputed(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.training.room.SMALL", 20)
    loop = _loop(tmp_path)
    with Narrow(loop.learner.model, int(loop.rows.lengths.sum()) - 1, only_training=True):
        loop.fit(lambda step: None)
    assert loop.state.num_recomputed == 0 and loop.state.micro_tokens < 160


def test_one_row_that_does_not_fit_ends_the_run_with_a_remedy(tmp_path):
    loop = _loop(tmp_path, recompute="none")
    with Narrow(loop.learner.model, 3, only_training=True), pytest.raises(UserError) as caught:
        loop.fit(lambda step: None)
    assert caught.value.code == "out_of_memory" and "a single row of" in caught.value.message
    assert "train.recompute=all" in caught.value.remedy and "method=lora" in caught.value.remedy


def test_other_faults_are_not_taken_for_it(tmp_path):
    loop = _loop(tmp_path)
    broken = blocks(loop.learner.model)[0]
    broken.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("mat1 and mat2 cannot be multiplied"))
    )
    with pytest.raises(RuntimeError, match="mat1"):
        loop.update(range(4), 1e-3)


def test_validation_goes_on_with_smaller_batches(tmp_path):
    events = []
    loop = _loop(tmp_path, events)
    before = loop.validate()
    with Narrow(loop.learner.model, int(loop.rows.lengths.sum()) - 1) as narrow:
        after = loop.validate()
        calls = len(narrow.sizes)
        loop.validate()
        assert len(narrow.sizes) == 2 * calls  # it is not tried in vain again
    assert after.loss == pytest.approx(before.loss, rel=1e-5) and after.weight == before.weight
    assert len(_warnings(events)) == 1 and "in validation" in _warnings(events)[0].message
    assert loop.state.held_out_tokens == int(loop.rows.lengths.sum()) // 2


@pytest.mark.parametrize("method", [Full(), LoRA(dropout=0.1)])
def test_recomputed_runs_are_the_same_run(method, tmp_path):
    runs = {}
    for number in (0, 2):
        torch.manual_seed(1)
        loop = make_loop(tmp_path / str(number), method, "llama", "clm", recompute=number)
        loop.fit(lambda step: None)
        runs[number] = loop
        assert loop.state.num_recomputed == number
    assert all(torch.equal(one, runs[0].tensors[name]) for name, one in runs[2].tensors.items())


def test_a_resumed_run_goes_on_with_what_memory_asked_for(tmp_path):
    loop = _loop(tmp_path, steps=2)
    with Narrow(loop.learner.model, 30, only_training=True, until_recomputed=True):
        loop.fit(lambda step: None)
    again = _loop(tmp_path, steps=4)
    assert again.restore() == 2
    assert again.state.num_recomputed == 3 and again.state.times_out_of_memory == 1


def _kept(number=4):
    return Kept(blocks=(100 * MB,) * number, inputs=(10 * MB,) * number, rest=50 * MB, copies=0)


def _choose(free, wish="auto", to_come=150 * MB):
    return choose_recompute(wish, 4, probe=_kept, free=lambda: free * MB, to_come=to_come)


def test_only_as_many_blocks_as_needed():
    """Needed: 150 to come + 50 rest + 4 blocks of 100 + 100 for one block's own work = 700 MiB, of 90 % of the room."""
    assert _choose(778).value == 0
    assert _choose(777).value == 1  # 90 MiB less
    assert _choose(678).value == 1 and _choose(677).value == 2
    assert _choose(100).value == 4
    assert _choose(777).why == "a step would take 0.7 GiB and 0.8 GiB are free; so it takes 0.6 GiB"
    assert "may not fit" in _choose(100).why


def test_a_wish_is_granted_without_a_trial():
    def never():
        raise AssertionError("tried")

    for wish, number in (("none", 0), (0, 0), ("all", 4), (3, 3), (9, 4)):
        assert choose_recompute(wish, 4, probe=never, free=never, to_come=0).value == number


def test_the_choice_is_kept_in_the_run(tmp_path):
    loop = make_loop(tmp_path, Full(), "llama", "clm")
    kept = choices(loop.run)["recompute"]
    assert kept.value == 0 and "free" in kept.why
    assert loop.room.choice == kept


def test_a_trial_takes_no_random_numbers_and_leaves_no_gradients(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loop = make_loop(tmp_path, LoRA(dropout=0.5), "llama", "clm")
    assert loop.room.choice.value == 0
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    make_learner(LoRA(dropout=0.5), "llama", build("objectives", "clm"))
    assert torch.equal(drawn, torch.get_rng_state()) and not torch.equal(before, drawn)
    assert all(tensor.grad is None for tensor in loop.tensors.values())


def test_the_trial_is_the_longest_row_of_the_largest_group():
    lengths = [3, 9, 5, 8, 2]
    assert trial_group([(0, 1), (2, 3)], lengths, is_packed=False) == (1, 2.0)
    assert trial_group([(0, 1), (2, 3)], lengths, is_packed=True) == (3, 13 / 8)


def test_a_prefix_is_refused():
    learner = make_learner(build("methods", "prefix_tuning"), "llama", build("objectives", "clm"))
    refuse_recompute(learner.model, "auto")
    with pytest.raises(UserError, match="its prefix is a cache"):
        refuse_recompute(learner.model, "all")


def test_blocks_above_replayed_ones_are_recomputed(tmp_path):
    """Of last_k the frozen blocks are replayed from kept states; the others may be computed again."""
    runs = {}
    for number in (0, "all"):
        torch.manual_seed(1)
        method = build("methods", {"name": "last_k", "k": 2})
        loop = make_loop(tmp_path / str(number), method, "llama", "clm", recompute=number, steps=8, tokens_per_step=64)
        assert loop.frozen.place == "memory"
        loop.fit(lambda step: None)
        runs[number] = loop
    assert runs["all"].state.num_recomputed == 2
    assert all(torch.equal(one, runs[0].tensors[name]) for name, one in runs["all"].tensors.items())
