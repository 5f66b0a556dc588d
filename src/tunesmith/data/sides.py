"""Which rows of large files train, validate and test: the outcome of `repeats.without_repeats` and `split.split`.

One number a row is in memory; the rest is read in blocks and sorted in buckets. Only rows that repeat others, and rows
of classes that the training side would lack, are looked at together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.records import Example
from tunesmith.data.findings import Findings
from tunesmith.data.repeats import content_key, normalise, note_duplicate, note_leaks, question_of
from tunesmith.data.scan import BLOCK, Rows, Scan, hash_of
from tunesmith.data.shots import note_few_shots
from tunesmith.data.spool import NotLarge
from tunesmith.recipe import DataSettings

SIDES = ("train", "validation", "test")
LEFT_OUT, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
Hashes = NDArray[np.uint64]


class Division:
    """The side of each row: `LEFT_OUT`, or its place in `SIDES`."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.side_of = np.zeros(len(scan), np.int8)
        """[N]"""
        shares = [_shares(reading.settings) for reading in scan.readings]
        self._shares = sorted(set(shares))
        self._share_of_file = np.asarray([self._shares.index(share) for share in shares])
        self._common: Hashes = np.zeros(0, np.uint64)

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

    def divide(self) -> None:
        """Give each row that is not left out its side.

        Raises:
            NotLarge: A side with a share would be empty; then `split` gives it a row.
        """
        self._common = self._common_questions()
        shares = np.asarray(self._shares)
        counts = np.zeros(len(shares) * len(SIDES), np.int64)
        for start, (file_of, questions, keys) in self._scan.blocks("file_of", "question", "key"):
            groups, _ = self._groups(questions, keys)
            place, share = groups.astype(np.float64) / 2**64, self._share_of_file[file_of]
            validation, test = shares[share].T
            wished = np.where(place < test, TEST, np.where(place < test + validation, VALIDATION, TRAIN))
            sides = self.side_of[start : start + len(wished)]
            is_kept = sides != LEFT_OUT
            sides[is_kept] = wished[is_kept]
            counts += np.bincount((share * len(SIDES) + wished)[is_kept], minlength=len(counts))
        for found, wanted in zip(counts.reshape(-1, len(SIDES)), self._shares, strict=True):
            if found.any() and not found[[TRAIN, *(side for side, share in enumerate(wanted, 1) if share)]].all():
                raise NotLarge("there are so few that a side would be empty")
        if not counts.any():
            raise NotLarge("there are none")
        for number in range(len(shares)):
            self._keep_labels(number)

    def rows(self, side: int) -> Iterator[Rows]:
        """The numbers of a side's rows, in order, in parts."""
        for start, _ in self._scan.blocks():
            yield start + np.flatnonzero(self.side_of[start : start + BLOCK] == side)

    def note_leaks(self, held_out: Sequence[Example], found: Findings) -> None:
        """Note training rows that ask what held-out rows ask."""
        asked = {hash_of(normalise(question_of(example)), self._scan.split_seed) for example in held_out}
        wanted = np.asarray(sorted(asked), dtype=np.uint64)
        suspects = [np.zeros(0, np.int64)]
        for start, (questions,) in self._scan.blocks("question"):
            is_trained = self.side_of[start : start + len(questions)] == TRAIN
            suspects.append(start + np.flatnonzero(is_trained & np.isin(questions, wanted)))
        note_leaks(self._scan.examples(np.concatenate(suspects)), held_out, found)

    def shots(self, shots: int, found: Findings) -> Rows:
        """So many training rows of each class of each source, in order: the outcome of `draw_shots`.

        The best of a class are among the best of each set of classes that holds it, so only those are in memory.
        """
        names = list(dict.fromkeys(reading.source_name for reading in self._scan.readings))
        source_of = np.asarray([names.index(reading.source_name) for reading in self._scan.readings])
        sets = list(self._scan.label_sets)
        counts, firsts = np.zeros((2, len(names) * len(sets)), np.int64)
        best = np.zeros((2, 0), np.int64)  # the number of source and set, and the row
        places = np.zeros(0)
        for rows in self.rows(TRAIN):
            kinds = source_of[self._scan.take("file_of", rows)] * len(sets) + self._scan.take("labels", rows)
            here, first = np.unique(kinds, return_index=True)
            is_new = counts[here] == 0
            firsts[here[is_new]] = rows[first[is_new]]
            counts += np.bincount(kinds, minlength=len(counts))
            best = np.concatenate((best, np.stack((kinds, rows))), axis=1)
            places = np.concatenate((places, self._scan.take("shots", rows).astype(np.float64) / 2**64))
            order = np.lexsort((best[1], places, best[0]))
            best, places = best[:, order], places[order]
            rank = np.arange(len(places)) - np.searchsorted(best[0], best[0])
            best, places = best[:, rank < shots], places[rank < shots]
        present = np.flatnonzero(counts)
        members: dict[tuple[int, str], list[int]] = {}
        for kind in present[np.argsort(firsts[present])].tolist():
            for label in sets[kind % len(sets)] or ("",):
                members.setdefault((kind // len(sets), label), []).append(kind)
        chosen: set[int] = set()
        for (_, label), kinds_of in members.items():
            mine = np.flatnonzero(np.isin(best[0], kinds_of))
            drawn = mine[np.lexsort((best[1][mine], places[mine]))[:shots]]
            chosen.update(best[1][drawn].tolist())
            if (count := int(counts[kinds_of].sum())) < shots:
                (origin,) = self._scan.origins(firsts[kinds_of[:1]])
                note_few_shots(found, label, count, shots, origin)
        return np.asarray(sorted(chosen), np.int64)

    def limited(self, limit: int, parts: Iterable[Rows]) -> Rows:
        """So many of these rows, the first by the hash of their contents."""
        best, places = np.zeros(0, np.int64), np.zeros(0)
        for rows in parts:
            more = self._scan.take("limit", rows).astype(np.float64) / 2**64  # as `unit_hash`
            best, places = np.concatenate((best, rows)), np.concatenate((places, more))
            order = np.argsort(places, kind="stable")[:limit]
            best, places = best[order], places[order]
        return best

    def _common_questions(self) -> Hashes:
        """Questions of more than 1 % of the rows say nothing about them."""
        most = max(10, int(np.count_nonzero(self.side_of != LEFT_OUT)) // 100)
        found = [np.zeros(0, np.uint64)]
        for rows, (questions,) in self._scan.buckets("question"):
            ordered = np.sort(questions[self.side_of[rows] != LEFT_OUT])
            found.append(np.unique(ordered[most:][ordered[most:] == ordered[:-most]]))
        return np.concatenate(found)

    def _groups(self, questions: Hashes, keys: Hashes) -> tuple[Hashes, NDArray[np.bool_]]:
        """What keeps rows on one side: their question, or the whole row where that is common; and where it is."""
        is_common = np.isin(questions, self._common)
        return np.where(is_common, keys, questions), is_common

    def _keep_labels(self, share: int) -> None:
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
            self._move_to_train(share, lacking)

    def _move_to_train(self, share: int, lacking: dict[str, list[int]]) -> None:
        wanted = sorted({number for numbers in lacking.values() for number in numbers})
        parts: list[tuple[NDArray[Any], ...]] = []
        for start, (file_of, numbers, questions, keys) in self._scan.blocks("file_of", "labels", "question", "key"):
            is_here = (self._share_of_file[file_of] == share) & np.isin(numbers, wanted)
            mine = np.flatnonzero(is_here & (self.side_of[start : start + len(numbers)] != LEFT_OUT))
            parts.append((start + mine, numbers[mine], *self._groups(questions[mine], keys[mine])))
        rows, numbers, groups, is_common = (np.concatenate(part) for part in zip(*parts, strict=True))
        names = [
            content_key(example) if whole else normalise(question_of(example))
            for whole, example in zip(is_common.tolist(), self._scan.examples(rows), strict=True)
        ]
        sides, moved = self.side_of[rows], []
        for _, sets in sorted(lacking.items()):
            holders = np.flatnonzero(np.isin(numbers, sets))
            if (sides[holders] == TRAIN).any():
                continue  # it came with a group that was moved for another label
            _, _, last = min((int(sides[holder]), names[holder], holder) for holder in holders.tolist())
            moved.append(groups[last])
            sides[groups == groups[last]] = TRAIN
        for start, (file_of, questions, keys) in self._scan.blocks("file_of", "question", "key"):
            is_moved = np.isin(self._groups(questions, keys)[0], np.asarray(moved, np.uint64))
            part = self.side_of[start : start + len(is_moved)]
            part[is_moved & (self._share_of_file[file_of] == share) & (part != LEFT_OUT)] = TRAIN


def _shares(settings: DataSettings) -> tuple[float, float]:
    """The shares of validation and of test rows; a side with a file of its own has none."""
    share = settings.split
    return 0.0 if settings.validation else share.validation, 0.0 if settings.test else share.test
