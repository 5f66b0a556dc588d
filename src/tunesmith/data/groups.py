"""What keeps rows of large files on one side, as a hash that is its place, too: the outcome of `split._groups`.

It is a row's question, or the whole row where that question is common, or with `data.split.group_by` the group. Groups
that a question joins are in memory, 32 bytes for each; all else is read in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.records import Example
from tunesmith.data.repeats import content_key, normalise, question_of
from tunesmith.data.scan import NO_COLUMN, NO_GROUP, Columns, Hashes, Rows, Scan
from tunesmith.data.split import group_name, refuse_column, row_name

LEFT_OUT = -1


@dataclass(frozen=True)
class _Joined:
    """Names that are joined, sorted; of each the one that names all of them, and a row of that."""

    names: Hashes
    roots: Hashes
    rows: Rows

    def found(self, names: Hashes) -> tuple[Rows, NDArray[np.bool_]]:
        """Where each name stands, and whether it does."""
        if not len(self.names):
            return np.zeros(len(names), np.int64), np.zeros(len(names), dtype=bool)
        at = np.minimum(np.searchsorted(self.names, names), len(self.names) - 1)
        return at, self.names[at] == names


class Groups:
    """The group of each row that is not left out. Rows of files that give the same shares are grouped by themselves.

    Raises:
        UserError: No row has the column `data.split.group_by`.
    """

    def __init__(self, scan: Scan, side_of: NDArray[np.int8], share_of_file: NDArray[np.int64]) -> None:
        self._scan, self._side_of, self._share_of_file = scan, side_of, share_of_file
        self._column = scan.wishes.group_by
        self._columns = ("file_of", "question", "key", *(["group"] if self._column else []))
        self._common = self._common_questions()
        self._joined: list[_Joined] = []
        if self._column:
            self._refuse_missing_column()
            edges = self._edges()
            self._joined = [self._join(share, *edge) for share, edge in enumerate(edges)]

    def blocks(self) -> Iterator[tuple[int, NDArray[np.int64], Hashes]]:
        """From end to end the first row of a block, and of each row the number of its shares and its group."""
        for start, columns in self._scan.blocks(*self._columns):
            groups, shares = self._of(columns)
            yield start, shares, groups

    def buckets(self) -> Iterator[tuple[Rows, NDArray[np.int64], Hashes]]:
        """All rows, those of one group together, with the numbers of their shares and their groups."""
        for rows, (groups, shares) in self._scan.buckets(*self._columns, of=self._of):
            yield rows, shares, groups

    def names(self, share: int, rows: Rows, groups: Hashes) -> list[str]:
        """The names by which groups of these rows are put in order."""
        whole = np.isin(self._scan.take("question", rows), self._common)
        shown = rows
        if self._column:
            at, is_joined = self._joined[share].found(groups)
            shown = rows.copy()
            shown[is_joined] = self._joined[share].rows[at[is_joined]]
        examples = self._scan.examples(shown)
        return [self._name(example, is_whole) for example, is_whole in zip(examples, whole.tolist(), strict=True)]

    def _common_questions(self) -> Hashes:
        """Questions of more than 1 % of the rows say nothing about them."""
        most = max(10, int(np.count_nonzero(self._side_of != LEFT_OUT)) // 100)
        found = [np.zeros(0, np.uint64)]
        for rows, (questions,) in self._scan.buckets("question"):
            ordered = np.sort(questions[self._side_of[rows] != LEFT_OUT])
            found.append(np.unique(ordered[most:][ordered[most:] == ordered[:-most]]))
        return np.concatenate(found)

    def _refuse_missing_column(self) -> None:
        num_shares = int(self._share_of_file.max()) + 1
        has_column, heads = np.zeros(num_shares, dtype=bool), [np.zeros(0, np.int64)] * num_shares
        for start, (file_of, groups) in self._scan.blocks("file_of", "group"):
            shares, is_kept = self._share_of_file[file_of], self._side_of[start : start + len(groups)] != LEFT_OUT
            has_column[shares[is_kept & (groups != NO_COLUMN)]] = True
            for share, head in enumerate(heads):
                more = start + np.flatnonzero(is_kept & (shares == share))[:100]
                heads[share] = np.concatenate((head, more))[:100]
        lacking = [head for head, has in zip(heads, has_column, strict=True) if len(head) and not has]
        for head in sorted(lacking, key=lambda rows: int(rows[0])):
            raise refuse_column(tuple(self._scan.examples(head)), self._column)

    def _of(self, columns: Columns) -> Columns:
        """Groups, and the numbers of shares."""
        names, _, shares = self._names(columns)
        groups = names.copy()
        for share, joined in enumerate(self._joined):
            at, is_joined = joined.found(names)
            is_mine = is_joined & (shares == share)
            groups[is_mine] = joined.roots[at[is_mine]]
        return [groups, shares]

    def _names(self, columns: Columns) -> Columns:
        """Of each row the name of its own, the name of its contents, and the number of its shares."""
        file_of, questions, keys, *grouped = columns
        contents = np.where(np.isin(questions, self._common), keys, questions)
        names = np.where(grouped[0] > NO_GROUP, grouped[0], contents) if grouped else contents
        return [names, contents, self._share_of_file[file_of]]

    def _edges(self) -> list[tuple[Hashes, Hashes]]:
        """Of each number of shares the names that stand beside each other in equal contents, in pairs."""
        found = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64)) for _ in range(int(self._share_of_file.max()) + 1)]

        def by_contents(columns: Columns) -> Columns:
            names, contents, shares = self._names(columns)
            return [contents, names, shares]

        for rows, columns in self._scan.buckets(*self._columns, of=by_contents):
            is_kept = self._side_of[rows] != LEFT_OUT
            contents, names, shares = (column[is_kept] for column in columns)
            for share, (ones, others) in enumerate(found):
                is_mine = shares == share
                one, other = contents[is_mine], names[is_mine]
                order = np.lexsort((other, one))
                one, other = one[order], other[order]
                joins = np.flatnonzero((one[1:] == one[:-1]) & (other[1:] != other[:-1]))
                pairs = np.concatenate((ones, other[joins])), np.concatenate((others, other[joins + 1]))
                nodes, roots = _components(*pairs)
                found[share] = nodes, nodes[roots]  # no more pairs than there are names
        return found

    def _join(self, share: int, names: Hashes, roots: Hashes) -> _Joined:
        """What names all of what is joined is the smallest name, so the order of the rows does not matter."""
        kinds, component = np.unique(roots, return_inverse=True)
        row_of = np.full(len(names), -1, np.int64)
        place = _Joined(names, roots, row_of)
        for start, columns in self._scan.blocks(*self._columns):
            mine, _, shares = self._names(columns)
            at, is_joined = place.found(mine)
            is_here = is_joined & (shares == share) & (columns[3] > NO_GROUP)
            is_here &= self._side_of[start : start + len(mine)] != LEFT_OUT
            row_of[at[is_here]] = start + np.flatnonzero(is_here)
        least: list[tuple[str, int] | None] = [None] * len(kinds)
        grouped = np.flatnonzero(row_of >= 0)
        grouped = grouped[np.argsort(row_of[grouped])]
        for number, example in zip(grouped.tolist(), self._scan.examples(row_of[grouped]), strict=True):
            found = (group_name(example, self._column), number)
            kind = int(component[number])
            least[kind] = min(least[kind] or found, found)
        chosen = np.asarray([one[1] for one in least if one], np.int64)
        assert len(chosen) == len(kinds), "names are joined by groups alone"
        return _Joined(names, names[chosen][component], row_of[chosen][component])

    def _name(self, example: Example, is_whole: bool) -> str:
        key = content_key(example) if is_whole else normalise(question_of(example))
        if not self._column:
            return key
        return group_name(example, self._column) or row_name(key)


def _components(ones: Hashes, others: Hashes) -> tuple[Hashes, NDArray[Any]]:
    """The names of these pairs, sorted, and for each the place of the first name that it hangs together with."""
    nodes, ends = np.unique(np.concatenate((ones, others)), return_inverse=True)
    root = np.arange(len(nodes))
    one, other = np.split(ends, 2)
    while True:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        if (low == high).all():
            return nodes, root
        np.minimum.at(root, high, low)
        while (root[root] != root).any():
            root = root[root]
