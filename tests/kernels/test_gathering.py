"""Where examples' states lie while they go through attention: against slices, example by example."""

from __future__ import annotations

import torch

from tunesmith.kernels.gathering import arranged

SPANS = [(0, 0, 3, 0, 3), (0, 3, 12, 3, 12), (0, 12, 20, 12, 20), (1, 2, 11, 2, 11), (0, 0, 0, 0, 0)]
"""Two rows of 20 tokens: examples of 3, 9, 8 and 9 tokens; row 1 has tokens before and after its example."""


def states(heads: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 20, heads, 4, generator=generator).transpose(1, 2)


def test_each_example_lies_in_its_group_head_by_head():
    query, key = states(4), states(2)
    found = arranged(query, key, torch.tensor(SPANS))
    assert [len(group) for group in found.groups] == [3, 1]  # 9, 9 and 8 tokens together, 3 alone
    for gathering, given in ((found.queries, query), (found.keys, key)):
        gathered = gathering.gather(given)
        for number, group in enumerate(found.groups):
            lying = gathering.group(number, gathered)
            for place, (row, first, end, _, _) in enumerate(group):
                assert torch.equal(lying[place, :, : end - first], given[row, :, first:end])
    assert len(found.keys.padding) == 2  # the example of 8 among those of 9, in both heads


def test_states_come_back_to_their_places_and_are_zero_elsewhere():
    query = states(4)
    found = arranged(query, query, torch.tensor(SPANS))
    assert found.queries is found.keys
    back = found.queries.put_back(found.queries.gather(query))
    expected = torch.zeros(2, 20, 4, 4)
    for row, first, end, _, _ in SPANS:
        expected[row, first:end] = query.transpose(1, 2)[row, first:end]
    assert torch.equal(back, expected)


def test_keys_of_another_length_have_places_of_their_own():
    query, key = states(4), states(4)[:, :, :7]
    found = arranged(query, key, torch.tensor([(0, 0, 20, 0, 5), (1, 0, 20, 2, 7)]))
    gathered = found.keys.gather(key)
    assert torch.equal(found.keys.group(0, gathered)[1], key[1, :, 2:7])
    assert found.queries.group(0, found.queries.gather(query)).shape == (2, 4, 20, 4)


def test_no_example_has_no_arrangement():
    query = states(4)
    assert arranged(query, query, torch.tensor([(0, 0, 0, 0, 0)])) is None
