"""Entities in tags: which words belong together, by the rules of CoNLL's own script and of seqeval.

IOB2 ("B-PER", "I-PER", "O"), IOB1 (where B only parts neighbours), IOBES and BILOU are read alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TAG = re.compile(r"O|[BIESLU]-.+", re.DOTALL)
_ALONE, _LAST = "BSU", "ESLU"
Entity = tuple[str, int, int]
"""Its type, its first word, and the word after its last."""


def is_entity_tag(tag: str) -> bool:
    """Whether a tag is `O`, or a mark and a type: `B-PER`."""
    return bool(_TAG.fullmatch(tag))


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities in order. One begins at B, and wherever the type changes or the one before has ended."""
    found: list[Entity] = []
    kind, start, is_open = "", 0, False
    for place, tag in enumerate((*tags, "O")):
        mark, _, this = tag.partition("-")
        goes_on = is_open and tag != "O" and mark not in _ALONE and this == kind
        if not goes_on:
            if kind:
                found.append((kind, start, place))
            kind, start = ("", place) if tag == "O" else (this, place)
        is_open = tag != "O" and mark not in _LAST
    return found
