"""A run folder: recipe.yaml environment.json data.json metrics.jsonl log.txt checkpoints/ model/ report.json.

`ls` and `cat` can read it; `state.json` says how far it is. Only one process works on a run at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError, suggest
from tunesmith.core.publish import disk_error, remove_stale_drafts, write_json, write_text

PACKAGES = ("tunesmith", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "safetensors")
_STEM = re.compile(r"[^./\\\0\n][^/\\\0\n]{0,99}")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run and the few things that are read from or written to them."""

    path: Path

    @staticmethod
    def create(root: Path, stem: str) -> RunFolder:
        """A new run `root/stem-N`, N one more than the highest there is.

        Raises:
            UserError: The stem could leave the folder, or cannot be a file's name.
        """
        if not _STEM.fullmatch(stem):
            raise UserError(
                f"{stem[:80]!r} cannot be the name of a run.",
                code="bad_name",
                remedy="Set `name` in the recipe: at most 100 characters, no slash, no dot at the beginning.",
            )
        root.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(p.name, stem) for p in root.iterdir()), default=0)
        while True:
            path = root / f"{stem}-{number}"
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            run = RunFolder(path)
            run.checkpoints.mkdir()
            return run

    @staticmethod
    def make(path: Path) -> RunFolder:
        """A new run at this very path, which may be a folder that a killed one left without a recipe."""
        run = RunFolder(path)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        return run

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """An existing run.

        Raises:
            UserError: There is no run here; the nearest names are suggested.
        """
        path = Path(path)
        if (path / "recipe.yaml").is_file():
            return RunFolder(path)
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggest(path.name, near).sentence() or "List your runs with `ls runs`."
        raise UserError(f'"{path}" is not a run folder (it has no recipe.yaml);', code="unknown_run", remedy=hint)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of a run that has several, each a folder laid out as a run; empty where the run is one."""
        if self.model.is_dir() or not self.path.is_dir():
            return ()
        folders = (path for path in sorted(self.path.iterdir()) if (path / "trained_with.json").is_file())
        return tuple(path.name for path in folders)

    def refuse_several_tasks(self) -> None:
        """For what takes one model.

        Raises:
            UserError: The run holds several tasks, each with a model.
        """
        if names := self.tasks:
            raise UserError(
                f"this run holds {len(names)} tasks: {', '.join(names)}.",
                code="which_task",
                where=str(self.path),
                remedy=f"Name one: {self.path / names[0]}",
            )

    def write(self, name: str, value: Any) -> None:
        """Write `name` (a .json file from a plain value, or any text) atomically."""
        if name.endswith(".json"):
            write_json(self.path / name, value)
        else:
            write_text(self.path / name, value)

    def read_json(self, name: str) -> Any:
        """The plain value of a JSON file of the run, None where it does not exist."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @property
    def state(self) -> str:
        """`created`, `running`, `stopped`, `failed` or `finished`."""
        state = self.read_json("state.json")
        return str(state["state"]) if state else "created"

    def set_state(self, state: str, **values: Any) -> None:
        """Record where the run is, with the time."""
        self.write("state.json", {"state": state, "at": now(), **values})

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl; NaN and infinity are refused."""
        self.append("metrics.jsonl", json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def append(self, name: str, text: str) -> None:
        """Add text to a file of the run.

        Raises:
            UserError: The disk is full or failing.
        """
        path = self.path / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as fault:
            raise disk_error(fault, path, len(text.encode())) from fault

    def sync_metrics(self) -> None:
        """Make the lines of metrics.jsonl durable, as a checkpoint that counts on them is to be."""
        if self.metrics.is_file():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def keep_metrics(self, last_step: int) -> None:
        """Drop what was logged after `last_step`, so that a resumed run logs every step once."""
        kept = [record for record in self.read_metrics() if record["step"] <= last_step]
        write_text(self.metrics, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl up to the first that is not whole: a kill or a power cut tears the end."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_bytes().split(b"\n")[:-1]:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; the lock goes with the process, so a crash leaves none. What one left half-written is removed.

        Raises:
            UserError: Another process works on it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    "another process works on this run.",
                    code="run_locked",
                    where=str(self.path),
                    remedy="Wait for it, or stop it.",
                ) from None
            for folder in (self.path, self.checkpoints, *(self.path / task for task in self.tasks)):
                remove_stale_drafts(folder)
            yield


def environment(**values: Any) -> dict[str, Any]:
    """What else decided the numbers: versions, machine, threads. Holds no secret and no path."""
    return {
        "at": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
        "packages": dict(_versions()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else [],
        **values,
    }


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _number(name: str, stem: str) -> int:
    tail = name.removeprefix(f"{stem}-")
    return int(tail) if name.startswith(f"{stem}-") and tail.isdigit() else 0
