"""The nearest texts to a query by BM25: words only, no model.

English function and question words are left out, and a plural's "s" is cut off; other languages are searched by their
plain words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be but by can could did do does for from had has have how i if in into is it its may me "
        "mean means my no not of on or shall should so that the their then there these they this to was we were what "
        "when where which who why will with would you your"
    )
)


class Index:
    """Texts that can be searched; `nearest` gives their positions."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._size = len(texts)
        tokens = [words(text) for text in texts]
        self._vocabulary = {word for text in tokens for word in text}
        self._bm25 = bm25s.BM25(method="lucene")
        if self._vocabulary:
            self._bm25.index(tokens, show_progress=False)

    def nearest(self, query: str, k: int) -> list[int]:
        """At most k positions, best first; of equal scores the earlier text first."""
        known = [word for word in words(query) if word in self._vocabulary]
        if not known:
            return list(range(min(k, self._size)))
        scores = self._bm25.get_scores(known)
        order = sorted(range(self._size), key=lambda i: (-float(scores[i]), i))
        return order[:k]


def words(text: str) -> list[str]:
    """Lower-case words and numbers that carry meaning; all of them where none does."""
    found: list[str] = _WORD.findall(text.lower())
    return [_singular(word) for word in found if word not in _FUNCTION_WORDS] or found


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
