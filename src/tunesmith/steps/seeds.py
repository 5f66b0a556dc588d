"""Train a recipe with several seeds: the same held-out rows, everything else that is drawn drawn anew.

A folder holds one run per seed, `seeds.json` (what is to be done, so that a stopped one goes on) and, at the end,
`report.json` and `report.md` with the mean and the spread of every score.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Emit, Finished, Metric, Saved, Started
from tunesmith.core.publish import write_json, write_text
from tunesmith.core.quantities import count, interval, number
from tunesmith.core.records import Outcome, Score
from tunesmith.core.run import RunFolder
from tunesmith.core.seeds import seeds_score
from tunesmith.recipe import Recipe, make_recipe, override_recipe, read_recipe
from tunesmith.steps.train import resume, train

STEP = "seeds"
PLAN = "seeds.json"


@dataclass(frozen=True)
class SeedsReport:
    """Scores of one recipe over several seeds."""

    path: Path
    seeds: tuple[int, ...]
    runs: tuple[Path, ...]
    scores: Mapping[str, Score]
    """By metric: the mean with its interval over seeds and rows; `details` has each seed's value and their spread."""

    def to_dict(self) -> dict[str, Any]:
        """As report.json and `--json` have it."""
        return {
            "format": 1,
            "path": str(self.path),
            "seeds": list(self.seeds),
            "runs": [str(run) for run in self.runs],
            "scores": {name: self._score(score) for name, score in self.scores.items()},
        }

    @staticmethod
    def _score(score: Score) -> dict[str, Any]:
        return {
            "mean": score.value,
            "sd": score.details["seeds_sd"],
            "low": score.low,
            "high": score.high,
            "values": score.details["seeds"],
            "n": score.num_rows,
            "higher_is_better": score.higher_is_better,
        }

    def table(self) -> tuple[tuple[str, ...], ...]:
        """Titles, then a row per metric: the mean with its 95 % interval, the standard deviation, each seed's value."""
        rows = max(score.num_rows for score in self.scores.values())
        titles = (f"{count(rows)} held-out rows, {len(self.seeds)} seeds", "mean", "sd", "each seed")
        return (
            titles,
            *(
                (
                    name.replace("_", " "),
                    interval(score.value, score.low, score.high),
                    number(score.details["seeds_sd"]),
                    " ".join(number(value) for value in score.details["seeds"]),
                )
                for name, score in self.scores.items()
            ),
        )

    def to_markdown(self) -> str:
        """The table and where each seed's run lies."""
        titles, *rows = self.table()
        lines = [f"| {' | '.join(row)} |" for row in (titles, ("---",) * len(titles), *rows)]
        runs = [f"- seed {seed}: `{run.name}/`" for seed, run in zip(self.seeds, self.runs, strict=True)]
        text = (
            "The interval covers chance in the training (what is drawn by the seed: rows, new weights, order, "
            "dropout) and in the choice of the held-out rows. The sd is that of the seeds alone."
        )
        return "\n".join(["# Several seeds", "", *lines, "", text, "", *runs, ""])


def train_seeds(recipe: Recipe, num_seeds: int, *, emit: Emit, root: Path = Path("runs")) -> SeedsReport:
    """The scores of `num_seeds` trainings, with the recipe's seed and those after it.

    Every seed holds out the rows that the first would (`data.split.seed`).

    Raises:
        UserError: Fewer than two seeds, or as `train`.
        Interrupted: The user stopped it; finished seeds are kept, and it can go on.
    """
    if num_seeds < 2:
        raise UserError(
            "a spread needs at least 2 seeds.", code="bad_value", where="--seeds", remedy="For example: --seeds 5"
        )
    split_seed = recipe.seed if recipe.data.split.seed == "recipe" else recipe.data.split.seed
    split = {**recipe.data.split.model_dump(mode="json"), "seed": split_seed}
    recipe = override_recipe(recipe, data={"split": split})
    folder = _new_folder(root, f"{recipe.name or 'run'}-seeds")
    seeds = list(range(recipe.seed, recipe.seed + num_seeds))
    write_json(folder / PLAN, {"format": 1, "seeds": seeds, "recipe": recipe.model_dump(mode="json")})
    return resume_seeds(folder, emit=emit)


def is_seeds(folder: str | Path) -> bool:
    """Whether a folder is that of several seeds."""
    return (Path(folder) / PLAN).is_file()


def resume_seeds(folder: Path, *, emit: Emit) -> SeedsReport:
    """Train the seeds that are not finished, and score all.

    Raises:
        UserError: As `train`.
        Interrupted: The user stopped it again.
    """
    started = time.perf_counter()
    plan = RunFolder(folder).read_json(PLAN)
    recipe = make_recipe(plan["recipe"])
    seeds = tuple(plan["seeds"])
    emit(Started(STEP, f"{recipe.name} · {len(seeds)} seeds", {"folder": str(folder), "seeds": len(seeds)}))
    runs = []
    for place, seed in enumerate(seeds, 1):
        begun = time.perf_counter()
        run = _seed_run(folder, recipe, seed, emit)
        runs.append(run)
        values = {
            f"{prefix}{one['metric']}": one["value"]
            for prefix, part in _parts(run).items()
            for one in part.read_json("report.json")["after"]["scores"]
        }
        emit(Metric(STEP, values, at=place, of=len(seeds), label=f"seed {seed}", seconds=time.perf_counter() - begun))
    scores = _scores(runs, recipe.seed)
    report = SeedsReport(folder, seeds, tuple(run.path for run in runs), scores)
    write_json(folder / "report.json", {**report.to_dict(), "details": [asdict(score) for score in scores.values()]})
    write_text(folder / "report.md", report.to_markdown())
    emit(Saved(STEP, str(folder / "report.md"), "report"))
    text = f"{len(seeds)} seeds · same held-out rows"
    emit(Finished(STEP, text, time.perf_counter() - started, {"path": str(folder)}, table=report.table()))
    return report


def _seed_run(folder: Path, recipe: Recipe, seed: int, emit: Emit) -> RunFolder:
    """The finished run of a seed: as it is, gone on with, or trained now."""
    run = RunFolder(folder / f"seed-{seed}")
    try:
        if run.state == "finished":
            return run
        if run.recipe.is_file():
            return resume(run, emit=emit)
        return train(override_recipe(recipe, seed=seed), emit=emit, root=folder, folder=run.name)
    except Interrupted as stop:
        raise Interrupted(str(stop), resume=f"tunesmith train --resume {folder}") from None


def _scores(runs: Sequence[RunFolder], seed: int) -> dict[str, Score]:
    """The mean of every metric over the runs, whose recipes name the metrics; `TASK/metric` where there are tasks."""
    found: dict[str, Score] = {}
    for prefix, first in _parts(runs[0]).items():
        metrics = read_recipe(first.recipe).evaluate
        assert metrics != "auto", metrics
        reports = [_parts(run)[prefix].read_json("report.json") for run in runs]
        answers = [[Outcome(**outcome) for outcome in report["after"]["outcomes"]] for report in reports]
        for metric in metrics:
            score = seeds_score(metric, answers, seed)
            found[f"{prefix}{score.metric}"] = score
    return found


def _parts(run: RunFolder) -> dict[str, RunFolder]:
    """The run itself, or its tasks under `TASK/`."""
    return {f"{name}/": RunFolder(run.path / name) for name in run.tasks} or {"": run}


def _new_folder(root: Path, stem: str) -> Path:
    """`root/stem-N`, N one more than the highest there is."""
    run = RunFolder.create(root, stem)
    run.checkpoints.rmdir()
    return run.path
