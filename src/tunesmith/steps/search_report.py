"""A search as files: trials.jsonl, trials.csv, the plots, the page, and report.json last, with their sums."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.publish import sha256, write_json, write_text
from tunesmith.core.run import RunFolder, environment, now
from tunesmith.core.space import Choice, label
from tunesmith.steps.search_plan import SearchPlan
from tunesmith.steps.search_study import Study

REPORT, TRIALS, TABLE, BEST, PAGE, PLOTS = (
    "report.json",
    "trials.jsonl",
    "trials.csv",
    "best.yaml",
    "search.html",
    "plots",
)
Trial = Mapping[str, Any]
COLUMNS = ("state", "value", "validation_loss", "best_step", "steps", "seconds", "peak_bytes", "trainable", "code")


def best_of(trials: Sequence[Trial], plan: SearchPlan) -> Trial | None:
    """The best complete trial, the earliest of equals; None where none is complete."""
    sign = -1 if plan.higher_is_better else 1
    complete = [row for row in trials if row["state"] == "complete"]
    return min(complete, key=lambda row: (sign * row["value"], row["number"]), default=None)


def write_trials(plan: SearchPlan, trials: Sequence[Trial], folder: Path) -> None:
    """trials.jsonl and trials.csv as of now."""
    rows = [shown_trial(row) for row in trials]
    write_text(folder / TRIALS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", *plan.space.axes, *COLUMNS])
    for row in rows:
        writer.writerow(
            [row["trial"], *(row["params"].get(key) for key in plan.space.axes), *(row[c] for c in COLUMNS)]
        )
    write_text(folder / TABLE, out.getvalue())


def shown_trial(row: Trial) -> dict[str, Any]:
    """A trial as reports have it: `trial` counts from 1; `params` are short names, `chosen` what a recipe holds."""
    params = {key: label(value) for key, value in row["chosen"].items()}
    rest = {key: value for key, value in row.items() if key not in ("number", "chosen")}
    return {"trial": row["number"] + 1, "params": params, "chosen": row["chosen"], **rest}


def publish(
    plan: SearchPlan, study: Study, folder: Path, *, tested: RunFolder | None, seconds: float
) -> dict[str, Any]:
    """The report, once everything is on disk."""
    from tunesmith.reports.search_page import search_page
    from tunesmith.reports.search_plots import draw_plots

    trials = study.trials()
    best = best_of(trials, plan)
    assert best is not None, "a report needs a complete trial"
    write_trials(plan, trials, folder)
    write_text(folder / BEST, plan.recipe_for(best["chosen"]).to_yaml())
    states = [row["state"] for row in trials]
    report: dict[str, Any] = {
        "format": 1,
        "name": plan.recipe.name,
        "at": now(),
        "seconds": seconds,
        "metric": plan.metric_name,
        "metric_title": plan.metric_title,
        "higher_is_better": plan.higher_is_better,
        "sampler": plan.settings.sampler,
        "pruner": plan.settings.pruner,
        "seed": plan.recipe.seed,
        "space": [_axis(plan, key) for key in plan.space.axes],
        "counts": {state: states.count(state) for state in ("complete", "pruned", "failed")},
        "best": {**shown_trial(best), "recipe": BEST},
        "best_run": _tested(tested, best, folder) if tested is not None else None,
        "importance": study.importance(),
        "trials": [shown_trial(row) for row in trials],
        "recipe": plan.recipe.model_dump(mode="json"),
        "environment": _environment(),
    }
    (folder / PLOTS).mkdir(exist_ok=True)
    drawn = draw_plots(report, folder / PLOTS)
    write_text(folder / PAGE, search_page(report, drawn))
    files = [TRIALS, TABLE, BEST, PAGE, *(f"{PLOTS}/{path.name}" for path in sorted((folder / PLOTS).iterdir()))]
    report["files"] = {name: sha256(folder / name) for name in files}
    write_json(folder / REPORT, report)
    return report


def _axis(plan: SearchPlan, key: str) -> dict[str, Any]:
    axis = plan.space.axes[key]
    if isinstance(axis, Choice):
        return {"key": key, "options": axis.labels(), "text": str(axis)}
    return {"key": key, "low": axis.low, "high": axis.high, "log": axis.is_log, "step": axis.step, "text": str(axis)}


def _tested(run: RunFolder, best: Trial, folder: Path) -> dict[str, Any]:
    """What the best recipe gave when it was trained again, beside what the trial gave."""
    report = run.read_json("report.json")
    loss = report["training"]["best_validation_loss"]
    return {
        "run": str(run.path.relative_to(folder)),
        "validation_loss": loss,
        "trial_validation_loss": best["validation_loss"],
        "is_reproduced": loss == best["validation_loss"],
        "held_out": report["held_out"],
        "scores": {
            one["metric"]: {"value": one["value"], "low": one["low"], "high": one["high"], "n": one["num_rows"]}
            for one in report["after"]["scores"]
        },
    }


def _environment() -> dict[str, Any]:
    from tunesmith.models.machine import describe

    return environment(machine_details=describe().to_dict())
