"""Token ids to text as they come: never half a code point, never a part of a stop string.

The pieces joined equal the text of all tokens decoded at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no whole code point yet."""


class TextStream:
    """Decodes one answer. After `is_stopped` the answer ended before a stop string; take no more tokens then."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._begin = 0
        """Where the decoded window begins: one piece back, because some tokenizers write a word's space with it."""
        self._seen = 0
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token, perhaps none."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._begin : self._seen])
        now = self._decode(self._ids[self._begin :])
        if len(now) <= len(before) or now.endswith(_UNFINISHED):
            return ""
        self._begin, self._seen = self._seen, len(self._ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        before = self._decode(self._ids[self._begin : self._seen])
        now = self._decode(self._ids[self._begin :])
        self._begin = self._seen = len(self._ids)
        text = self._release(now[len(before) :])
        rest, self._held = ("", "") if self.is_stopped else (self._held, "")
        return text + rest

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
