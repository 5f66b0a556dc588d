"""Which rows of large files train, validate and test: the outcome of `repeats.without_repeats` and `split.split`.

One number a row is in memory; the rest is read in blocks and sorted in buckets. Only rows that repeat others, and rows
of classes that the training side would lack, are looked at together.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import Emit
from tunesmith.core.records import Example
from tunesmith.data.findings import Findings
from tunesmith.data.groups import LEFT_OUT, Groups
from tunesmith.data.near import near_repeats_on_disk
from tunesmith.data.repeats import normalise, note_duplicate, note_leaks, note_near_duplicate, question_of
from tunesmith.data.scan import BLOCK, Hashes, Rows, Scan
from tunesmith.data.split import to_empty_sides
from tunesmith.data.spool import NotLarge
from tunesmith.recipe import DataSettings

SIDES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = 0, 1, 2


class Division:
    """The side of each row: `LEFT_OUT`, or its place in `SIDES`."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.side_of = np.zeros(len(scan), np.int8)
        """[N]"""
        self._shares: list[tuple[float, float]] = []
        """Of validation and test rows: all that some file has (`divide`)."""
        self._share_of_file = np.zeros(0, np.int64)

    def leave_out_repeats(self, found: Findings) -> None:
        """Leave out the rows that repeat an earlier one; they are noted."""
        pairs = [np.zeros((2, 0), np.int64)]
        for rows, hashes in self._scan.buckets("key", "other"):
            order = np.lexsort(hashes[::-1])  # stable: of equal rows the first stays first
            is_new = np.ones(len(order), dtype=bool)
            keys, others = (one[order] for one in hashes)
            is_new[1:] = (keys[1:] != keys[:-1]) | (others[1:] != others[:-1])
            begins, again = np.flatnonzero(is_new), np.flatnonzero(~is_new)
            earlier = order[begins[np.searchsorted(begins, again) - 1]]
            pairs.append(np.stack((rows[order[again]], rows[earlier])))
        repeats, firsts = np.concatenate(pairs, axis=1)
        self.side_of[repeats] = LEFT_OUT
        in_order = np.argsort(repeats)
        origins = (self._scan.origins(rows[in_order]) for rows in (repeats, firsts))
        for origin, first in zip(*origins, strict=True):
            note_duplicate(found, origin, first)

    def leave_out_near_repeats(self, found: Findings, emit: Emit) -> None:
        """Leave out the rows that are nearly an earlier one; they are noted."""
        repeats, earlier, similarities = array("q"), array("q"), array("d")
        for repeat in near_repeats_on_disk(self._scan, self.side_of != LEFT_OUT, emit):
            repeats.append(repeat.row)
            earlier.append(repeat.earlier)
            similarities.append(repeat.similarity)
        self.side_of[np.asarray(repeats, np.int64)] = LEFT_OUT
        origins = (self._scan.origins(np.asarray(rows, np.int64)) for rows in (repeats, earlier))
        for origin, first, similarity in zip(*origins, similarities, strict=True):
            note_near_duplicate(found, origin, first, similarity)

    def divide(self) -> None:
        """Give each row that is not left out its side.

        Raises:
            UserError: No row has the column `data.split.group_by`.
            NotLarge: There is none.
        """
        num_rows = int(np.count_nonzero(self.side_of != LEFT_OUT))
        shares = [_shares(reading.settings, num_rows) for reading in self._scan.readings]
        self._shares = sorted(set(shares))
        self._share_of_file = np.asarray([self._shares.index(share) for share in shares])
        groups = Groups(self._scan, self.side_of, self._share_of_file)
        counts = np.zeros((len(self._shares), len(SIDES)), np.int64)
        for start, share, of in groups.blocks():
            wished = self._wished(share, of)
            sides = self.side_of[start : start + len(wished)]
            is_kept = sides != LEFT_OUT
            sides[is_kept] = wished[is_kept]
            np.add.at(counts, (share[is_kept], wished[is_kept]), 1)
        if not counts.any():
            raise NotLarge("there are none")
        for number, wanted in enumerate(self._shares):
            if not counts[number][[TRAIN, *(side for side, share in enumerate(wanted, 1) if share)]].all():
                self._fill_empty(number, groups)
            self._keep_labels(number, groups)

    def rows(self, side: int) -> Iterator[Rows]:
        """The numbers of a side's rows, in order, in parts."""
        for start, _ in self._scan.blocks():
            yield start + np.flatnonzero(self.side_of[start : start + BLOCK] == side)

    def note_leaks(self, held_out: Sequence[Example], found: Findings) -> None:
        """Note training rows that ask what held-out rows ask."""
        asked = {self._scan.name_hash(normalise(question_of(example))) for example in held_out}
        wanted = np.asarray(sorted(asked), dtype=np.uint64)
        suspects = [np.zeros(0, np.int64)]
        for start, (questions,) in self._scan.blocks("question"):
            is_trained = self.side_of[start : start + len(questions)] == TRAIN
            suspects.append(start + np.flatnonzero(is_trained & np.isin(questions, wanted)))
        note_leaks(self._scan.examples(np.concatenate(suspects)), held_out, found)

    def _wished(self, shares: NDArray[np.int64], groups: Hashes) -> NDArray[np.int64]:
        """The sides on which these groups are by their places."""
        place = groups.astype(np.float64) / 2**64  # as `unit_hash`
        validation, test = np.asarray(self._shares)[shares].T
        return np.where(place < test, TEST, np.where(place < test + validation, VALIDATION, TRAIN))

    def _fill_empty(self, share: int, groups: Groups) -> None:
        """Give an empty side a group, as `split` does."""
        first: dict[str, list[int]] = {name: [] for name in SIDES}
        counts = dict.fromkeys(SIDES, 0)
        for rows, shares, of in groups.buckets():
            mine = np.unique(of[(shares == share) & (self.side_of[rows] != LEFT_OUT)])
            wished = self._wished(np.full(len(mine), share), mine)
            for side, name in enumerate(SIDES):
                here = mine[wished == side]
                counts[name] += len(here)
                first[name] = sorted((*first[name], *here[: len(SIDES)].tolist()))[: len(SIDES)]
        for group, name in to_empty_sides(first, counts, *self._shares[share]).items():
            self._put(share, groups, [group], SIDES.index(name))

    def _keep_labels(self, share: int, groups: Groups) -> None:
        """Move the last group of a label that train would lack back into train, as `split` does."""
        sets = list(self._scan.label_sets)
        counts = np.zeros((2, len(sets)), np.int64)
        for start, (file_of, numbers) in self._scan.blocks("file_of", "labels"):
            sides = self.side_of[start : start + len(numbers)]
            is_here = (self._share_of_file[file_of] == share) & (sides != LEFT_OUT)
            counts[0] += np.bincount(numbers[is_here], minlength=len(sets))
            counts[1] += np.bincount(numbers[is_here & (sides == TRAIN)], minlength=len(sets))
        with_label: dict[str, list[int]] = {}
        for number in np.flatnonzero(counts[0]).tolist():
            for label in sets[number]:
                with_label.setdefault(label, []).append(number)
        lacking = {label: numbers for label, numbers in with_label.items() if not counts[1][numbers].any()}
        if lacking:
            self._move_to_train(share, groups, lacking)

    def _move_to_train(self, share: int, groups: Groups, lacking: dict[str, list[int]]) -> None:
        wanted = sorted({number for numbers in lacking.values() for number in numbers})
        parts: list[tuple[NDArray[Any], ...]] = []
        for start, shares, of in groups.blocks():
            numbers = self._scan.take("labels", np.arange(start, start + len(of)))
            is_here = (shares == share) & np.isin(numbers, wanted)
            mine = np.flatnonzero(is_here & (self.side_of[start : start + len(of)] != LEFT_OUT))
            parts.append((start + mine, numbers[mine], of[mine]))
        rows, numbers, of_row = (np.concatenate(part) for part in zip(*parts, strict=True))
        names = groups.names(share, rows, of_row)
        sides, moved = self.side_of[rows], []
        for _, sets in sorted(lacking.items()):
            holders = np.flatnonzero(np.isin(numbers, sets))
            if (sides[holders] == TRAIN).any():
                continue  # it came with a group that was moved for another label
            _, _, last = min((int(sides[holder]), names[holder], holder) for holder in holders.tolist())
            moved.append(int(of_row[last]))
            sides[of_row == of_row[last]] = TRAIN
        self._put(share, groups, moved, TRAIN)

    def _put(self, share: int, groups: Groups, moved: Sequence[int], side: int) -> None:
        """Give the rows of some groups another side."""
        wanted = np.asarray(moved, np.uint64)
        for start, shares, of in groups.blocks():
            part = self.side_of[start : start + len(of)]
            part[np.isin(of, wanted) & (shares == share) & (part != LEFT_OUT)] = side


def _shares(settings: DataSettings, num_rows: int) -> tuple[float, float]:
    """The shares of validation and of test rows; a side with a file of its own has none."""
    validation = 0.0 if settings.validation else settings.validation_share(num_rows)
    return validation, 0.0 if settings.test else settings.split.test
