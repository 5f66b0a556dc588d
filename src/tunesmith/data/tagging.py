"""Words to tokens and back: where each word begins among the tokens, for one tag per word.

The words are joined by single spaces and tokenised as text, so that every tokenizer sees them as it was trained to.
A text too long for the model is halved between words until its pieces fit; no word is lost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True, slots=True)
class TagPiece:
    """Consecutive words as tokens: word `first_word + i` begins at token `starts[i]`, -1 where it has no token."""

    input_ids: tuple[int, ...]
    starts: tuple[int, ...]
    token_type_ids: tuple[int, ...] = ()
    first_word: int = 0
    num_cut: int = 0
    """Tokens left out of a single word that is longer than the limit."""


def tag_pieces(words: Sequence[str], tokenizer: Any, *, max_length: int, first_word: int = 0) -> tuple[TagPiece, ...]:
    """The words as pieces of at most `max_length` tokens, special ones included."""
    encoded = tokenizer(" ".join(words), return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    if len(ids) > max_length and len(words) > 1:
        middle = len(words) // 2
        return (
            *tag_pieces(words[:middle], tokenizer, max_length=max_length, first_word=first_word),
            *tag_pieces(words[middle:], tokenizer, max_length=max_length, first_word=first_word + middle),
        )
    starts = _word_starts(words, encoded["offset_mapping"])
    kept = min(len(ids), max_length)
    return (
        TagPiece(
            tuple(ids[:kept]),
            tuple(start if start < kept else -1 for start in starts),
            tuple(encoded.get("token_type_ids", ())[:kept]),
            first_word,
            len(ids) - kept,
        ),
    )


def _word_starts(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The first token of each word; a token belongs to the word that its last character lies in."""
    begins = [0, *accumulate(len(word) + 1 for word in words)][:-1]
    starts = [-1] * len(words)
    for token, (begin, end) in enumerate(offsets):
        if end <= begin:
            continue  # a special token, or one without text of its own
        word = bisect_right(begins, end - 1) - 1
        is_space = end - 1 >= begins[word] + len(words[word])
        if not is_space and starts[word] < 0:
            starts[word] = token
    return starts
