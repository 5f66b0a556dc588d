"""A folder of things that can be made again: each under a name that says what it was made from, bounded in size.

An entry is published whole, verified whenever it is opened, and made again where it is damaged, which is said. What was
not used for longest goes first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Warning, silent
from tunesmith.core.publish import disk_error, publishing, remove_stale_drafts, verify

LIMIT = "TUNESMITH_ROW_CACHE_GIB"
DEFAULT_GIB = 20.0
STALE_SECONDS = 24 * 3600.0
"""An unfinished entry that is older goes where the file system has no locks; those tell at once that a writer died."""


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/tunesmith`, or `~/.cache/tunesmith`; made by whoever writes into it."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if Path(root).is_absolute() else Path("~/.cache").expanduser()
    return base / "tunesmith"


@dataclass(frozen=True)
class Cache:
    """A folder of entries; `limit_bytes` 0 keeps nothing."""

    folder: Path
    limit_bytes: int

    @staticmethod
    def of_rows() -> Cache:
        """`$XDG_CACHE_HOME/tunesmith/rows`, at most `$TUNESMITH_ROW_CACHE_GIB` GiB (20).

        Raises:
            UserError: The variable is not a number.
        """
        text = os.environ.get(LIMIT, "")
        try:
            limit = float(text) if text else DEFAULT_GIB
        except ValueError:
            raise UserError(
                f"{text!r} is not a number of GiB.", code="bad_variable", where=LIMIT, remedy="Set it to e.g. 20."
            ) from None
        return Cache(user_cache() / "rows", int(limit * 2**30))

    @contextmanager
    def entry(
        self, key: Callable[[], str], build: Callable[[Path], None], emit: Emit = silent, *, step: str = ""
    ) -> Iterator[Path]:
        """The folder of an entry, as `open`; one that is gone afterwards where nothing is or can be kept.

        Raises:
            UserError: As `open`.
        """
        if self.limit_bytes and self._is_writable(emit, step):
            yield self.open(key(), build, emit, step=step)
            return
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
            try:
                build(Path(folder))
            except OSError as fault:
                raise disk_error(fault, Path(folder)) from fault
            yield Path(folder)

    def open(self, key: str, build: Callable[[Path], None], emit: Emit = silent, *, step: str = "") -> Path:
        """The verified folder of an entry; `build` writes what is not there into a draft.

        Raises:
            UserError: `build` raised it, or there is no room on the disk.
        """
        remove_stale_drafts(self.folder)
        entry = self.folder / key
        if entry.exists():
            try:
                verify(entry)
                os.utime(entry)
                return entry
            except (UserError, OSError) as fault:
                text = f"what an earlier run kept of these rows is damaged and is made again ({fault})"
                emit(Warning(step, "cache_damaged", text, {"path": str(entry)}))
                self._delete(entry)
        try:
            with publishing(entry) as draft:
                build(draft)
        except UserError as fault:
            if fault.code != "exists":  # another process was first, with the same rows
                raise
        self.shrink(keep=entry)
        return entry

    def shrink(self, keep: Path) -> None:
        """Delete what was not used for longest until the limit is kept; `keep` stays whatever its size."""
        now = time.time()
        found = []
        for path in self.folder.iterdir():
            if path.name.startswith("."):
                if now - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            elif path != keep:
                found.append((path.stat().st_mtime, path, _size(path)))
        total = _size(keep) + sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if total <= self.limit_bytes:
                break
            self._delete(path)
            total -= size

    def _is_writable(self, emit: Emit, step: str) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                return True
        except OSError as fault:
            text = f"rows are not kept for the next run: {fault.strerror or fault} ({self.folder})"
            emit(Warning(step, "cache_unusable", text))
            return False

    def _delete(self, entry: Path) -> None:
        doomed = entry.parent / f".{entry.name}.tmp-{uuid.uuid4().hex[:8]}"
        try:
            entry.rename(doomed)
        except FileNotFoundError:  # another process was first
            return
        shutil.rmtree(doomed, ignore_errors=True)


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except FileNotFoundError:  # deleted by another process
        return 0
