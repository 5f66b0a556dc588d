"""Compiled blocks between runs: a folder that is whole, or made again.

PyTorch takes a file that is there for a finished one, while the C++ compiler writes in place: what a killed process
left would break or slow every later run. So the folder's manifest is gone while somebody compiles, and a folder that
does not match its manifest is deleted.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunesmith.core.publish import MANIFEST, discard, is_whole, remove_stale_drafts, seal
from tunesmith.kernels.compiled_blocks import CannotCompileError

CACHE = "TORCHINDUCTOR_CACHE_DIR"
PART = "tunesmith"
"""What is ours of a folder that the user has named for everything that PyTorch compiles."""


@contextmanager
def compiled_kept_in(folder: Path) -> Iterator[None]:
    """Within it PyTorch keeps what it compiles in this folder, or in ours of the one that the user has named.

    Processes take turns. Where the folder cannot be written or locked, PyTorch has its own.
    """
    folder = _ours_of_the_users() or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError:
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _make_ready(folder)
        except OSError:
            yield
            return
        try:
            with _pytorch_told(folder):
                yield
        except CannotCompileError:  # what else was compiled stays
            _finish(folder)
            raise
        _finish(folder)


def _ours_of_the_users() -> Path | None:
    """PyTorch writes a default into the variable when parts of it are imported: that is nobody's wish."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    named = os.environ.get(CACHE, "")
    return Path(named) / PART if named and Path(named) != Path(default_cache_dir()).absolute() else None


def _make_ready(folder: Path) -> None:
    remove_stale_drafts(folder.parent, f"{folder.name}.tmp-")
    if not is_whole(folder):
        discard(folder)
        folder.mkdir()
    (folder / MANIFEST).unlink(missing_ok=True)


@contextmanager
def _pytorch_told(folder: Path) -> Iterator[None]:
    from torch._inductor import codecache

    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder)
    # PyTorch 2.13 has precompiled headers in the temporary folder whatever the variable says: half-written ones stayed
    codecache._HEADER_DIR = str(folder / "precompiled_headers")
    codecache._HEADER_LOCK_DIR = str(folder / "precompiled_headers" / "locks")
    try:
        yield
    finally:
        os.environ.pop(CACHE)
        if before is not None:
            os.environ[CACHE] = before


def _finish(folder: Path) -> None:
    with suppress(OSError):  # a full disk: without a manifest it is made again
        seal(folder)
