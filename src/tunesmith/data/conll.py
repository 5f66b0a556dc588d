"""CoNLL files: one word per line with its tag in the last column, an empty line between sentences.

Columns are divided by tabs or spaces. Lines of "-DOCSTART-" and comments ("# …" before a sentence) are no words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.records import Origin
from tunesmith.data.lines import Fault, Item, RawRow, read_lines

DOCUMENT = "-DOCSTART-"


def read_conll(path: Path, shown: str) -> Iterator[Item]:
    """A row {"tokens", "tags"} of each sentence; its line is the first word's."""
    words: list[str] = []
    tags: list[str] = []
    start = 0
    fault: Fault | None = None
    for line in read_lines(path, shown):
        if isinstance(line, Fault):
            fault = fault or line
            continue
        number, text = line
        cells = text.split("\t") if "\t" in text else text.split()
        cells = [cell.strip() for cell in cells if cell.strip()]
        if not cells or cells[0] == DOCUMENT:
            yield from _sentence(words, tags, Origin(shown, start), fault)
            words, tags, fault = [], [], None
            continue
        if not words and fault is None and cells[0].startswith("#") and text.startswith("# "):
            continue
        if len(cells) < 2:
            message = f'the line has the word "{cells[0][:40]}" and no tag'
            fault = fault or Fault(Origin(shown, number), "no_label", message, "add its tag, or O")
        start = start if words else number
        words.append(cells[0])
        tags.append(cells[-1])
    yield from _sentence(words, tags, Origin(shown, start), fault)


def _sentence(words: list[str], tags: list[str], origin: Origin, fault: Fault | None) -> Iterator[Item]:
    if fault is not None:
        yield fault
    elif words:
        yield RawRow({"tokens": list(words), "tags": list(tags)}, origin)
