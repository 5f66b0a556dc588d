"""Every method with every objective on every architecture does what docs/reference/matrix.md says.

The suite tries every pair of method and objective on one architecture, drawn by a sum over the names; `make matrix`
tries all.
"""

from __future__ import annotations

import zlib

import pytest

from contracts.matrix import PAGE, Cell, all_cells, outcome, page, read_results
from tunesmith.models.tiny import ARCHITECTURES

RESULTS = read_results()


def _sample() -> list[Cell]:
    drawn = sorted(all_cells(), key=lambda cell: zlib.crc32("-".join(cell).encode()))
    return sorted({cell[:2]: cell for cell in drawn}.values())


@pytest.mark.parametrize("cell", _sample(), ids="-".join)
def test_a_cell_is_what_the_page_says(cell: Cell) -> None:
    assert cell in RESULTS, "run `make matrix`"
    assert outcome(cell) == RESULTS[cell]


def test_the_sample_has_every_architecture() -> None:
    assert {cell[2] for cell in _sample()} == set(ARCHITECTURES)


def test_the_page_is_drawn_from_the_results() -> None:
    assert RESULTS.keys() == set(all_cells()), "run `make matrix`"
    assert PAGE.read_text(encoding="utf-8") == page(RESULTS)
