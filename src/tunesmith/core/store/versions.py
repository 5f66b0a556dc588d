"""Versions under names, and the aliases that point at them.

Numbers are never reused. An alias moves only from where the caller saw it (compare-and-swap), and every move is
one more line of a history that the database itself refuses to change.
"""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Row, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.core.errors import UserError, unknown_name
from tunesmith.core.run import now
from tunesmith.core.store.database import Database
from tunesmith.core.store.records import AliasMove, Version
from tunesmith.core.store.tables import alias_history, aliases, models, versions

CHAMPION = "champion"
"""The alias that a plain name stands for."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class VersionStore(Database):
    """Names, numbers, aliases."""

    def names(self) -> tuple[str, ...]:
        """The registered names, sorted."""
        with self._reading() as connection:
            return tuple(connection.scalars(select(models.c.name).order_by(models.c.name)))

    def versions(self, name: str) -> tuple[Version, ...]:
        """All versions of a name, newest first.

        Raises:
            UserError: The name is not registered.
        """
        with self._reading() as connection:
            self._require(connection, name)
            return self._select(connection, name)

    def version(self, reference: str) -> Version:
        """The version of `name` (its champion, else its newest), `name@alias` or `name:number`.

        Raises:
            UserError: There is no such name, alias or number; the nearest are named.
        """
        name, separator, rest = split_reference(reference)
        with self._reading() as connection:
            self._require(connection, name)
            found = self._select(connection, name)
        if not found:
            raise UserError(f'all versions of "{name}" were deleted.', code="unknown_version", remedy=_REGISTER)
        if separator == ":":
            match = next((v for v in found if str(v.number) == rest), None)
            if match is None:
                listing = ", ".join(f"{name}:{v.number}" for v in reversed(found[:8]))
                raise UserError(
                    f'there is no version "{reference}";', code="unknown_version", remedy=f"there are: {listing}."
                )
            return match
        wanted = rest or CHAMPION
        match = next((v for v in found if wanted in v.aliases), None)
        if match is not None:
            return match
        if separator == "@":
            known = [alias for v in found for alias in v.aliases]
            listing = "" if known else f"`tunesmith models promote {name}:{found[0].number}` sets one."
            raise unknown_name("alias", rest, known, where=name, listing=listing)
        return found[0]

    def find_content(self, name: str, content_hash: str) -> Version | None:
        """The version of this name that has this content already."""
        with self._reading() as connection:
            return next((v for v in self._select(connection, name) if v.content_hash == content_hash), None)

    def reserve_number(self, name: str, *, at_least: int = 1) -> int:
        """A number that nobody had or will get again, even if no version follows."""
        check_name(name, "a model")
        with self._writing() as connection:
            self._insert_if_absent(connection, models, {"name": name, "last_number": 0, "at": now()})
            last = connection.scalar(select(models.c.last_number).where(models.c.name == name).with_for_update())
            number = max(int(last or 0) + 1, at_least)
            connection.execute(update(models).where(models.c.name == name).values(last_number=number))
            return number

    def add_version(
        self, name: str, number: int, *, content_hash: str, folder: Path, lineage: Mapping[str, Any]
    ) -> Version:
        """Record a published folder under a reserved number; the same content is recorded once.

        Where another process was first with this content, its version comes back and `is_new` is False.
        """
        with self._writing() as connection:
            values = {
                "name": name,
                "number": number,
                "content_hash": content_hash,
                "folder": folder.relative_to(self.home.registry).as_posix(),
                "lineage": dict(lineage),
                "who": who(),
                "at": now(),
            }
            is_new = self._insert_if_absent(connection, versions, values)
            row = connection.execute(
                select(versions).where(versions.c.name == name, versions.c.content_hash == content_hash)
            ).one()
            return self._version(row, self._aliases(connection, name), is_new=is_new)

    def delete_version(self, reference: str) -> Version:
        """Delete a version and its files; its number stays used.

        Raises:
            UserError: An alias points at it, or it does not exist.
        """
        version = self.version(reference)
        with self._writing() as connection:
            held = [alias for alias, number in self._aliases(connection, version.name) if number == version.number]
            if held:
                raise UserError(
                    f"{version.reference} cannot be deleted: it is the {' and the '.join(held)}.",
                    code="version_aliased",
                    remedy=f"Promote another version first: tunesmith models list {version.name}",
                )
            connection.execute(
                delete(versions).where(versions.c.name == version.name, versions.c.number == version.number)
            )
        shutil.rmtree(version.folder, ignore_errors=True)
        return version

    def aliases(self, name: str) -> dict[str, int]:
        """Where each alias of a name points."""
        with self._reading() as connection:
            return dict(self._aliases(connection, name))

    def move_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        expected: int | None,
        kind: Literal["promote", "rollback"] = "promote",
        gates: Sequence[Mapping[str, Any]] = (),
    ) -> AliasMove:
        """Point an alias at a version, if it still points where the caller saw it (None: nowhere).

        Raises:
            UserError: Somebody else moved it in between, or there is no such version.
        """
        check_name(alias, "an alias")
        with self._writing() as connection:
            exists = select(versions.c.number).where(versions.c.name == name, versions.c.number == number)
            if connection.scalar(exists) is None:
                raise UserError(f'there is no version "{name}:{number}".', code="unknown_version")
            if not self._swap(connection, name, alias, (expected, number)):
                current = dict(self._aliases(connection, name)).get(alias)
                raise UserError(
                    f"{name}@{alias} was moved by somebody else meanwhile: it is {current}, not {expected}.",
                    code="alias_moved",
                    remedy="Look at it, then try again: tunesmith models list " + name,
                )
            move = AliasMove(
                name=name,
                alias=alias,
                previous=expected,
                number=number,
                kind=kind,
                who=who(),
                at=now(),
                gates=tuple(gates),
            )
            connection.execute(
                insert(alias_history).values(
                    name=name,
                    alias=alias,
                    previous=expected,
                    number=number,
                    kind=kind,
                    gates=[dict(gate) for gate in gates],
                    who=move.who,
                    at=move.at,
                )
            )
            return move

    def history(self, name: str, alias: str = CHAMPION) -> tuple[AliasMove, ...]:
        """All moves of an alias, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                select(alias_history)
                .where(alias_history.c.name == name, alias_history.c.alias == alias)
                .order_by(alias_history.c.id)
            )
            return tuple(
                AliasMove(
                    name=row.name,
                    alias=row.alias,
                    previous=row.previous,
                    number=row.number,
                    kind=row.kind,
                    who=row.who,
                    at=row.at,
                    gates=tuple(row.gates),
                )
                for row in rows
            )

    def _swap(self, connection: Connection, name: str, alias: str, move: tuple[int | None, int]) -> bool:
        expected, number = move
        if expected is None:
            return self._insert_if_absent(connection, aliases, {"name": name, "alias": alias, "number": number})
        here = (aliases.c.name == name, aliases.c.alias == alias, aliases.c.number == expected)
        return connection.execute(update(aliases).where(*here).values(number=number)).rowcount == 1

    def _insert_if_absent(self, connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
        upsert: Any = sqlite.insert if self._is_sqlite else postgresql.insert
        statement = upsert(table).values(values).on_conflict_do_nothing().returning(*table.primary_key)
        return connection.execute(statement).first() is not None

    def _require(self, connection: Connection, name: str) -> None:
        known = list(connection.scalars(select(models.c.name)))
        if name not in known:
            if known:
                raise unknown_name("registered model", name, known)
            raise UserError(
                f'there is no registered model "{name}".', code="unknown_registered_model", remedy=_REGISTER
            )

    def _aliases(self, connection: Connection, name: str) -> list[tuple[str, int]]:
        rows = connection.execute(select(aliases).where(aliases.c.name == name).order_by(aliases.c.alias))
        return [(row.alias, row.number) for row in rows]

    def _select(self, connection: Connection, name: str) -> tuple[Version, ...]:
        rows = connection.execute(select(versions).where(versions.c.name == name).order_by(versions.c.number.desc()))
        pairs = self._aliases(connection, name)
        return tuple(self._version(row, pairs) for row in rows)

    def _version(self, row: Row[Any], pairs: Iterable[tuple[str, int]], *, is_new: bool = False) -> Version:
        return Version(
            name=row.name,
            number=row.number,
            content_hash=row.content_hash,
            folder=self.home.registry / row.folder,
            lineage=row.lineage,
            who=row.who,
            at=row.at,
            aliases=tuple(alias for alias, number in pairs if number == row.number),
            is_new=is_new,
        )


def split_reference(reference: str) -> tuple[str, str, str]:
    """(name, separator, rest): `manual:4` is ("manual", ":", "4"), a plain name has two empty parts.

    Raises:
        UserError: It is none of the three forms.
    """
    for separator in ("@", ":"):
        name, found, rest = reference.partition(separator)
        if found:
            is_well_formed = bool(_NAME.fullmatch(rest)) if separator == "@" else rest.isascii() and rest.isdigit()
            if _NAME.fullmatch(name) and is_well_formed:
                return name, separator, rest
            raise _bad_reference(reference)
    if not _NAME.fullmatch(reference):
        raise _bad_reference(reference)
    return reference, "", ""


def check_name(name: str, noun: str) -> None:
    """Refuse what could leave the folder, or cannot be written in a reference.

    Raises:
        UserError: A character or the length is not allowed.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name[:80]!r} cannot be a name for {noun}.",
            code="bad_name",
            remedy="Use at most 64 letters, digits, dots, dashes and underscores, a letter or digit first.",
        )


def who() -> str:
    """The user of this process, as the lineage records it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


_REGISTER = "Register a finished run: tunesmith models register runs/NAME NAME."


def _bad_reference(reference: str) -> UserError:
    return UserError(
        f"{reference[:80]!r} names no version.",
        code="bad_reference",
        remedy="Write manual (its champion), manual@champion, or manual:4.",
    )
