"""The whole circle on the built-in model and manual, offline: prepare … feedback, in one folder.

Everything a user would do by hand, through the same steps; the folder is a home of its own, so nothing that the
user made is touched. Running it again uses the trained runs that are there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import httpx

from tunesmith import __version__
from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Event, Finished, Started, silent
from tunesmith.core.home import Home
from tunesmith.core.intervals import score
from tunesmith.core.plugins import build
from tunesmith.core.publish import write_json, write_text
from tunesmith.core.quantities import count
from tunesmith.core.records import Outcome
from tunesmith.data.documents import read_passages
from tunesmith.data.load import load_data
from tunesmith.recipe import Recipe, read_recipe
from tunesmith.steps.compare import Comparison, compare
from tunesmith.steps.feedback import Exported, export
from tunesmith.steps.models import Promotion, promote
from tunesmith.steps.register import register

STEP = "demo"
NAME = "manual"
PARTS = ("prepare", "check", "compare", "register", "promote", "serve", "ask", "feedback", "export")
ASKED = ("What does error E07 mean?", "How often is the filter changed?", "Which button starts descaling?")
"""Held-out questions that are put to the served model."""
RATER = "demo"
ROW_KEYS = (
    "name",
    "kind",
    "fact_match",
    "trainable_parameters",
    "train_seconds",
    "seconds_per_answer",
    "peak_memory_bytes",
    "forgets",
)


@dataclass(frozen=True)
class Answer:
    """One question, asked over HTTP."""

    question: str
    answer: str
    reference: str
    is_correct: bool
    request_id: str


@dataclass(frozen=True)
class Demo:
    """Where everything lies, and what came of it."""

    path: Path
    comparison: Comparison
    promotion: Promotion
    answers: tuple[Answer, ...]
    feedback: Exported
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What scripts read; these keys are kept."""
        answers = [
            {"question": one.question, "answer": one.answer, "reference": one.reference, "correct": one.is_correct}
            for one in self.answers
        ]
        return {
            "path": str(self.path),
            "seconds": self.seconds,
            "verdict": self.comparison.verdict,
            "rows": [{key: row[key] for key in ROW_KEYS} for row in self.comparison.report["rows"]],
            "comparison": str(self.comparison.path),
            "served": {"model": self.promotion.version.reference, "answers": answers},
            "feedback": str(self.feedback.path),
        }


def demo(out: Path, *, overrides: Sequence[str] = (), emit: Emit) -> Demo:
    """Prepare, check, compare, register, promote, serve, ask, judge, export: all of it in `out`.

    `overrides` change its recipe, as `train.epochs=2` does.

    Raises:
        UserError: The folder holds something else, or the disk is full.
        Interrupted: The user stopped it; the next demo in this folder goes on with what was trained.
    """
    started = time.perf_counter()
    emit(Started(STEP, _title(), {"out": str(out)}))
    home = Home(out)
    recipe = _prepare(out, overrides, _part(emit, 1))
    _check(recipe, _part(emit, 2))
    comparison = compare(recipe, emit=_part(emit, 3), out=out / "compare")
    best = _best_run(comparison)
    version = register(home, best, NAME, emit=_part(emit, 4))
    promotion = promote(home, version.reference, emit=_part(emit, 5))
    answers = _serve_and_ask(home, recipe, emit)
    exported = _export(home, out, _part(emit, 9))
    result = Demo(out, comparison, promotion, answers, exported, time.perf_counter() - started)
    write_json(out / "report.json", result.to_dict())
    right = sum(one.is_correct for one in answers)
    text = f"{right} of {len(answers)} questions answered rightly over HTTP · everything lies in {out}"
    emit(Finished(STEP, text, result.seconds, {"path": str(out)}))
    return result


def _title() -> str:
    from tunesmith.models.machine import preferred_precision

    precision, _ = preferred_precision()
    return f"Tunesmith {__version__} · built-in model tunesmith/base and manual · no network · {precision}"


def _prepare(out: Path, overrides: Sequence[str], emit: Emit) -> Recipe:
    """The manual, its questions and the recipe as files that the user can read and change."""
    started = time.perf_counter()
    emit(Started("prepare"))
    if out.exists() and any(out.iterdir()) and not (out / "recipe.yaml").is_file():
        raise UserError(
            "the folder holds something else.", code="exists", where=str(out), remedy="Choose another with --out."
        )
    assets = resources.files("tunesmith") / "assets"
    with resources.as_file(assets / "manual") as manual:
        shutil.copytree(manual, out / "manual", dirs_exist_ok=True)
    template = Template((assets / "demo.yaml").read_text(encoding="utf-8"))
    write_text(out / "recipe.yaml", template.substitute(out=out))
    recipe = read_recipe(out / "recipe.yaml", overrides)
    pages = sorted((out / "manual" / "pages").glob("*.md"))
    data = load_data(recipe.data, seed=recipe.seed)
    num_train = len(data.train) + len(data.validation)
    passages = len(read_passages(recipe.data.documents))
    text = (
        f"{len(pages)} pages of manual in {passages} passages · {count(num_train)} training and "
        f"{count(len(data.test))} held-out questions"
    )
    emit(Finished("prepare", text, time.perf_counter() - started))
    return recipe


