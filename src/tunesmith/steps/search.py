"""Search: try settings of a recipe, keep what was best on validation rows, and say what mattered.

A search is a folder: recipe.yaml (with its ranges), study.db, trials.jsonl and trials.csv after every trial,
trials/0003/ (that trial's recipe and metrics), best.yaml, runs/ (the best recipe trained once more, test rows scored),
plots/, search.html, and report.json, written last.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Emit, Finished, Metric, Progress, Saved, Started, Value
from tunesmith.core.publish import write_json, write_text
from tunesmith.core.quantities import count, number
from tunesmith.core.run import RunFolder
from tunesmith.core.space import label
from tunesmith.steps.search_plan import SearchPlan
from tunesmith.steps.search_report import BEST, PAGE, REPORT, best_of, publish, write_trials
from tunesmith.steps.search_study import Asked, Study
from tunesmith.steps.search_trial import STEP, Result, Task, rows_of, run_trial
from tunesmith.steps.search_workers import Workers, how_many

HOPELESS = 5
"""A search whose first trials all failed, so many of them, is stopped: something other than the values is wrong."""


@dataclass(frozen=True)
class Search:
    """A finished search and the folder it lies in."""

    path: Path
    report: Mapping[str, Any]

    @staticmethod
    def open(path: str | Path) -> Search:
        """A search made earlier.

        Raises:
            UserError: There is none, or it is not finished.
        """
        if not (Path(path) / REPORT).is_file():
            raise _no_search(path)
        return Search(Path(path), RunFolder(Path(path)).read_json(REPORT))

    @property
    def best(self) -> Path:
        """The recipe that gives the best score again."""
        return self.path / BEST

    def to_dict(self) -> dict[str, Any]:
        return {"search": str(self.path), **self.report}


def search(plan: SearchPlan, *, emit: Emit, root: Path, jobs: int = 1) -> Search:
    """Try as many settings as the plan says, `jobs` at once (0: as many as there is room for).

    Raises:
        UserError: The data or the model cannot be used, or no trial came to an end.
        Interrupted: The user stopped it; `resume` goes on.
    """
    _, rows_sha256 = _judged_rows(plan)
    folder = new_folder(root, plan.recipe.name or "search")
    write_text(folder / "recipe.yaml", plan.to_yaml())
    write_json(folder / "data.json", {"validation_sha256": rows_sha256})
    return _Work(plan, folder, emit, rows_sha256).carry_out(jobs)


def resume(path: str | Path, *, emit: Emit, trials: int = 0, jobs: int = 1) -> Search:
    """Go on with a search that was stopped or killed; more `trials` than it had go on with a finished one, too.

    Raises:
        UserError: There is no search here, or its validation rows are not what they were.
        Interrupted: The user stopped it again.
    """
    folder = Path(path)
    if not (folder / "data.json").is_file() or not (folder / "recipe.yaml").is_file():
        raise _no_search(path)
    plan = SearchPlan.read(folder / "recipe.yaml", [f"search.trials={trials}"] if trials else [])
    _, rows_sha256 = _judged_rows(plan)
    if RunFolder(folder).read_json("data.json")["validation_sha256"] != rows_sha256:
        raise UserError(
            "the validation rows are not those that the search began with, so trials could not be compared.",
            code="resume_mismatch",
            where=str(folder),
            remedy="Restore the data, or start a new search.",
        )
    if trials:
        write_text(folder / "recipe.yaml", plan.to_yaml())
    return _Work(plan, folder, emit, rows_sha256).carry_out(jobs)


def new_folder(root: Path, stem: str) -> Path:
    """`root/stem-N`, N one more than the highest there is."""
    run = RunFolder.create(root, stem)
    run.checkpoints.rmdir()
    return run.path


class _Work:
    """A search under way."""

    def __init__(self, plan: SearchPlan, folder: Path, emit: Emit, rows_sha256: str) -> None:
        self.plan, self.folder, self.emit, self.rows_sha256 = plan, folder, emit, rows_sha256
        self.started = time.perf_counter()
        self.run = RunFolder(folder)

    def carry_out(self, jobs: int) -> Search:
        with self.run.locked():
            self.study = Study(self.plan, self.folder)
            self.before = self.run.read_json("state.json") or {}
            self.run.set_state("running", seconds=self.before.get("seconds", 0.0))
            try:
                self._say_head(jobs)
                self._try_all(jobs)
                best = best_of(self.study.trials(), self.plan)
                if best is None:
                    raise self._hopeless("no trial came to an end")
                tested = self._train_best(best) if self.plan.settings.train_best else None
                report = publish(self.plan, self.study, self.folder, tested=tested, seconds=self._seconds())
            except (Interrupted, KeyboardInterrupt):
                self.run.set_state("stopped", seconds=self._seconds())
                done = len(self.study.trials())
                where = ", while the best was trained again" if done >= self.plan.num_trials else ""
                raise Interrupted(
                    f"stopped after {done} of {self.plan.num_trials} trials{where}",
                    resume=f"tunesmith search --resume {self.folder}",
                ) from None
            except UserError as fault:
                self.run.set_state("failed", seconds=self._seconds(), error=str(fault))
                raise
            self.run.set_state("finished", seconds=self._seconds())
            self._say_end(report)
        return Search(self.folder, report)

    # --- trials ----------------------------------------------------------------------------------

    def _try_all(self, jobs: int) -> None:
        if jobs == 1:
            while (asked := self.study.next()) is not None:
                self._try(asked)
            return
        measured = max((row["peak_bytes"] for row in self.study.trials()), default=0)
        if jobs == 0 and not measured:
            asked = self.study.next()
            if asked is not None:
                measured = self._try(asked).peak_bytes
        self._try_together(jobs, measured)

    def _try(self, asked: Asked) -> Result:
        """One trial in this process."""
        try:
            result = run_trial(self._task(asked), lambda k, loss: self.study.report(asked, k, loss), self.emit)
        except (Interrupted, KeyboardInterrupt):
            self.study.put_back(asked)
            raise
        self._done(asked, result)
        return result

    def _try_together(self, jobs: int, peak_bytes: int) -> None:
        """Several trials at once, each in a process of its own."""
        num_cores, available = _room()
        jobs = how_many(jobs, num_cores=num_cores, available_bytes=available, peak_bytes=peak_bytes)
        at_work: dict[int, Asked] = {}
        is_over = False
        try:
            with Workers(jobs, threads=max(1, num_cores // jobs)) as workers:
                while True:
                    while not is_over and workers.has_room:
                        asked = self.study.next()
                        if asked is None:
                            is_over = True
                            break
                        at_work[asked.number] = asked
                        workers.start(self._task(asked))
                    if not at_work:
                        return
                    self._say_progress(len(at_work))
                    for message in workers.messages():
                        self._hear(workers, at_work, message)
        except BaseException:
            for asked in at_work.values():
                self.study.put_back(asked)
            raise

    def _hear(self, workers: Workers, at_work: dict[int, Asked], message: Any) -> None:
        asked = at_work[message.number]
        if message.kind == "validation":
            workers.answer(message.number, self.study.report(asked, *message.content))
        elif message.kind == "result":
            del at_work[message.number]
            self._done(asked, message.content)
        else:
            text, values = message.content
            raise UserError(text, **values) if values else RuntimeError(f"a trial's process met a bug:\n{text}")

    def _task(self, asked: Asked) -> Task:
        recipe = self.plan.recipe_for(asked.chosen).model_dump(mode="json")
        recipe["train"]["trackers"] = []
        return Task(
            number=asked.number,
            recipe=recipe,
            folder=self.folder / "trials" / f"{asked.number + 1:04d}",
            metric=self.plan.metric.key() if self.plan.metric else "",
            rows_sha256=self.rows_sha256,
            title=f"trial {asked.number + 1} of {self.plan.num_trials}",
        )

    def _done(self, asked: Asked, result: Result) -> None:
        self.study.tell(asked, result)
        rows = self.study.trials()
        best = best_of(rows, self.plan)
        is_best = best is not None and best["number"] == asked.number
        write_trials(self.plan, rows, self.folder)
        if is_best:
            write_text(self.folder / BEST, self.plan.recipe_for(asked.chosen).to_yaml())
        self._say_trial(asked, result, is_best=is_best)
        if len(rows) == HOPELESS and all(row["state"] == "failed" for row in rows):
            raise self._hopeless(f"the first {HOPELESS} trials all failed")

    def _hopeless(self, what: str) -> UserError:
        last = self.study.trials()[-1]
        return UserError(
            f"{what}; the last one: {last['fault'] or last['state']}",
            code=last["code"] or "no_trial",
            where=str(self.folder),
            remedy=f"Try one by itself: tunesmith train {self.folder}/trials/0001/recipe.yaml",
        )

    # --- the best ---------------------------------------------------------------------------------

    def _train_best(self, best: Mapping[str, Any]) -> RunFolder:
        """The run of the best recipe: as it was left, or trained now."""
        from tunesmith.steps.train import resume as go_on
        from tunesmith.steps.train import train

        root = self.folder / "runs" / f"trial-{best['number'] + 1:04d}"
        found = sorted(root.glob("*/recipe.yaml"))
        if not found:
            return train(self.plan.recipe_for(best["chosen"]), emit=self.emit, root=root)
        run = RunFolder(found[-1].parent)
        return run if run.state == "finished" else go_on(run, emit=self.emit)

    # --- what is said -----------------------------------------------------------------------------

    def _say_head(self, jobs: int) -> None:
        plan, recipe = self.plan, self.plan.recipe
        tried = len(self.study.trials())
        source = recipe.data.source if isinstance(recipe.data.source, str) else f"{len(recipe.data.source)} sources"
        at_once = "" if jobs == 1 else f" · {jobs} at once" if jobs else " · as many at once as there is room for"
        goes_on = f" · {count(tried)} tried before" if tried else ""
        better = "highest" if plan.higher_is_better else "lowest"
        self.emit(
            Started(
                STEP,
                "",
                {"search": str(self.folder), "trials": plan.num_trials, "metric": plan.metric_name, "tried": tried},
                (
                    ("search", f"{self.folder}{goes_on}"),
                    ("base", f"{recipe.model.name} on {Path(source).name}"),
                    *((("space" if not i else ""), f"{key}: {axis}") for i, (key, axis) in enumerate(self._axes())),
                    ("trials", f"{count(plan.num_trials)} by {plan.settings.sampler}, {self._pruning()}{at_once}"),
                    ("best", f"{better} {plan.metric_title} on validation rows"),
                ),
                on_interrupt=f"stops; go on with: tunesmith search --resume {self.folder}",
            )
        )

    def _axes(self) -> list[tuple[str, Any]]:
        return list(self.plan.space.axes.items())

    def _pruning(self) -> str:
        return {
            "none": "each to its end",
            "median": "those behind the median end early",
            "halving": "a third goes on at each rung",
        }[self.plan.settings.pruner]

    def _say_trial(self, asked: Asked, result: Result, *, is_best: bool) -> None:
        chosen = " · ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in asked.chosen.items())
        value = result.value if result.state == "complete" else result.validation_loss
        end = {"complete": "", "pruned": f"ended early at {len(result.losses)}", "failed": f"failed: {result.code}"}
        best = "best" if is_best else end[result.state]
        values: dict[str, Value] = {
            self.plan.metric_name if result.state == "complete" else "validation_loss": value,
            "state": result.state,
            **{key: label(one) for key, one in asked.chosen.items()},
        }
        text = f"{number(value) if value is not None else '–':<8}{best:<18}{chosen}"
        self.emit(
            Metric(
                STEP,
                values,
                at=asked.number + 1,
                of=self.plan.num_trials,
                is_best=is_best,
                label=f"trial {asked.number + 1}",
                seconds=result.seconds if result.state == "complete" else None,
                text=text,
            )
        )

    def _say_progress(self, at_work: int) -> None:
        done = len(self.study.trials())
        self.emit(Progress(STEP, done, self.plan.num_trials, f"{at_work} trials at once", "trials"))

    def _say_end(self, report: Mapping[str, Any]) -> None:
        best = report["best"]
        chosen = ", ".join(f"{key}={shown(value)}" for key, value in best["chosen"].items())
        text = f"best {self.plan.metric_title} {number(best['value'])} with {chosen}"
        self.emit(Saved(STEP, str(self.folder / PAGE), "page"))
        run = report["best_run"]
        steps = (f"tunesmith train {self.folder / BEST}",)
        if run is not None:
            steps = (f"tunesmith models register {self.folder / run['run']}",)
        values: dict[str, Value] = {self.plan.metric_name: best["value"], "trial": best["trial"]}
        self.emit(Finished(STEP, text, self._seconds(), values, next=steps))

    def _seconds(self) -> float:
        """Since the beginning, time before it was resumed included."""
        return float(self.before.get("seconds", 0.0)) + time.perf_counter() - self.started


def shown(value: Any) -> str:
    """A value of a trial as people read it."""
    return f"{value:.3g}" if isinstance(value, float) else str(label(value))


def _judged_rows(plan: SearchPlan) -> tuple[Any, str]:
    """The data, refused before any weight is loaded where nothing could be judged by them."""
    from tunesmith.steps.evaluate import refuse_unfit

    data, rows_sha256 = rows_of(plan.recipe)
    if not data.validation:
        raise UserError(
            "there are no validation rows, and trials are judged by them.",
            code="no_validation",
            where=str(data.train[0].origin),
            remedy="Set data.split.validation above 0, or data.validation to a file.",
        )
    if plan.metric is not None:
        refuse_unfit(plan.metric, data.validation)
    return data, rows_sha256


def _room() -> tuple[int, int]:
    """Cores, and free bytes of the device's memory or of this machine's."""
    import torch

    from tunesmith.models.machine import describe

    machine = describe()
    if torch.cuda.is_available():
        return machine.cores, int(torch.cuda.mem_get_info()[0])
    return machine.cores, machine.available_bytes


def _no_search(path: str | Path) -> UserError:
    return UserError(
        "there is no search here.", code="no_search", where=str(path), remedy="Start one: tunesmith search RECIPE"
    )
