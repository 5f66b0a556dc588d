"""Hold rows out by the hash of their contents: the same row is on the same side in any order and beside any others.

So rows that are added later never move earlier ones from test to train. Repetitions of a row and rows of one group
stay together.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.core.errors import UserError, suggest
from tunesmith.core.records import Example
from tunesmith.data.labels import labels_in


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
    places = sorted((unit_hash(group, seed), group) for group in groups)
    sides: dict[str, str] = {}
    for place, group in places:
        sides[group] = "test" if place < test else "validation" if place < test + validation else "train"
    _fill_empty(sides, [group for _, group in places], validation=validation, test=test)
    _keep_labels(sides, groups, examples)
    chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for group, members in groups.items():
        chosen[sides[group]].extend(members)
    return Sides(*(sorted(chosen[side]) for side in ("train", "validation", "test")))


def unit_hash(text: str, seed: int) -> float:
    """A number from 0 up to 1 that depends only on the text and the seed."""
    digest = hashlib.blake2b(f"{seed}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _groups(examples: Sequence[Example], keys: Sequence[str], column: str) -> list[str]:
    """Each row's group; rows with equal contents join their groups."""
    if not column:
        return list(keys)
    if not any(column in example.fields for example in examples):
        known = sorted({name for example in examples[:100] for name in example.fields})
        hint = suggest(column, known).sentence()
        raise UserError(
            f'no row has the column "{column}" of `data.split.group_by`;',
            code="unknown_column",
            remedy=hint or f"there are: {', '.join(known) or 'no other columns'}.",
        )
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    names = []
    for example, key in zip(examples, keys, strict=True):
        value = example.fields.get(column)
        name = f"group {value}" if value not in (None, "") else f"row {key}"
        a, b = root(name), root(f"row {key}")
        low, high = sorted((a, b))  # the smaller name wins, so the order of the rows does not matter
        parent[high] = low
        names.append(name)
    return [root(name) for name in names]


def _fill_empty(sides: dict[str, str], places: Sequence[str], *, validation: float, test: float) -> None:
    """Give an empty side one group: train before validation before test."""
    wanted = [side for side, share in (("train", 1.0), ("validation", validation), ("test", test)) if share > 0]
    for side in wanted[: len(places)]:
        if side in sides.values():
            continue
        counts = Counter(sides.values())
        donor = max((name for name in counts if counts[name] > 1), key=lambda name: counts[name], default="")
        if not donor:
            donor = next((name for name in ("test", "validation") if counts[name]), "")
        group = next((name for name in places if sides[name] == donor), None)
        if group is not None:
            sides[group] = side


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
