"""Rows of large files that are nearly an earlier one: the outcome of `repeats.near_repeats`, in bounded memory.

Shingles are numbers of 64 bits in a file, and pairs of rows are found by prefix filtering, which is exact with any
order of the shingles that all rows share. So they are ordered by counts of a table in which several may share a
counter: that costs time, never a pair. Rows that share too little with all others are put aside first; what is left is
compared in blocks, each with every block before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import Emit, Progress, silent
from tunesmith.data.repeats import NEAR
from tunesmith.data.scan import STEP, Hashes, Rows, Scan

AT_ONCE = 2**19
"""Shingles that are in memory at once; those of compared rows take some 100 bytes each."""
TABLE_BYTES = 2**27
"""A table of counts takes no more."""
_FEWEST_BITS = 16
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
"""Odd numbers (golden ratio, primes of xxHash): shingles that share a counter in one table do not in another."""


class Repeat(NamedTuple):
    """A row, the earlier one that it is nearly, and their similarity."""

    row: int
    earlier: int
    similarity: float


class _Rows(NamedTuple):
    """Some rows, in order, and of each its shingles, which stand one after another."""

    rows: Rows
    sizes: NDArray[np.int64]
    shingles: Hashes

    def owners(self) -> Rows:
        """The place of the row of each shingle."""
        return np.repeat(np.arange(len(self.rows)), self.sizes)


def near_repeats_on_disk(scan: Scan, is_kept: NDArray[np.bool_], emit: Emit = silent) -> Iterator[Repeat]:
    """Each row that is nearly an earlier one that is not left out, in order; `is_kept` [N] says which there are."""
    candidates = _Candidates(scan, is_kept, emit)
    candidates.put_aside()
    with TemporaryDirectory(dir=scan.folder) as folder:
        yield from _Comparison(candidates.write(Path(folder)), is_kept.copy(), emit).repeats()


class _Counts:
    """How often numbers occur, or more often, as several may share a counter."""

    def __init__(self, num_numbers: int, kind: str, variant: int = 0) -> None:
        most = (TABLE_BYTES // np.dtype(kind).itemsize).bit_length() - 1
        bits = max(_FEWEST_BITS, min(most, num_numbers.bit_length()))
        self._table = np.zeros(1 << bits, kind)
        self._most = np.iinfo(kind).max
        self._factor, self._shift = np.uint64(_FACTORS[variant]), np.uint64(64 - bits)

    def add(self, numbers: Hashes) -> None:
        """Count these, too."""
        slots, counts = np.unique(self._slots(numbers), return_counts=True)
        self._table[slots] = np.minimum(self._table[slots] + counts, self._most)

    def of(self, numbers: Hashes) -> NDArray[Any]:
        """The counts of these."""
        return self._table[self._slots(numbers)]

    def _slots(self, numbers: Hashes) -> NDArray[np.uint32]:
        return (numbers * self._factor >> self._shift).astype(np.uint32)


class _Candidates:
    """The rows that may be nearly others."""

    def __init__(self, scan: Scan, is_kept: NDArray[np.bool_], emit: Emit) -> None:
        self._scan, self._is_candidate, self._emit = scan, is_kept.copy(), emit
        """[N]"""

    def put_aside(self) -> None:
        """Put rows aside that share less than `NEAR` of their shingles with all other candidates."""
        number = self._num_shingles()
        for variant in range(len(_FACTORS)):
            self._emit(Progress(STEP, variant, len(_FACTORS), "looking for near repetitions", "pass"))
            self._put_aside(number, variant)
            before, number = number, self._num_shingles()
            if number > 0.9 * before:
                break

    def write(self, folder: Path) -> list[Path]:
        """Blocks of rows that share one of their rarest shingles with others, in files, in order."""
        counts = _Counts(self._num_shingles(), "u2")
        for some in self._chunks():
            counts.add(some.shingles)
        num_rare = sum(len(rare) for _, _, rare in self._rarest(counts))
        holders = _Counts(num_rare, "u1", 1)
        for _, _, rare in self._rarest(counts):
            holders.add(rare)
        files: list[Path] = []
        waiting: list[dict[str, NDArray[Any]]] = []
        for some, owners, rare in self._rarest(counts):
            is_shared = holders.of(rare) > 1
            num_rare_of = np.bincount(owners[is_shared], minlength=len(some.rows))
            has = num_rare_of > 0
            waiting.append(
                {
                    "rows": some.rows[has],
                    "sizes": some.sizes[has],
                    "kinds": self._scan.take("kind", some.rows[has]),
                    "shingles": some.shingles[np.repeat(has, some.sizes)],
                    "num_rare": num_rare_of[has],
                    "rare": rare[is_shared],
                }
            )
            if sum(len(part["shingles"]) for part in waiting) >= AT_ONCE:
                files.append(_save(folder, len(files), waiting))
        return [*files, _save(folder, len(files), waiting)] if waiting else files

    def _num_shingles(self) -> int:
        blocks = self._scan.blocks("size")
        return sum(int(sizes[self._is_candidate[start : start + len(sizes)]].sum()) for start, (sizes,) in blocks)

    def _put_aside(self, num_shingles: int, variant: int) -> None:
        """A shingle that occurs once is not shared. Those that a table has no room for are counted in further turns."""
        shared = np.zeros(len(self._is_candidate), np.uint32)
        turns = 1 << (num_shingles // TABLE_BYTES).bit_length()
        for turn in range(turns):
            counts = _Counts(num_shingles // turns, "u1", variant)
            for some in self._chunks():
                counts.add(some.shingles[some.shingles % np.uint64(turns) == turn])
            for some in self._chunks():
                mine = np.flatnonzero(some.shingles % np.uint64(turns) == turn)
                mine = mine[counts.of(some.shingles[mine]) > 1]
                shared[some.rows] += np.bincount(some.owners()[mine], minlength=len(some.rows)).astype(np.uint32)
        for start, (sizes,) in self._scan.blocks("size"):
            part = slice(start, start + len(sizes))
            self._is_candidate[part] &= shared[part] >= _fewest_common(sizes.astype(np.int64))

    def _rarest(self, counts: _Counts) -> Iterator[tuple[_Rows, Rows, Hashes]]:
        """Rows with their rarest shingles, of which two that are nearly the same share one, and whose each is."""
        for some in self._chunks():
            owners, times = some.owners(), counts.of(some.shingles)
            order = np.lexsort((some.shingles, times, owners))
            place = np.arange(len(owners)) - np.repeat(np.cumsum(some.sizes) - some.sizes, some.sizes)
            is_rare = place <= np.repeat(some.sizes - _fewest_common(some.sizes), some.sizes)
            is_rare &= times[order] > 1
            yield some, owners[is_rare], some.shingles[order[is_rare]]

    def _chunks(self) -> Iterator[_Rows]:
        """All candidates in order, with no more shingles at once than fit, or one row."""
        with self._scan.shingles.open("rb") as file:
            for start, (column,) in self._scan.blocks("size"):
                sizes, first = column.astype(np.int64), 0
                ends = np.cumsum(sizes)
                while first < len(sizes):
                    begin = int(ends[first] - sizes[first])
                    end = max(first + 1, int(np.searchsorted(ends, begin + AT_ONCE, "right")))
                    shingles = np.fromfile(file, np.uint64, int(ends[end - 1]) - begin)
                    is_mine = self._is_candidate[start + first : start + end]
                    here = sizes[first:end]
                    if is_mine.any():
                        rows = start + first + np.flatnonzero(is_mine)
                        yield _Rows(rows, here[is_mine], shingles[np.repeat(is_mine, here)])
                    first = end


class _Block:
    """Some candidates, to be compared; a row is named by its place."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            columns = {name: file[name] for name in file.files}
        self.rows: list[int] = columns["rows"].tolist()
        self.rare: Hashes = columns["rare"]
        self.owners: Rows = np.repeat(np.arange(len(self.rows)), columns["num_rare"])
        self._sizes, self._kinds = columns["sizes"].tolist(), columns["kinds"].tolist()
        self._shingles: Hashes = columns["shingles"]
        self._ends = np.cumsum(columns["sizes"]).tolist()
        self._sets: dict[int, frozenset[int]] = {}

    def rarest(self) -> Iterator[tuple[int, list[int]]]:
        """Each row with its rarest shingles."""
        pairs = zip(self.owners.tolist(), self.rare.tolist(), strict=True)
        for place, group in groupby(pairs, key=itemgetter(0)):
            yield place, [rare for _, rare in group]

    def similarity(self, place: int, other: _Block, its: int) -> float:
        """The Jaccard similarity of two rows; 0 where it is too low or their classes differ."""
        size, its_size = self._sizes[place], other._sizes[its]
        if min(size, its_size) < NEAR * max(size, its_size) or self._kinds[place] != other._kinds[its]:
            return 0.0
        common = len(self._set(place) & other._set(its))
        similarity: float = common / (size + its_size - common)
        return similarity if similarity >= NEAR else 0.0

    def _set(self, place: int) -> frozenset[int]:
        if place not in self._sets:
            end = self._ends[place]
            self._sets[place] = frozenset(self._shingles[end - self._sizes[place] : end].tolist())
        return self._sets[place]


