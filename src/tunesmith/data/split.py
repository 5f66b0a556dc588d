"""Hold rows out by the hash of their contents: the same row is on the same side in any order and beside any others.

So rows that are added later never move earlier ones from test to train. Repetitions of a row and rows of one group
stay together.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tunesmith.core.errors import UserError, suggest
from tunesmith.core.records import Example
from tunesmith.data.labels import labels_in

_Group = TypeVar("_Group", tuple[float, str], int)
"""Groups of which the smaller has the smaller place."""


@dataclass(frozen=True)
class Sides:
    """Indices of the rows of each side, in order."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split(
    examples: Sequence[Example],
    keys: Sequence[str],
    *,
    validation: float,
    test: float,
    group_by: str = "",
    seed: int,
) -> Sides:
    """Rows of each side. A side with a share gets at least one group if there are enough; train always does.

    Raises:
        UserError: No row has the column `group_by`.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(_groups(examples, keys, group_by)):
        groups[group].append(i)
    by_side: dict[str, list[tuple[float, str]]] = {"train": [], "validation": [], "test": []}
    for place, group in sorted((unit_hash(group, seed), group) for group in groups):
        side = "test" if place < test else "validation" if place < test + validation else "train"
        by_side[side].append((place, group))
    sides = {group: side for side, placed in by_side.items() for _, group in placed}
    counts = {side: len(placed) for side, placed in by_side.items()}
    sides |= {group: side for (_, group), side in to_empty_sides(by_side, counts, validation, test).items()}
    _keep_labels(sides, groups, examples)
    chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for group, members in groups.items():
        chosen[sides[group]].extend(members)
    return Sides(*(sorted(chosen[side]) for side in ("train", "validation", "test")))


def unit_hash(text: str, seed: int) -> float:
    """A number from 0 up to 1 that depends only on the text and the seed."""
    digest = hashlib.blake2b(f"{seed}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def group_name(example: Example, column: str) -> str:
    """The name of the group that a row's column says; "" where it says none."""
    value = example.fields.get(column)
    return f"group {value}" if value not in (None, "") else ""


def row_name(key: str) -> str:
    """The name, where there are groups, of what keeps rows without one together."""
    return f"row {key}"


def refuse_column(examples: Sequence[Example], column: str) -> UserError:
    """What to say where none of these rows has the column that groups them."""
    known = sorted({name for example in examples[:100] for name in example.fields})
    hint = suggest(column, known).sentence()
    return UserError(
        f'no row has the column "{column}" of `data.split.group_by`;',
        code="unknown_column",
        remedy=hint or f"there are: {', '.join(known) or 'no other columns'}.",
    )


def to_empty_sides(
    first: Mapping[str, Sequence[_Group]], counts: Mapping[str, int], validation: float, test: float
) -> dict[_Group, str]:
    """Groups that empty sides get, one each: train before validation before test.

    `first` are each side's first groups in the order of their places, as many as there are sides or more; `counts` are
    all groups of each side.
    """
    wanted = [side for side, share in (("train", 1.0), ("validation", validation), ("test", test)) if share > 0]
    left, number = {side: list(first[side][: len(counts)]) for side in counts}, dict(counts)
    moved: dict[_Group, str] = {}
    for side in wanted[: sum(counts.values())]:
        if number[side]:
            continue
        in_order = sorted((name for name in number if number[name]), key=lambda name: left[name][0])
        donor = max((name for name in in_order if number[name] > 1), key=lambda name: number[name], default="")
        donor = donor or next((name for name in ("test", "validation") if number[name]), "")
        if donor:
            left[side].append(left[donor].pop(0))
            moved[left[side][0]] = side
            number[donor], number[side] = number[donor] - 1, 1
    return moved


def _groups(examples: Sequence[Example], keys: Sequence[str], column: str) -> list[str]:
    """Each row's group; rows with equal contents join their groups."""
    if not column:
        return list(keys)
    if not any(column in example.fields for example in examples):
        raise refuse_column(examples, column)
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    names = []
    for example, key in zip(examples, keys, strict=True):
        name = group_name(example, column) or row_name(key)
        a, b = root(name), root(row_name(key))
        low, high = sorted((a, b))  # the smaller name wins, so the order of the rows does not matter
        parent[high] = low
        names.append(name)
    return [root(name) for name in names]


def _keep_labels(sides: dict[str, str], groups: dict[str, list[int]], examples: Sequence[Example]) -> None:
    """Move the last group of a label that train would lack back into train."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for group, members in groups.items():
        for label in {label for i in members for label in labels_in(examples[i])}:
            by_label[label].append(group)
    for _, holders in sorted(by_label.items()):
        if not any(sides[group] == "train" for group in holders):
            order = {"validation": 0, "test": 1}
            sides[min(holders, key=lambda group: (order[sides[group]], group))] = "train"
