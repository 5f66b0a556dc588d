"""Compare: prompting, retrieval and fine-tuning on the same held-out rows, with one clock and one memory meter.

What a row with one seed gave stays under `out/cells`, and is used again by a later comparison in the same folder if
row, model, data and versions are the same: a comparison that was killed goes on where it was. Runs are in `out/runs`.
report.json is written last and names the SHA-256 of the other files: it is the comparison's commit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finished, Metric, Saved, Started
from tunesmith.core.publish import sha256
from tunesmith.core.quantities import count
from tunesmith.recipe import Recipe
from tunesmith.steps.compare_crew import finish_rows
from tunesmith.steps.compare_report import ANSWERS, PAGE, REPORT, publish
from tunesmith.steps.compare_result import Result
from tunesmith.steps.compare_work import STEP, Work


@dataclass(frozen=True)
class Comparison:
    """A finished comparison and the folder it lies in."""

    path: Path
    report: Mapping[str, Any]
    answers: tuple[Mapping[str, Any], ...]
    """One per held-out row: origin, prompt, reference, and every row's answer with its `goodness`."""

    @staticmethod
    def open(path: Path) -> Comparison:
        """A comparison written earlier.

        Raises:
            UserError: There is none, or its files are not those its report was written with.
        """
        if not (path / REPORT).is_file():
            raise UserError(
                "there is no comparison here.", code="no_comparison", where=str(path), remedy="tunesmith compare RECIPE"
            )
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
        for name, expected in report["files"].items():
            if not (path / name).is_file() or sha256(path / name) != expected:
                raise UserError(
                    f"{name} is missing or was changed.", code="damaged", where=str(path), remedy="Compare again."
                )
        lines = (path / ANSWERS).read_text(encoding="utf-8").splitlines()
        return Comparison(path, report, tuple(json.loads(line) for line in lines))

    @property
    def verdict(self) -> str:
        """The sentence, with its notes."""
        verdict = self.report["verdict"]
        return " ".join([verdict["sentence"], *verdict["notes"]])

    def show(self, which: str) -> list[Mapping[str, Any]]:
        """The answers that fine-tuning `fixed` or `broken`, or that are `wrong` in every row."""
        best = next((row for row in self.report["rows"] if row["name"] == self.report["verdict"]["best"]), None)
        wanted = self.report["wrong_in_every_row"] if which == "wrong" else (best or {}).get(which, [])
        return [answer for answer in self.answers if answer["origin"] in set(wanted)]

    def to_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), **self.report}


def compare(recipe: Recipe, *, emit: Emit, out: Path, jobs: int = 1) -> Comparison:
    """Answer the held-out rows in every way the recipe names, training where a row has a method.

    `jobs` worker processes share the cores; 1 does everything in this process.

    Raises:
        UserError: The recipe, the data or the model cannot be used, or a row does not fit the data.
        Interrupted: The user stopped a training; finished runs are used again next time.
    """
    from tunesmith.data.load import load_data

    started = time.perf_counter()
    data = load_data(recipe.data, seed=recipe.seed)
    work = Work.plan(recipe, data, out, emit)
    held_out = f"{count(len(work.examples))} held-out {work.noun}"
    emit(
        Started(
            STEP,
            f"{held_out} · same rows, template, stop rules and {recipe.generate.max_new_tokens}-token limit "
            "for every row",
            {"rows": len(work.rows), "questions": len(work.examples), "metric": work.headline.key(), "out": str(out)},
        )
    )
    done: list[str] = []

    def tell(result: Result) -> None:
        done.append(result.name)
        values = result.values(work)
        emit(Metric(STEP, values, at=len(done), of=len(work.rows), label=result.name, seconds=result.seconds))

    results = finish_rows(work, tell, jobs)
    report, answers = publish(work, results, time.perf_counter() - started)
    comparison = Comparison(out, report, answers)
    emit(Saved(STEP, str(out / PAGE), "page"))
    emit(
        Finished(
            STEP,
            comparison.verdict,
            seconds=time.perf_counter() - started,
            next=(f"tunesmith compare --open {out} --show broken",),
        )
    )
    return comparison
