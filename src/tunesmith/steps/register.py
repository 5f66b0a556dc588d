"""Register: a finished run becomes a version, a copy published atomically under the next number of a name.

Content-addressed: the same model, recipe and data registered again give the version there is. The report and the
environment are copied too but not addressed, for their clocks always differ.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finished, Saved, Started
from tunesmith.core.home import Home
from tunesmith.core.publish import content_hash, disk_error, publishing, refuse_pickles, sha256, verify
from tunesmith.core.run import RunFolder
from tunesmith.core.store import CHAMPION, Store, Version, check_name
from tunesmith.recipe import Recipe, read_recipe

COPIED = ("recipe.yaml", "data.json", "report.json", "environment.json")
ADDRESSED = ("recipe.yaml", "data.json")


def register(home: Home, run: str | Path, name: str = "", *, emit: Emit, parent: str = "") -> Version:
    """A finished run as a version; the name is the recipe's where left out. `parent` is the version it came from.

    Raises:
        UserError: The run is not finished or damaged, or the name is not allowed.
    """
    started = time.perf_counter()
    folder = _open_run(home, run)
    recipe = read_recipe(folder.recipe)
    name = name or recipe.name
    check_name(name, "a model")
    emit(Started("register", f"{folder.path} as {name}", {"run": str(folder.path), "name": name}))
    with Store.open(home) as store, _one_at_a_time(home.versions(name)):
        version = store.find_content(name, address_of(folder.path)) or _add(store, folder, name, recipe, parent)
    if version.is_new:
        emit(Saved("register", str(version.folder), version.reference))
    text = version.reference if version.is_new else f"the same model is registered already: {version.reference}"
    following = () if CHAMPION in version.aliases else (f"tunesmith models promote {version.reference}",)
    values = {"version": version.number, "is_new": version.is_new}
    emit(Finished("register", text, time.perf_counter() - started, values, next=following))
    return version


def _open_run(home: Home, run: str | Path) -> RunFolder:
    beside = home.runs / str(run)
    is_name = not Path(run).exists() and (beside / "recipe.yaml").is_file()
    folder = RunFolder.open(beside if is_name else run)
    folder.refuse_several_tasks()
    if folder.state != "finished":
        raise UserError(
            f"the run is {folder.state}, and only a finished one can be registered.",
            code="unfinished_run",
            where=str(folder.path),
            remedy=f"Finish it: tunesmith train --resume {folder.path}",
        )
    missing = [name for name in COPIED if not (folder.path / name).is_file()]
    if missing:
        raise UserError(f"the run has no {missing[0]}.", code="damaged", where=str(folder.path))
    verify(folder.model)
    refuse_pickles(folder.model)
    links = [path for path in folder.path.rglob("*") if path.is_symlink() and folder.model in path.parents]
    if links:
        raise UserError("a model folder may hold no symbolic link.", code="link_refused", where=str(links[0]))
    return folder


def address_of(folder: Path) -> str:
    """SHA-256 over the names and sums of model/ and what else decided it."""
    lines = [
        f"{content_hash(folder / 'model')}  model\n",
        *(f"{sha256(folder / name)}  {name}\n" for name in ADDRESSED),
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _add(store: Store, run: RunFolder, name: str, recipe: Recipe, parent: str) -> Version:
    folder, address = store.home.versions(name), address_of(run.path)
    target = folder / str(store.reserve_number(name, at_least=_highest(folder) + 1))
    _publish(run, target, address)
    lineage = {**_lineage(run, recipe), "parent": parent or None}
    version = store.add_version(name, int(target.name), content_hash=address, folder=target, lineage=lineage)
    if not version.is_new:  # another machine on the same database was first with this content
        shutil.rmtree(target, ignore_errors=True)
    return version


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Only one process registers under a name; what a killed one left half-written is removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as fault:
        raise disk_error(fault, folder) from fault
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for draft in folder.glob(".*.tmp-*"):
            shutil.rmtree(draft, ignore_errors=True)
        yield


def _highest(folder: Path) -> int:
    """The highest number among the folders: it stays taken even if the database was lost."""
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


def _publish(run: RunFolder, target: Path, address: str) -> None:
    with publishing(target) as draft:
        shutil.copytree(run.model, draft / "model")
        for name in COPIED:
            shutil.copyfile(run.path / name, draft / name)
        verify(draft / "model")
        if address_of(draft) != address:
            raise UserError("the run changed while it was copied.", code="run_changed", where=str(run.path))


def _lineage(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    card = _json_file(run.model / "tunesmith.json")
    environment = _json_file(run.path / "environment.json")
    after = _json_file(run.path / "report.json").get("after") or {}
    return {
        "run": run.name,
        "base": card.get("base") or {},
        "method": recipe.method.summary(),
        "objective": card.get("objective", ""),
        "data_sha256": sha256(run.path / "data.json"),
        "recipe": recipe.model_dump(mode="json"),
        "fingerprint": recipe.fingerprint(),
        "seed": recipe.seed,
        "code_version": __version__,
        "packages": environment.get("packages") or {},
        "machine": environment.get("machine") or "",
        "scores": [_short_score(score) for score in after.get("scores") or ()],
        "num_rows": len(after.get("outcomes") or ()),
        "seconds_per_answer": after.get("seconds_per_answer"),
        "peak_bytes": after.get("peak_bytes"),
        "trained_at": environment.get("at", ""),
    }


def _short_score(score: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("metric", "value", "low", "high", "num_rows", "higher_is_better", "signature")
    return {key: score[key] for key in keys if key in score}


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as fault:
        raise UserError(f"the file cannot be read: {fault}.", code="damaged", where=str(path)) from None
    return value if isinstance(value, dict) else {}
