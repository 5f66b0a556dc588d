"""The store: what must be transactional (versions, aliases, requests, feedback, jobs), in one database.

SQLite in the home's registry, or any database named by TUNESMITH_STORE. Only this package imports sqlalchemy.
"""

from __future__ import annotations

from typing import Self

from tunesmith.core.home import Home
from tunesmith.core.store.jobs import JobStore
from tunesmith.core.store.judgements import JudgementStore
from tunesmith.core.store.records import AliasMove, FeedbackRow, Job, RequestRow, Version
from tunesmith.core.store.versions import CHAMPION, VersionStore, check_name, split_reference

__all__ = [
    "CHAMPION",
    "AliasMove",
    "FeedbackRow",
    "Job",
    "RequestRow",
    "Store",
    "Version",
    "check_name",
    "split_reference",
]


class Store(VersionStore, JudgementStore, JobStore):
    """Everything of a home's registry but the files."""

    @staticmethod
    def open(home: Home, url: str = "") -> Store:
        """The store of a home, or of a database URL; `url` overrules TUNESMITH_STORE.

        Raises:
            UserError: The URL is none, or its driver is missing.
        """
        return Store(home, url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_fault: object) -> None:
        self.close()
