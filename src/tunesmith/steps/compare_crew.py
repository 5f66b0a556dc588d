"""Who does the units of a comparison: this process, or several worker processes of one share of the cores each.

A row that fails does not stop the others: what they found is kept, the fault is told when all are done, and the same
command goes on from there. Workers are fresh processes (spawned), so nothing of one row is in another's memory peak.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Event, Warning, silent
from tunesmith.recipe import Recipe, make_recipe
from tunesmith.steps.compare_cells import Cell, Try, Unit
from tunesmith.steps.compare_result import Result, finish
from tunesmith.steps.compare_rows import do
from tunesmith.steps.compare_work import STEP, Work

OnRow = Callable[[Result], None]
THREADS = "OMP_NUM_THREADS"
STOPPED = "stopped; what is done is kept, and the same command goes on from there"
STOP = ".stopped"
"""A file that tells workers to begin no other unit: one waits in each worker's queue and cannot be cancelled."""


def finish_rows(work: Work, on_row: OnRow, jobs: int = 1) -> list[Result]:
    """The result of every row, in the recipe's order; `on_row` is told each as it is done.

    Raises:
        UserError: A row failed; the others are finished and kept.
        Interrupted: The user stopped it; what is done is kept.
    """
    if jobs > 1:
        found, faults = _with_workers(work, on_row, jobs)
    else:
        try:
            found, faults = _alone(work, on_row)
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(STOPPED) from None
    if faults:
        raise _failed(work, faults)
    return [found[name] for name, _ in work.rows]


def _alone(work: Work, on_row: OnRow) -> tuple[dict[str, Result], dict[str, UserError]]:
    found: dict[str, Result] = {}
    faults: dict[str, UserError] = {}
    for name, _ in work.rows:
        try:
            found[name] = finish(work, name, lambda units: [do(work, unit) for unit in units])
            on_row(found[name])
        except UserError as fault:
            if not work.is_table:  # a short comparison ends at its first fault
                raise
            faults[name] = fault
            work.emit(Warning(STEP, fault.code, f"{name}: {fault.line()}"))
    return found, faults


def _with_workers(work: Work, on_row: OnRow, jobs: int) -> tuple[dict[str, Result], dict[str, UserError]]:
    """One thread follows each row through its units; the units wait for a free worker in the order of their rows."""
    found: dict[str, Result] = {}
    faults: dict[str, UserError] = {}
    telling = threading.Lock()
    values, out = json.dumps(work.recipe.model_dump(mode="json")), str(work.out.absolute())
    stop = work.out / STOP
    stop.unlink(missing_ok=True)
    with (
        _threads_shared(jobs),
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin) as workers,
    ):

        def call(units: Sequence[Unit]) -> list[Cell | Try]:
            futures = [workers.submit(_in_worker, values, out, unit) for unit in units]
            return [_opened(future.result()) for future in futures]

        def follow(name: str) -> None:
            try:
                result = finish(work, name, call)
                with telling:
                    found[name] = result
                    on_row(result)
            except UserError as fault:
                with telling:
                    faults[name] = fault
                    work.emit(Warning(STEP, fault.code, f"{name}: {fault.line()}"))

        with ThreadPoolExecutor(len(work.rows)) as followers:
            rows = [followers.submit(follow, name) for name, _ in work.rows]
            try:
                _wait(rows)
            except (KeyboardInterrupt, Interrupted, BrokenProcessPool) as reason:
                stop.parent.mkdir(parents=True, exist_ok=True)
                stop.touch()
                workers.shutdown(wait=False, cancel_futures=True)
                if isinstance(reason, BrokenProcessPool):
                    raise UserError(
                        "a worker process was killed, most likely because memory ran out.",
                        code="worker_killed",
                        remedy="Repeat the command with fewer --jobs; what is done is kept.",
                    ) from reason
                raise Interrupted(STOPPED) from None
    return found, faults


def _wait(rows: Sequence[Future[None]]) -> None:
    for row in rows:
        try:
            row.result()
        except CancelledError:
            raise Interrupted("stopped") from None


class _threads_shared:  # noqa: N801 - read as a word: `with _threads_shared(jobs)`
    """Within it new processes are told their share of the cores."""

    def __init__(self, jobs: int) -> None:
        self.share = str(max(1, (os.cpu_count() or 1) // jobs))

    def __enter__(self) -> None:
        self.former = os.environ.get(THREADS)
        os.environ[THREADS] = self.share

    def __exit__(self, *fault: object) -> None:
        os.environ.pop(THREADS, None)
        if self.former is not None:
            os.environ[THREADS] = self.former


def _in_worker(values: str, out: str, unit: Unit) -> tuple[Cell | Try | None, dict[str, Any]]:
    """The unit's result, or what is wrong as plain values (an exception with keywords does not travel)."""
    if (Path(out) / STOP).exists():
        return None, {"kind": "interrupted"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return do(_work(values, out), unit), {}
    except UserError as fault:
        return None, {"kind": "user", **fault.to_dict()}
    except (Interrupted, KeyboardInterrupt):
        return None, {"kind": "interrupted"}
    finally:
        _wait_in_silence()


def _begin() -> None:
    """What a worker does first: see to it that it ends with the comparison, even where that was killed outright."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _wait_in_silence()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker was started by a comparison"
    parent.join()
    os._exit(1)  # nothing is lost: checkpoints and cells are written whole or not at all


def _wait_in_silence() -> None:
    """Ctrl-C reaches every process of the terminal; a worker without work has nothing to save and nothing to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@functools.cache
def _work(values: str, out: str) -> Work:
    from tunesmith.data.load import load_data

    recipe: Recipe = make_recipe(json.loads(values))
    return Work.plan(recipe, load_data(recipe.data, seed=recipe.seed), Path(out), _quiet)


def _quiet(event: Event) -> None:
    silent(event)


def _opened(answer: tuple[Cell | Try | None, dict[str, Any]]) -> Cell | Try:
    found, fault = answer
    if found is not None:
        return found
    if fault["kind"] == "interrupted":
        raise Interrupted("stopped")
    raise UserError(fault["message"], code=fault["code"], where=fault["where"], remedy=fault["remedy"])


def _failed(work: Work, faults: dict[str, UserError]) -> UserError:
    names = ", ".join(faults)
    first = next(iter(faults.values()))
    return UserError(
        f"{len(faults)} of {len(work.rows)} rows failed ({names}); the first: {first.message}",
        code=first.code,
        where=first.where,
        remedy=f"{first.remedy} Mend or leave out what failed and repeat the command: the other rows are kept.".strip(),
    )
