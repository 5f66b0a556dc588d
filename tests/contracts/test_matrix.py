"""Every method with every objective on every architecture does what docs/reference/matrix.md says.

The suite tries every third cell, spread evenly by a sum over their names; `make matrix` tries all.
"""

from __future__ import annotations

import zlib

import pytest

from contracts.matrix import PAGE, Cell, all_cells, outcome, page, read_results

RESULTS = read_results()
SAMPLE = [cell for cell in all_cells() if zlib.crc32("-".join(cell).encode()) % 3 == 0]


@pytest.mark.parametrize("cell", SAMPLE, ids="-".join)
def test_a_cell_is_what_the_page_says(cell: Cell) -> None:
    assert cell in RESULTS, "run `make matrix`"
    assert outcome(cell) == RESULTS[cell]


def test_the_page_is_drawn_from_the_results() -> None:
    assert RESULTS.keys() == set(all_cells()), "run `make matrix`"
    assert PAGE.read_text(encoding="utf-8") == page(RESULTS)
