from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.recipe import TrainSettings
from tunesmith.training.order import Order, Stratum, micro_batches, tokens_at_once

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


def _order(lengths, tokens_per_step=500, epochs=2.0, seed=3, is_packed=True) -> Order:
    return Order.plan(lengths, TrainSettings(tokens_per_step=tokens_per_step, epochs=epochs), seed, is_packed=is_packed)


def test_a_micro_batch_has_as_many_bytes_of_states_in_either_precision() -> None:
    many, few = TrainSettings(tokens_per_step=65_536), TrainSettings(tokens_per_step=512)
    assert tokens_at_once(many, "cpu", "bf16") == 2 * tokens_at_once(many, "cpu", "fp32") == 2048
    assert tokens_at_once(many, "cuda", "bf16") == tokens_at_once(many, "cuda", "fp32") == 8192
    assert tokens_at_once(few, "cpu", "bf16") == 2048
    assert tokens_at_once(many.model_copy(update={"micro_tokens": 300}), "cpu", "fp32") == 300


def test_a_step_that_goes_at_once_is_not_halved_for_a_few_tokens_above_the_mean() -> None:
    lengths = [100] * 40 + [150] * 40
    plan = TrainSettings(tokens_per_step=1000, epochs=1)
    order = Order.plan(lengths, plan, 3, is_packed=True)
    budget = tokens_at_once(plan, "cpu", "bf16")
    steps = [order.rows(step) for step in range(order.num_steps)]
    assert any(sum(lengths[row] for row in rows) > 1000 for rows in steps)
    assert all(len(micro_batches(rows, lengths, budget, is_packed=True)) == 1 for rows in steps)


@given(LENGTHS, st.integers(1, 2000), st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_epoch_reads_every_row_once(lengths, tokens_per_step, is_packed):
    order = _order(lengths, tokens_per_step, is_packed=is_packed)
    for epoch in range(2):
        steps = [order.rows(epoch * order.steps_per_epoch + index) for index in range(order.steps_per_epoch)]
        assert all(steps)
        assert sorted(row for step in steps for row in step) == list(range(len(lengths)))


def test_steps_hold_nearly_equal_tokens():
    lengths = np.random.default_rng(0).integers(5, 60, size=2000).tolist()
    order = _order(lengths, tokens_per_step=1000)
    tokens = [sum(lengths[row] for row in order.rows(step)) for step in range(order.steps_per_epoch)]
    assert max(tokens) - min(tokens) <= 2 * 60


def test_a_step_depends_on_its_number_and_the_seed_alone():
    lengths = list(range(1, 50))
    assert _order(lengths).rows(7) == _order(lengths).rows(7)
    assert _order(lengths).rows(0) != _order(lengths, seed=4).rows(0)
    first, second = (_order(lengths, tokens_per_step=10**6).rows(epoch) for epoch in (0, 1))
    assert first != second and sorted(first) == sorted(second)


def test_steps_overrule_epochs():
    def num_steps(num_rows: int, **settings) -> int:
        return Order.plan([10] * num_rows, TrainSettings(tokens_per_step=20, **settings), 1, is_packed=True).num_steps

    assert num_steps(8, steps=5, epochs=100) == 5
    assert num_steps(8, epochs=2.5) == 10
    assert num_steps(1, epochs=0.01) == 1


def test_padded_steps_hold_rows_of_like_length_and_so_need_few_micro_batches():
    lengths = np.random.default_rng(0).integers(5, 40, size=3000).tolist()
    counts = {}
    for is_packed in (True, False):
        order = _order(lengths, tokens_per_step=1000, is_packed=is_packed)
        steps = [order.rows(step) for step in range(order.steps_per_epoch)]
        counts[is_packed] = sum(len(micro_batches(step, lengths, 2048, is_packed=False)) for step in steps)
        tokens = [sum(lengths[row] for row in step) for step in steps]
        assert max(tokens) - min(tokens) <= 2 * 40
    assert counts[False] < 2 * order.steps_per_epoch < 4 * order.steps_per_epoch < counts[True]


def test_steps_of_long_and_short_rows_come_in_random_order():
    lengths = np.random.default_rng(0).integers(5, 40, size=3000).tolist()
    order = _order(lengths, tokens_per_step=1000, is_packed=False)
    means = [np.mean([lengths[row] for row in order.rows(step)]) for step in range(16)]
    assert means != sorted(means)


@pytest.mark.parametrize("is_packed", [True, False])
def test_micro_batches_hold_every_row_of_the_step_once(is_packed):
    lengths = np.random.default_rng(1).integers(5, 90, size=40).tolist()
    rows = (3, 9, 1, 30, 22, 7, 8)
    groups = micro_batches(rows, lengths, 120, is_packed=is_packed)
    assert sorted(row for group in groups for row in group) == sorted(rows)
    for group in groups:
        size = sum(lengths[row] for row in group)
        padded = max(lengths[row] for row in group) * len(group)
        assert len(group) == 1 or (size if is_packed else padded) <= 120


def _strata_order(sizes, copies, tokens_per_step=100, packed=(True, False)) -> Order:
    lengths = [5] * sum(sizes)
    first = 0
    strata = []
    for size, times, is_packed in zip(sizes, copies, packed, strict=True):
        strata.append(Stratum(tuple(range(first, first + size)), is_packed, times))
        first += size
    return Order.plan(lengths, TrainSettings(tokens_per_step=tokens_per_step, epochs=3), 7, strata=strata)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(1, 4), st.integers(5, 400))
