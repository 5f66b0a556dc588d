"""Share of answers that state every fact they should; wording is free.

A row carries `facts`: a list of groups, each a list of alternatives: [["E07"], ["empty", "no water"]].
Every group must be met by one of its alternatives, as whole words in this order, whatever case and punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tunesmith.core.confusion import ratio
from tunesmith.core.errors import UserError
from tunesmith.core.records import Outcome
from tunesmith.core.words import contains, words
from tunesmith.metrics.base import Array, Metric, hits


class FactMatch(Metric):
    """Rows whose answer meets every group of their `facts`, over all rows."""

    is_rate: ClassVar[bool] = True

    column: str = "facts"
    """The column that holds the groups."""

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return hits([self._is_met(outcome) for outcome in outcomes])

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 1])

    def signature(self) -> str:
        return "every group of facts, whole words"

    def _is_met(self, outcome: Outcome) -> bool:
        answer = words(outcome.answer)
        return all(any(contains(answer, option) for option in group) for group in self._groups(outcome))

    def _groups(self, outcome: Outcome) -> list[list[list[str]]]:
        groups = outcome.fields.get(self.column)
        if not groups or not isinstance(groups, list | tuple):
            raise UserError(
                f'the row has no "{self.column}" to look for.',
                code="no_facts",
                where=outcome.origin,
                remedy=f'Give it "{self.column}": [["one wording", "another"], ...], or use exact_match.',
            )
        return [self._options(group, outcome) for group in groups]

    def _options(self, group: Any, outcome: Outcome) -> list[list[str]]:
        options = [group] if isinstance(group, str) else group
        if isinstance(options, list | tuple) and all(isinstance(option, str) for option in options):
            found = [words(option) for option in options]
            if found and all(found):
                return found
        raise UserError(
            f'"{self.column}" holds {group!r}, which is not a list of texts with words in them.',
            code="bad_facts",
            where=outcome.origin,
            remedy='A group of facts is a list of its wordings: ["three bar", "3 bar"].',
        )
