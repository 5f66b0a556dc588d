"""What a format is: it says how well a row fits it, and turns rows into examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Example, Origin


class RowFault(Exception):  # noqa: N818 - a finding about one row, not a failure of the program
    """A row cannot be read: a stable code, what is wrong, and what to do."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy


class Format(Plugin):
    """One shape of row."""

    @abstractmethod
    def matches(self, row: Mapping[str, Any]) -> float:
        """How surely a row has this shape: 0 not at all, 1 beyond doubt."""

    @abstractmethod
    def read(self, row: Mapping[str, Any], origin: Origin) -> Example:
        """The row as an example; unused columns go to `fields`.

        Raises:
            RowFault: The row has this shape, but something in it is wrong.
        """

    @abstractmethod
    def describe(self) -> str:
        """The shape in words with its keys, e.g. `OpenAI chat: {"messages": [{"role", "content"}]}`."""
