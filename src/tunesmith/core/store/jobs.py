"""Jobs: work that outlives the request that started it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, insert, select, update

from tunesmith.core.errors import UserError
from tunesmith.core.run import now
from tunesmith.core.store.database import Database
from tunesmith.core.store.records import Job
from tunesmith.core.store.tables import jobs


class JobStore(Database):
    """Jobs with their state."""

    def add_job(self, job: Job) -> Job:
        """Record a new job."""
        at = now()
        with self._writing() as connection:
            connection.execute(
                insert(jobs).values(
                    id=job.id,
                    kind=job.kind,
                    state=job.state,
                    progress=job.progress,
                    details=dict(job.values),
                    at=at,
                    changed_at=at,
                )
            )
        return self.job(job.id)

    def change_job(self, job_id: str, *, state: str, progress: float, values: Mapping[str, Any] | None = None) -> Job:
        """Record how far a job is.

        Raises:
            UserError: There is no such job.
        """
        columns: dict[str, Any] = {"state": state, "progress": progress, "changed_at": now()}
        if values is not None:
            columns["details"] = dict(values)
        with self._writing() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(columns))
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        """One job.

        Raises:
            UserError: There is none with this id.
        """
        with self._reading() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise UserError(f"there is no job {job_id[:80]!r}.", code="unknown_job")
        return _job(row)

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, newest first."""
        with self._reading() as connection:
            rows = connection.execute(select(jobs).order_by(jobs.c.at.desc(), jobs.c.id))
            return tuple(_job(row) for row in rows)


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        state=row.state,
        progress=row.progress,
        values=row.details,
        at=row.at,
        changed_at=row.changed_at,
    )
