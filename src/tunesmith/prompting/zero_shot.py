"""Ask the question alone."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.core.records import ChatExample, Passage
from tunesmith.prompting.base import Ask, Fits, Prompting


class ZeroShot(Prompting):
    """The example's own prompt, unchanged."""

    def prepare(self, train: Sequence[ChatExample], documents: Sequence[Passage], *, fits: Fits) -> Ask:
        return lambda example: example.prompt
