"""Packing and bucketing: every row once, nothing above the budget, little padding."""

from __future__ import annotations

import random

import pytest

from tunesmith.data.pack import MAX_PADDING, bucket, pack


def many_lengths() -> list[tuple[list[int], int]]:
    generator = random.Random(0)
    cases: list[tuple[list[int], int]] = [([], 10), ([5], 3), ([4, 4, 4], 8), ([1] * 50, 7)]
    for _ in range(60):
        top = generator.choice([3, 50, 900])
        lengths = [generator.randint(1, top) for _ in range(generator.randint(1, 200))]
        cases.append((lengths, generator.choice([8, 100, 1024])))
    return cases


@pytest.mark.parametrize("group", [pack, bucket])
def test_every_row_comes_once_and_equal_lengths_give_equal_groups(group) -> None:  # type: ignore[no-untyped-def]
    for lengths, budget in many_lengths():
        groups = group(lengths, budget)
        assert sorted(i for one in groups for i in one) == list(range(len(lengths)))
        assert groups == group(list(lengths), budget)


def test_no_bin_is_above_the_budget_and_a_longer_row_is_alone() -> None:
    for lengths, budget in many_lengths():
        for one in pack(lengths, budget):
            assert sum(lengths[i] for i in one) <= budget or len(one) == 1


def test_bins_are_few() -> None:
    for lengths, budget in many_lengths():
        sizes = [min(length, budget) for length in lengths]
        fewest = -(-sum(sizes) // budget)
        assert len(pack(lengths, budget)) <= max(fewest, 1.23 * max(fewest, sum(s * 2 > budget for s in sizes)) + 1)


def test_best_fit_takes_the_bin_with_least_room() -> None:
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


def test_no_padded_group_is_above_the_budget_or_wastes_more_than_a_tenth() -> None:
    for lengths, budget in many_lengths():
        for one in bucket(lengths, budget):
            padded = max(lengths[i] for i in one) * len(one)
            assert len(one) == 1 or padded <= budget
            assert padded - sum(lengths[i] for i in one) <= MAX_PADDING * padded + 1e-9


def test_rows_of_like_length_share_a_group() -> None:
    assert bucket([10, 3, 10, 3], 20) == [[0, 2], [1, 3]]
