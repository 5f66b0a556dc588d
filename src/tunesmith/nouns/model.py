"""Registered models and their versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.events import silent
from tunesmith.core.home import Home
from tunesmith.reporters.notebook import html_table

if TYPE_CHECKING:
    from tunesmith.core.store import AliasMove
    from tunesmith.steps.models import Listed


@dataclass(frozen=True, repr=False)
class Version:
    """One version of a registered model."""

    reference: str
    """`name:number`."""
    home: Home

    @property
    def listed(self) -> Listed:
        """What the store knows of it now."""
        from tunesmith.steps.models import show

        return show(self.home, self.reference, emit=silent).listed

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.listed.version.folder

    @property
    def aliases(self) -> tuple[str, ...]:
        return self.listed.version.aliases

    def promote(self, alias: str = "champion", *, must_improve: bool = False) -> Version:
        """Move the alias here if every gate holds.

        Raises:
            GateError: One failed; `.gates` has the numbers.
        """
        from tunesmith.api import promote

        promote(self.home, self.reference, alias=alias, must_improve=must_improve)
        return self

    def __repr__(self) -> str:
        aliases = "".join(f", {alias}" for alias in self.aliases)
        return f"Version({self.reference!r}{aliases})"

    def _repr_html_(self) -> str:
        return html_table(*_versions((self.listed,)))


@dataclass(frozen=True, repr=False)
class Model:
    """A registered model: its versions and its aliases."""

    name: str
    home: Home

    @staticmethod
    def open(name: str, home: Home | None = None) -> Model:
        """The model of that name.

        Raises:
            UserError: There is none; the nearest names are suggested.
        """
        model = Model(name, home or Home.open())
        assert model.versions is not None  # reads the store, which knows the nearest names
        return model

    @staticmethod
    def names(home: Home | None = None) -> tuple[str, ...]:
        """All registered names."""
        from tunesmith.core.store import Store

        with Store.open(home or Home.open()) as store:
            return store.names()

    @staticmethod
    def overview() -> str:
        """All models of the default home, as a table for notebooks."""
        from tunesmith.steps.models import list_models

        return html_table(*_versions(list_models(Home.open())))

    @property
    def versions(self) -> tuple[Listed, ...]:
        """All versions, newest first."""
        from tunesmith.steps.models import list_models

        return list_models(self.home, self.name)

    def __getitem__(self, number: int) -> Version:
        if number not in [listed.version.number for listed in self.versions]:
            from tunesmith.core.store import Store

            with Store.open(self.home) as store:
                store.version(f"{self.name}:{number}")  # raises, and says which there are
        return Version(f"{self.name}:{number}", self.home)

    def __iter__(self) -> Iterator[Version]:
        return (Version(listed.version.reference, self.home) for listed in self.versions)

    @property
    def champion(self) -> Version | None:
        """The version that is served by default."""
        found = next((one.version for one in self.versions if "champion" in one.version.aliases), None)
        return Version(found.reference, self.home) if found else None

    @property
    def history(self) -> tuple[AliasMove, ...]:
        """Who moved the champion when, oldest first."""
        from tunesmith.core.store import Store

        with Store.open(self.home) as store:
            return store.history(self.name)

    def promote(self, number: int = 0, *, must_improve: bool = False) -> Version:
        """Make a version the champion if every gate holds: the newest where no number is given."""
        chosen = self[number] if number else Version(self.versions[0].version.reference, self.home)
        return chosen.promote(must_improve=must_improve)

    def rollback(self) -> Version:
        """Make the champion before this one the champion again."""
        from tunesmith.api import rollback

        return self[rollback(self.home, self.name).move.number]

    def __repr__(self) -> str:
        versions = self.versions
        champion = self.champion
        tail = f", champion {champion.reference}" if champion else ", no champion"
        return f"Model({self.name!r}, {len(versions)} version{'s' if len(versions) != 1 else ''}{tail})"

    def _repr_html_(self) -> str:
        return html_table(*_versions(self.versions))


def _versions(listed: Sequence[Listed]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    from tunesmith.steps.models import score_text

    rows: list[tuple[str, ...]] = [
        (
            one.version.name,
            str(one.version.number),
            ", ".join(one.version.aliases),
            one.version.at,
            score_text(one.version),
        )
        for one in listed
    ]
    return ("name", "version", "alias", "made", "score"), rows
