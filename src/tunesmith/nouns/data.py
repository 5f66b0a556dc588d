"""Data that were read, checked and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.quantities import count
from tunesmith.nouns.scores import frame
from tunesmith.reporters.notebook import html_table, html_text

if TYPE_CHECKING:
    import pandas as pd

    from tunesmith.core.events import Finding
    from tunesmith.core.records import Example
    from tunesmith.data.load import DataSet
    from tunesmith.recipe import DataSettings


@dataclass(frozen=True, repr=False)
class Rows(Sequence["Example"]):
    """One side of a data set."""

    side: str
    examples: Sequence[Example]
    data: Data

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: Any) -> Any:
        return self.examples[place]

    def __repr__(self) -> str:
        return f"Rows({self.side!r}, {count(len(self))} rows of {self.data.name!r})"

    def to_pandas(self) -> pd.DataFrame:
        """One line per row, columns as a file would have them."""
        from tunesmith.data.write import row_of

        return frame([row_of(example) for example in self.examples])


@dataclass(frozen=True, repr=False)
class Data:
    """Rows that were read, checked and split as a recipe's `data` says."""

    settings: DataSettings
    loaded: DataSet = field(hash=False)
    seed: int = 1

    @property
    def name(self) -> str:
        """The file's or folder's name."""
        source = self.settings.source
        return Path(source).name if isinstance(source, str) else f"{len(source)} sources"

    @property
    def train(self) -> Rows:
        return Rows("train", self.loaded.train, self)

    @property
    def validation(self) -> Rows:
        return Rows("validation", self.loaded.validation, self)

    @property
    def test(self) -> Rows:
        return Rows("test", self.loaded.test, self)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong or doubtful, one per kind."""
        return self.loaded.findings

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, where rows have labels."""
        return self.loaded.labels

    @cached_property
    def card(self) -> dict[str, Any]:
        """The data card: counts and sums of files and of each side's contents."""
        return self.loaded.card()

    def split(self, **settings: Any) -> Data:
        """The same rows split another way: `data.split(test=0.2, group_by="customer")`."""
        from tunesmith.api import make_data

        return make_data({**self.settings.model_dump(mode="json"), "split": settings}, self.seed)

    def to_pandas(self) -> pd.DataFrame:
        """All rows with the side they are on."""
        sides = {"train": self.train, "validation": self.validation, "test": self.test}
        from tunesmith.data.write import row_of

        return frame([{"side": side, **row_of(example)} for side, rows in sides.items() for example in rows])

    @property
    def sentence(self) -> str:
        """How many rows are on which side, and how much was found."""
        sides = (
            f"{count(len(self.train))} train, {count(len(self.validation))} validation, {count(len(self.test))} test"
        )
        many = len(self.findings)
        found = f", {many} kind{'s' if many > 1 else ''} of finding" if many else ""
        return f"{self.loaded.format_name}, {sides} rows{found}"

    def __repr__(self) -> str:
        return f"Data({self.name!r}, {self.sentence})"

    def _repr_html_(self) -> str:
        rows = [(f.level, f.code, f.where, f"{f.message} ({count(f.num_rows)} rows)", f.remedy) for f in self.findings]
        found = html_table(("", "code", "first place", "what", "remedy"), rows) if rows else ""
        return html_text(repr(self)) + found
