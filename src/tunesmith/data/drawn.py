"""The training rows of large files that `data.shots` and `data.limit` draw: the outcome of `shots.draw_shots`.

Rows come in parts, in order. Only those that are among the drawn so far are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.findings import Findings
from tunesmith.data.scan import Rows, Scan
from tunesmith.data.shots import note_few_shots


def shots_of(scan: Scan, parts: Iterable[Rows], shots: int, found: Findings) -> Rows:
    """So many rows of each class of each source, in order; a class with fewer is a finding."""
    kinds = _Kinds(scan, shots)
    for rows in parts:
        kinds.add(rows)
    chosen = [np.zeros(0, np.int64)]
    for label, members in kinds.of_classes():
        chosen.append(kinds.drawn(members))
        if (count := int(kinds.counts[members].sum())) < shots:
            (origin,) = scan.origins(kinds.firsts[members[:1]])
            note_few_shots(found, label, count, shots, origin)
    return np.unique(np.concatenate(chosen))


def limited(scan: Scan, parts: Iterable[Rows], limit: int) -> Rows:
    """So many of these rows, the first by the hash of their contents."""
    best, places = np.zeros(0, np.int64), np.zeros(0)
    for rows in parts:
        best, places = np.concatenate((best, rows)), np.concatenate((places, _places(scan, "limit", rows)))
        order = np.argsort(places, kind="stable")[:limit]
        best, places = best[order], places[order]
    return best


class _Kinds:
    """Rows by source and set of classes: how many, the first, and the best by their hash.

    The best of a class are among the best of each set of classes that holds it.
    """

    def __init__(self, scan: Scan, most: int) -> None:
        names = list(dict.fromkeys(reading.source_name for reading in scan.readings))
        self._scan, self._most, self._sets = scan, most, list(scan.label_sets)
        self._source_of = np.asarray([names.index(reading.source_name) for reading in scan.readings])
        self.counts, self.firsts = np.zeros((2, len(names) * len(self._sets)), np.int64)
        self._kinds, self._rows, self._places = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)

    def add(self, rows: Rows) -> None:
        """Take these, too; they come after all before."""
        source = self._source_of[self._scan.take("file_of", rows)]
        kinds = source * len(self._sets) + self._scan.take("labels", rows)
        here, first = np.unique(kinds, return_index=True)
        is_new = self.counts[here] == 0
        self.firsts[here[is_new]] = rows[first[is_new]]
        self.counts += np.bincount(kinds, minlength=len(self.counts))
        kinds, rows = np.concatenate((self._kinds, kinds)), np.concatenate((self._rows, rows))
        places = np.concatenate((self._places, _places(self._scan, "shots", rows[len(self._rows) :])))
        order = np.lexsort((rows, places, kinds))
        rank = np.arange(len(order)) - np.searchsorted(kinds[order], kinds[order])
        best = order[rank < self._most]
        self._kinds, self._rows, self._places = kinds[best], rows[best], places[best]

    def of_classes(self) -> list[tuple[str, list[int]]]:
        """The classes of each source in the order of their first rows, each with the kinds that hold it."""
        present = np.flatnonzero(self.counts)
        members: dict[tuple[int, str], list[int]] = {}
        for kind in present[np.argsort(self.firsts[present])].tolist():
            source, number = divmod(kind, len(self._sets))
            for label in self._sets[number] or ("",):
                members.setdefault((source, label), []).append(kind)
        return [(label, kinds) for (_, label), kinds in members.items()]

    def drawn(self, kinds: list[int]) -> Rows:
        """The best rows of these kinds."""
        mine = np.flatnonzero(np.isin(self._kinds, kinds))
        return self._rows[mine[np.lexsort((self._rows[mine], self._places[mine]))[: self._most]]]


def _places(scan: Scan, draw: str, rows: Rows) -> NDArray[np.float64]:
    """As `unit_hash`."""
    places: NDArray[np.float64] = scan.take(draw, rows).astype(np.float64) / 2**64
    return places