class _Comparison:
    """Candidates compared in their order: a row that is left out is none that later ones could be nearly."""

    def __init__(self, files: list[Path], is_kept: NDArray[np.bool_], emit: Emit) -> None:
        self._files, self._is_kept, self._emit = files, is_kept, emit

    def repeats(self) -> Iterator[Repeat]:
        """The rows to be left out, each with the earlier row that is most like it, of equals the first."""
        for number, file in enumerate(self._files):
            self._emit(Progress(STEP, number, len(self._files), "comparing rows that are alike", "block"))
            yield from self._of_block(file, self._files[:number])  # nothing of a block outlives it

    def _of_block(self, file: Path, earlier: list[Path]) -> Iterator[Repeat]:
        block, nearest = _Block(file), dict[int, tuple[float, int]]()
        if earlier:
            self._with_earlier(block, earlier, nearest)
        yield from self._within(block, nearest)

    def _with_earlier(self, block: _Block, files: list[Path], nearest: dict[int, tuple[float, int]]) -> None:
        holders = _lists()
        for place, rarest in block.rarest():
            for rare in rarest:
                holders[rare].append(place)
        wanted = np.unique(block.rare)
        earlier = None
        for file in files:
            del earlier  # before the next is in memory
            earlier = _Block(file)
            is_met = self._is_kept[earlier.rows][earlier.owners] & np.isin(earlier.rare, wanted)
            pairs = zip(earlier.owners[is_met].tolist(), earlier.rare[is_met].tolist(), strict=True)
            for its, group in groupby(pairs, key=itemgetter(0)):
                for place in {place for _, rare in group for place in holders[rare]}:
                    if similarity := block.similarity(place, earlier, its):
                        found = (similarity, -earlier.rows[its])
                        nearest[place] = max(nearest.get(place, found), found)

    def _within(self, block: _Block, nearest: dict[int, tuple[float, int]]) -> Iterator[Repeat]:
        holders = _lists()
        for place, rarest in block.rarest():
            for its in {its for rare in rarest for its in holders.get(rare, ())}:
                if similarity := block.similarity(place, block, its):
                    found = (similarity, -block.rows[its])
                    nearest[place] = max(nearest.get(place, found), found)
            if place in nearest:
                similarity, earlier = nearest[place]
                self._is_kept[block.rows[place]] = False
                yield Repeat(block.rows[place], -earlier, similarity)
                continue
            for rare in rarest:
                holders[rare].append(place)


def _fewest_common(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of its shingles a row shares with any that it is nearly."""
    fewest: NDArray[np.int64] = np.maximum(1, np.ceil(NEAR * sizes)).astype(np.int64)
    return fewest


def _save(folder: Path, number: int, waiting: list[dict[str, NDArray[Any]]]) -> Path:
    """Write the parts of a block into one file; then none waits."""
    path = folder / f"{number}.npz"
    columns: dict[str, Any] = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
    np.savez(path, **columns)
    waiting.clear()
    return path


def _lists() -> defaultdict[int, list[int]]:
    return defaultdict(list)