@settings(deadline=None, max_examples=60)
def test_every_source_is_read_as_often_as_it_should_and_no_step_is_empty(one, other, copies, tokens_per_step):
    order = _strata_order((one, other), (1.0, copies), tokens_per_step)
    for epoch in range(2):
        steps = [order.rows(epoch * order.steps_per_epoch + index) for index in range(order.steps_per_epoch)]
        assert all(steps)
        reads = Counter(row for step in steps for row in step)
        assert [reads[row] for row in range(one)] == [1] * one
        counts = [reads[row] for row in range(one, one + other)]
        assert sum(counts) == round(copies * other)
        assert set(counts) <= {int(copies), int(copies) + 1}


def test_every_step_has_every_source_in_its_share():
    order = _strata_order((300, 100), (1.0, 1.0))
    for step in range(order.steps_per_epoch):
        rows = order.rows(step)
        assert sum(row < 300 for row in rows) == pytest.approx(15, abs=1)
        assert sum(row >= 300 for row in rows) == pytest.approx(5, abs=1)


def test_a_part_of_a_copy_is_drawn_anew_in_every_epoch():
    order = _strata_order((40, 40), (1.0, 1.5), tokens_per_step=10**6)
    first, second = (Counter(order.rows(epoch)) for epoch in (0, 1))
    twice = [{row for row, reads in epoch.items() if reads == 2} for epoch in (first, second)]
    assert [len(rows) for rows in twice] == [20, 20] and twice[0] != twice[1]


def test_a_source_with_few_rows_is_spread_over_the_steps():
    order = _strata_order((200, 4), (1.0, 1.0), tokens_per_step=50)
    holds = [step for step in range(order.steps_per_epoch) if any(row >= 200 for row in order.rows(step))]
    assert len(holds) == 4
    gaps = np.diff(holds)
    assert gaps.max() - gaps.min() <= 1


def test_steps_of_padded_rows_weigh_the_same_whatever_their_lengths():
    """A classifier's loss is divided by rows: with steps of equal tokens a row of 80 tokens would count tenfold."""
    lengths = [8] * 400 + [80] * 100
    order = Order.plan(lengths, TrainSettings(tokens_per_step=700, epochs=1), 3, weights=[1.0] * len(lengths))
    steps = [order.rows(step) for step in range(order.num_steps)]
    assert sorted(row for step in steps for row in step) == list(range(500))
    sizes = [len(step) for step in steps]
    assert order.num_steps == 16
    assert max(sizes) - min(sizes) <= 2
