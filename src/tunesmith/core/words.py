"""The words of a text, so that two answers that differ only in case, punctuation or spacing are equal.

Numbers keep their sign and their decimal point: 3.5 is not 35, and -5 is not 5. `1,234` is 1234.
"""

from __future__ import annotations

import re
import unicodedata

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHE = re.compile(r"(?<=[^\W\d_])['\u2019](?=[^\W\d_])")
_WORD = re.compile(r"(?:(?<!\w)-)?\d+(?:[.,]\d+)+|(?:(?<!\w)-(?=\d))?[^\W_]+|[%°+&$€£¥]")


def words(text: str) -> list[str]:
    """The text's words: Unicode form NFKC, case folded, without punctuation; `%`, `°`, `+`, `&` and currencies stay."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    text = _APOSTROPHE.sub("", _THOUSANDS.sub("", text))
    return _WORD.findall(text)


def contains(text: list[str], part: list[str]) -> bool:
    """Whether the words of `part` follow one another somewhere in `text`."""
    size = len(part)
    return any(text[first : first + size] == part for first in range(len(text) - size + 1))