def _check(recipe: Recipe, emit: Emit) -> None:
    started = time.perf_counter()
    emit(Started("check"))
    data = load_data(recipe.data, seed=recipe.seed)
    errors = sum(finding.level == "error" for finding in data.findings)
    leaks = sum(finding.num_rows for finding in data.findings if finding.code == "leak")
    hidden = "no held-out question is" if not leaks else f"{leaks} held-out questions are"
    text = f"{errors} errors, {len(data.findings) - errors} warnings; {hidden} among the training rows"
    emit(Finished("check", text, time.perf_counter() - started))


def _best_run(comparison: Comparison) -> Path:
    """The run of the fine-tuned row with the best score."""
    report = comparison.report
    trained = [row for row in report["rows"] if row["run"]]
    sign = 1 if report["higher_is_better"] else -1
    best = max(trained, key=lambda row: sign * row["scores"][report["metric"]]["value"])
    return comparison.path / str(best["run"])


def _serve_and_ask(home: Home, recipe: Recipe, emit: Emit) -> tuple[Answer, ...]:
    from tunesmith.server.settings import ServerSettings
    from tunesmith.steps.serve import start

    started = time.perf_counter()
    tell = _part(emit, 6)
    tell(Started("serve"))
    with start(home, [NAME], settings=ServerSettings(keep_text=True), emit=silent) as server:
        text = f"{server.url}/v1 · {', '.join(server.models)} · every probe answered as trained"
        tell(Finished("serve", text, time.perf_counter() - started))
        with httpx.Client(base_url=server.url, timeout=120) as client:
            answers = _ask(client, recipe, _part(emit, 7))
            _judge(client, answers, _part(emit, 8))
    return answers


def _ask(client: httpx.Client, recipe: Recipe, emit: Emit) -> tuple[Answer, ...]:
    started = time.perf_counter()
    emit(Started("ask"))
    lines = Path(recipe.data.test).read_text(encoding="utf-8").splitlines()
    rows = {row["question"]: row for row in map(json.loads, lines)}
    answers = tuple(_put(client, rows[question]) for question in ASKED)
    right = sum(one.is_correct for one in answers)
    emit(Finished("ask", f"{right} of {len(answers)} answered rightly", time.perf_counter() - started))
    return answers


def _put(client: httpx.Client, row: Mapping[str, Any]) -> Answer:
    question = {"model": f"{NAME}@champion", "messages": [{"role": "user", "content": row["question"]}]}
    response = client.post("/v1/chat/completions", json=question).raise_for_status().json()
    answer = response["choices"][0]["message"]["content"]
    return Answer(row["question"], answer, row["answer"], _is_correct(answer, row["facts"]), response["id"])


def _is_correct(answer: str, facts: Sequence[Sequence[str]]) -> bool:
    outcome = Outcome(origin="asked", answer=answer, fields={"facts": facts})
    return score(build("metrics", "fact_match"), [outcome], 1).value == 1.0


def _judge(client: httpx.Client, answers: Sequence[Answer], emit: Emit) -> None:
    """A thumb for every answer, and the right words for the wrong ones, as a user of the product would give them."""
    started = time.perf_counter()
    emit(Started("feedback"))
    for one in answers:
        body: dict[str, Any] = {"request_id": one.request_id, "choice": 0, "name": "thumb", "rater": RATER}
        body["value"] = "up" if one.is_correct else "down"
        if not one.is_correct:
            body["correction"] = one.reference
        client.post("/v1/feedback", json=body).raise_for_status()
    wrong = sum(not one.is_correct for one in answers)
    text = f"{len(answers) - wrong} thumbs up, {wrong} down" + (" with corrections" if wrong else "")
    emit(Finished("feedback", text, time.perf_counter() - started))


def _export(home: Home, out: Path, emit: Emit) -> Exported:
    started = time.perf_counter()
    emit(Started("export"))
    folder = out / "feedback"
    if folder.exists():
        shutil.rmtree(folder)
    exported = export(home, NAME, out=folder, emit=silent)
    rows = ", ".join(f"{number} {kind}" for kind, number in exported.num_rows.items())
    emit(Finished("export", f"{rows} rows in {folder}", time.perf_counter() - started))
    return exported


def _part(emit: Emit, number: int) -> Emit:
    """An `Emit` that numbers the step which begins first as this part of the demo."""
    name = PARTS[number - 1]

    def forward(event: Event) -> None:
        if isinstance(event, Started) and event.step == name:
            event = replace(event, at=number, of=len(PARTS))
        emit(event)

    return forward
