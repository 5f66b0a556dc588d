"""Publishing is atomic: a folder appears whole, with a manifest of SHA-256 sums, or not at all.

Order: write under a hidden temporary name, sync every file, write and sync manifest.json last,
rename, sync the parent. Readers accept only what `verify` accepts. Who writes a draft holds a lock on it that goes with
the process, so a draft without one is left over from a kill, and is removed by `remove_stale_drafts`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError

MANIFEST = "manifest.json"
_DRAFT = re.compile(r"\..+\.tmp-[0-9a-f]{8}")
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@contextmanager
def publishing(
    target: Path, *, sums: Mapping[str, str] = {}, needed_bytes: int = 0, is_replaced: bool = False
) -> Iterator[Path]:
    """A temporary folder to write into; on a clean exit it becomes `target` with a manifest.

    `sums` may give the SHA-256 of files that were hashed while they were written; it is read at the end.
    `needed_bytes`, where known, is told if the disk is full. With `is_replaced` a target that exists gives way once the
    new one is complete; one with the same contents stays.

    Raises:
        UserError: `target` exists, or the disk is full or failing.
    """
    if target.exists() and not is_replaced:
        raise _exists(target)
    fault: OSError | None = None
    draft, lock = None, -1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_drafts(target.parent, f"{target.name}.tmp-")
        draft, lock = _new_draft(target)
        yield draft
        seal(draft, sums)
        if is_replaced and target.exists():
            if _is_same(draft, target):
                return
            discard(target)
        draft.rename(target)
        sync_folder(target.parent)
    except OSError as one:
        fault = one
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        if lock >= 0:
            os.close(lock)
    if fault is not None:  # told when the draft is gone, so that the free bytes are those that there will be
        if fault.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.exists():  # somebody else was first
            raise _exists(target) from None
        raise disk_error(fault, target, needed_bytes) from fault


def discard(folder: Path) -> None:
    """Delete a published folder: it is gone as a whole at once, whenever the process is killed."""
    hidden = folder.parent / _draft_name(folder)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_stale_drafts(folder: Path, name: str = "") -> int:
    """Delete what killed processes left half-written in a folder (of one `name`, or of all): how many drafts.

    Drafts of processes that live are locked and stay.
    """
    if not folder.is_dir():
        return 0
    drafts = [path for path in folder.iterdir() if _DRAFT.fullmatch(path.name) and path.name.startswith(f".{name}")]
    return sum(_is_removed(draft) for draft in drafts)


def write_text(path: Path, text: str) -> None:
    """Write one file atomically: temporary name, sync, rename, sync the parent."""
    draft = path.parent / _draft_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            _lock(file.fileno())
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            draft.replace(path)
        sync_folder(path.parent)
    except OSError as fault:
        draft.unlink(missing_ok=True)
        raise disk_error(fault, path, len(text.encode())) from fault
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON file atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def seal(folder: Path, sums: Mapping[str, str] = {}) -> None:
    """Sync every file of a folder, and write the manifest that `verify` compares them with."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for name, path in _files(folder):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": sums.get(name) or sha256(path)}
    for one in {path.parent for _, path in _files(folder)}:
        sync_folder(one)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"format": 1, "files": files}, file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder, after every file's size and hash were compared.

    Raises:
        UserError: No manifest, a file is missing, was added, or differs.
    """
    manifest = read_manifest(folder)
    listed = manifest["files"]
    present = {name: path for name, path in _files(folder) if name != MANIFEST}
    for name in sorted(set(listed) | set(present)):
        if name not in present:
            raise _damaged(folder, f"{name} is missing")
        if name not in listed:
            raise _damaged(folder, f"{name} is not in its manifest")
        if present[name].stat().st_size != listed[name]["bytes"]:
            raise _damaged(folder, f"{name} has {present[name].stat().st_size} bytes, not {listed[name]['bytes']}")
        try:
            is_right = sha256(present[name]) == listed[name]["sha256"]
        except OSError as fault:
            raise _damaged(folder, f"{name} cannot be read ({fault.strerror})") from fault
        if not is_right:
            raise _damaged(folder, f"the contents of {name} do not match its SHA-256 sum")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as written, unverified.

    Raises:
        UserError: It is absent or unreadable.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
            return manifest
    except (OSError, ValueError):
        pass
    raise _damaged(folder, "it has no readable manifest.json")


def is_whole(folder: Path) -> bool:
    """Whether `verify` accepts it."""
    try:
        verify(folder)
    except UserError:
        return False
    return True


def content_hash(folder: Path) -> str:
    """One SHA-256 over the names and sums of a published folder: its address by content."""
    files = read_manifest(folder)["files"]
    lines = "".join(f"{files[name]['sha256']}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256(path: Path) -> str:
    """The file's SHA-256 sum in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_pickles(folder: Path) -> None:
    """Weights are safetensors only.

    Raises:
        UserError: A file that may run code when loaded is present.
    """
    for name, path in _files(folder):
        if path.suffix in PICKLES and path.name != "training_args.bin":
            raise UserError(
                f"{name} is a pickle, which can run code when it is loaded.",
                code="pickle_refused",
                where=str(folder),
                remedy="Convert it to safetensors (`save_pretrained` of transformers 5 does) and delete it.",
            )


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(fault: OSError, path: Path, needed_bytes: int = 0) -> UserError:
    """An operating-system fault on writing as an error with what the user needs to mend it."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            free = shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free
        except OSError:
            free = 0
        needed = f"{needed_bytes:,} bytes are needed and {free:,}" if needed_bytes else f"{free:,} bytes"
        return UserError(
            f"the disk is full: {needed} are free.",
            code="disk_full",
            where=str(path),
            remedy="Free some space and start again; nothing half-written was left.",
        )
    return UserError(f"cannot be written: {fault.strerror or fault}.", code="cannot_write", where=str(path))


def _new_draft(target: Path) -> tuple[Path, int]:
    """A locked temporary folder, and the descriptor that holds its lock."""
    while True:
        draft = target.parent / _draft_name(target)
        draft.mkdir()
        try:
            lock = os.open(draft, os.O_RDONLY)
        except FileNotFoundError:  # somebody cleaned up between the two calls
            continue
        _lock(lock)
        if draft.exists():
            return draft, lock
        os.close(lock)


def _draft_name(target: Path) -> str:
    return f".{target.name}.tmp-{uuid.uuid4().hex[:8]}"


def _lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks: then drafts are not known to be stale
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_removed(draft: Path) -> bool:
    try:
        descriptor = os.open(draft, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        return True
    except OSError:  # somebody writes it
        return False
    finally:
        os.close(descriptor)


def _is_same(draft: Path, target: Path) -> bool:
    return is_whole(target) and read_manifest(draft)["files"] == read_manifest(target)["files"]


def _files(folder: Path) -> list[tuple[str, Path]]:
    return sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())


def _exists(target: Path) -> UserError:
    return UserError(
        "this exists already.", code="exists", where=str(target), remedy="Choose another name, or delete it."
    )


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(
        f"the folder is incomplete or damaged: {why}.",
        code="damaged",
        where=str(folder),
        remedy="Make it again, or use an earlier one.",
    )
