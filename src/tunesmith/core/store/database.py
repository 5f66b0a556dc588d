"""The connection: SQLite in the home's registry, or PostgreSQL by a URL; always at the newest migration.

SQLite writes begin with BEGIN IMMEDIATE, so that two processes never read the same state and both write. PostgreSQL
takes row locks by itself; everything that counts is one UPDATE with a condition, which is right on both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from tunesmith.core.errors import UserError
from tunesmith.core.home import Home
from tunesmith.core.publish import disk_error
from tunesmith.core.store.tables import metadata

VARIABLE = "TUNESMITH_STORE"
NEWEST = "0001"
"""The newest migration; compared here so that opening an up-to-date store need not import Alembic."""
BUSY_SECONDS = 30
UPGRADE_LOCK = 7_421_990_113
"""Any fixed number: PostgreSQL's advisory lock while the tables are upgraded."""
_DISK_FULL = "database or disk is full"


class Database:
    """The store's connections. Thread-safe; open one per process.

    Nothing is created before something is written: a store that is not there yet reads as empty.
    """

    def __init__(self, home: Home, url: str = "") -> None:
        self.home = home
        self._url = _parse(url or os.environ.get(VARIABLE, ""), home)
        self._engine = _engine(self._url)
        self._is_ready = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the connections back; SQLite folds its write-ahead log into the file."""
        self._engine.dispose()

    def check(self) -> None:
        """Ask the database something, for health checks.

        Raises:
            UserError: It does not answer.
        """
        with self._reading() as connection:
            connection.execute(text("SELECT 1"))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._faults():
            if self._is_sqlite and not Path(str(self._url.database)).is_file():
                engine = create_engine("sqlite://")
                metadata.create_all(engine)
            else:
                self._upgrade_once()
                engine = self._engine
            with engine.connect() as connection, connection.begin():
                yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._faults():
            self._upgrade_once()
            with self._engine.connect().execution_options(is_writing=True) as connection, connection.begin():
                yield connection

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as fault:
            raise self._error(fault) from fault

    def _error(self, fault: DBAPIError) -> UserError:
        where = self._url.render_as_string(hide_password=True)
        reason = str(fault.orig).strip().partition("\n")[0]
        if self._is_sqlite:
            where = str(self._url.database)
            if _DISK_FULL in reason:
                return disk_error(OSError(28, reason), Path(where))
            if "not a database" in reason or "malformed" in reason:
                remedy = "Put a copy back, or move the file away to start with an empty registry."
                return UserError(
                    f"the registry is damaged: {reason}.", code="store_damaged", where=where, remedy=remedy
                )
            if "locked" in reason:
                remedy = "Stop the process that holds it."
                return UserError(
                    f"the registry was locked for {BUSY_SECONDS} s.", code="store_locked", where=where, remedy=remedy
                )
        remedy = "Check that it is reachable and that you may write to it."
        return UserError(f"the registry failed: {reason}.", code="store_failed", where=where, remedy=remedy)

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def _upgrade_once(self) -> None:
        with self._lock:
            if self._is_ready:
                return
            is_new = self._is_sqlite and not Path(str(self._url.database)).is_file()
            if is_new or self._revision() != NEWEST:
                self._upgrade_sqlite() if self._is_sqlite else self._upgrade_postgresql()
            self._is_ready = True

    def _upgrade_postgresql(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})"))
            self._migrate(connection)

    def _revision(self) -> str:
        with self._engine.connect() as connection:
            return _revision(connection)

    def _upgrade_sqlite(self) -> None:
        file = Path(str(self._url.database))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = (file.parent / f".{file.name}.lock").open("w")
        except OSError as fault:
            raise disk_error(fault, file.parent) from fault
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            raw = self._engine.raw_connection()
            raw.cursor().execute("PRAGMA journal_mode=WAL")
            raw.close()
            with self._engine.connect().execution_options(is_writing=True) as connection, connection.begin():
                self._migrate(connection)

    def _migrate(self, connection: Connection) -> None:
        revision = _revision(connection)
        if revision == NEWEST:
            return
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError:
            raise UserError(
                f'the registry was written by a newer Tunesmith (its tables are at "{revision}", here "{NEWEST}").',
                code="store_newer",
                where=self._url.render_as_string(hide_password=True),
                remedy="Upgrade Tunesmith: pip install --upgrade tunesmith",
            ) from None


def _parse(text_url: str, home: Home) -> URL:
    if not text_url:
        return URL.create("sqlite", database=str(home.database))
    try:
        url = make_url(text_url)
    except ArgumentError:
        raise UserError(
            "the address of the store is not a database URL.",
            code="bad_store",
            where=VARIABLE,
            remedy="For example postgresql://user@host/tunesmith or sqlite:////srv/tunesmith.db",
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql") or (url.drivername == "sqlite" and not url.database):
        raise UserError(
            f'a store is a SQLite file or PostgreSQL, not "{url.render_as_string(hide_password=True)}".',
            code="bad_store",
            where=VARIABLE,
            remedy="For example postgresql://user@host/tunesmith or sqlite:////srv/tunesmith.db",
        )
    return url


def _engine(url: URL) -> Engine:
    try:
        engine = create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite")
    except (ModuleNotFoundError, NoSuchModuleError) as fault:
        raise UserError(
            f"this store needs a driver: {fault}.", code="missing_package", remedy="pip install 'psycopg[binary]'"
        ) from None
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _revision(connection: Connection) -> str:
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
