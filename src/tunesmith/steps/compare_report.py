"""A comparison as files: report.json, answers.jsonl, the page and the plot; report.json last, with their sums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tunesmith.core.publish import sha256, write_json, write_text
from tunesmith.core.records import ChatExample, Example, Outcome, Score
from tunesmith.core.run import RunFolder, environment, now
from tunesmith.core.seeds import seeds_difference
from tunesmith.steps.compare_result import Result, average
from tunesmith.steps.compare_rows import run_folder
from tunesmith.steps.compare_work import Work
from tunesmith.steps.verdict import Candidate, best_of, changes, goodness, judge

REPORT, ANSWERS, PAGE, PLOTS = "report.json", "answers.jsonl", "compare.html", "plots"


def publish(
    work: Work, results: Sequence[Result], seconds: float
) -> tuple[dict[str, Any], tuple[Mapping[str, Any], ...]]:
    """The report and the answers, once they are on disk."""
    from tunesmith.reports.compare_page import compare_page
    from tunesmith.reports.plots import quality_plot

    answers = _answers(work, results)
    report = _report(work, results, answers, seconds)
    out = work.out
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / ANSWERS, "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
    write_text(out / PAGE, compare_page(report, answers))
    (out / PLOTS).mkdir(exist_ok=True)
    quality_plot(report, out / PLOTS / "quality.png")
    files = (ANSWERS, PAGE, f"{PLOTS}/quality.png")
    report["files"] = {name: sha256(out / name) for name in files}
    write_json(out / REPORT, report)
    return report, tuple(answers)


def _answers(work: Work, results: Sequence[Result]) -> list[dict[str, Any]]:
    good = {result.name: goodness(work.headline, result.outcomes) for result in results}
    lines = []
    for i, example in enumerate(work.examples):
        first: Outcome = results[0].outcomes[i]
        given = [
            {
                "name": result.name,
                "answer": result.outcomes[i].answer,
                "goodness": float(good[result.name][i]),
                "prompt_tokens": result.outcomes[i].num_prompt_tokens,
                "finish_reason": result.outcomes[i].finish_reason,
            }
            for result in results
        ]
        facts = example.fields.get("facts")
        question = _question(example)
        lines.append(
            {
                "origin": first.origin,
                "prompt": question or first.prompt,
                "reference": first.reference,
                **({"facts": facts} if facts else {}),
                "answers": given,
            }
        )
    return lines


def _question(example: Example) -> str:
    if isinstance(example, ChatExample):
        return next((m.content for m in reversed(example.prompt) if m.role == "user"), "")
    return str(getattr(example, "source", getattr(example, "text", "")))


def _report(
    work: Work, results: Sequence[Result], answers: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    metric = work.headline
    candidates = [result.candidate(metric) for result in results]
    verdict = judge(metric, candidates, seed=work.recipe.seed, noun=work.noun)
    prompted = [candidate for candidate in candidates if not candidate.is_tuned]
    rival = best_of(metric, prompted) if prompted else None
    reference = _reference(results, candidates)
    wrong = [a["origin"] for a in answers if metric.is_rate and all(given["goodness"] == 0 for given in a["answers"])]
    return {
        "format": 1,
        "name": work.recipe.name,
        "at": now(),
        "seconds": seconds,
        "metric": metric.key(),
        "metric_title": metric.heading(),
        "higher_is_better": metric.higher_is_better,
        "is_rate": metric.is_rate,
        "num_rows": len(work.examples),
        "seeds": list(work.seeds),
        "noun": work.noun,
        "held_out": work.held_out,
        "verdict": verdict.to_dict(),
        "reference": reference.name,
        "rows": [_row_report(work, result, rival, _set_against(result, candidates, reference)) for result in results],
        "wrong_in_every_row": wrong,
        "metrics": {
            one.key(): {"title": one.heading(), "higher_is_better": one.higher_is_better} for one in work.metrics
        },
        "recipe": work.recipe.model_dump(mode="json"),
        "recipe_fingerprint": work.recipe.fingerprint(),
        "environment": _environment(),
        "data": json.loads(json.dumps(work.data.card())),
    }


def _reference(results: Sequence[Result], candidates: Sequence[Candidate]) -> Candidate:
    """What every row is set against: full fine-tuning where it is a row, otherwise the first row."""
    full = (i for i, result in enumerate(results) if result.row.method and result.row.method.name == "full")
    return candidates[next(full, 0)]


def _set_against(result: Result, candidates: Sequence[Candidate], reference: Candidate) -> Candidate:
    return next((one for one in candidates if one.name == result.row.against), reference)


def _row_report(work: Work, result: Result, rival: Candidate | None, reference: Candidate) -> dict[str, Any]:
    scores = {score.metric: _score_report(score) for score in result.scores}
    trainings = result.trainings
    report: dict[str, Any] = {
        "name": result.name,
        "kind": result.kind,
        **scores,
        "scores": {score.metric: {**scores[score.metric], "details": dict(score.details)} for score in result.scores},
        "against": reference.name,
        "against_reference": _against(work, result, reference),
        "seeds": [cell.seed for cell in result.cells],
        "learning_rate": result.lr,
        "tries": [asdict(found) for found in result.tries],
        "is_at_edge": result.is_at_edge,
        "trainable_parameters": trainings[0].trainable_parameters if trainings else 0,
        "total_parameters": trainings[0].total_parameters if trainings else None,
        "disk_bytes": trainings[0].disk_bytes if trainings else None,
        "epochs": average([training.epochs for training in trainings]) if result.kind == "fine-tuning" else None,
        "train_seconds": result.train_seconds,
        "train_whole_seconds": average([training.whole_seconds for training in trainings]),
        "train_cpu_seconds": average([training.cpu_seconds for training in trainings]),
        "seconds_per_answer": result.seconds_per_answer,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_bytes,
        "answer_peak_bytes": result.answer_peak_bytes,
        "train_peak_bytes": result.train_peak_bytes,
        "forgets": result.forgets,
        "general_perplexity": list(result.general) if result.general else None,
        "prompting": result.row.prompting.spec(),
        "method": result.row.method.spec() if result.row.method else None,
        "baseline": result.row.baseline or None,
        "notes": dict(result.cells[0].notes) if result.cells[0].notes else None,
        "model": work.model(result.row).model_dump(mode="json"),
        "run": _run_name(work, run_folder(work, trainings[0].run)) if trainings and trainings[0].run else None,
        "runs": [_run_name(work, run_folder(work, training.run)) for training in trainings if training.run],
        "is_reused": result.is_reused,
        "curve": _curve(run_folder(work, trainings[0].run)) if trainings and trainings[0].run else None,
    }
    if rival and result.kind == "fine-tuning":
        found = changes(work.headline, result.outcomes, rival.outcomes)
        report |= {"fixed": list(found.fixed), "broken": list(found.broken)}
    return report


def _against(work: Work, result: Result, reference: Candidate) -> dict[str, Any] | None:
    if result.name == reference.name:
        return None
    runs = result.candidate(work.headline).seeds
    return seeds_difference(work.headline, runs, reference.seeds, work.recipe.seed).to_dict()


def _run_name(work: Work, run: RunFolder) -> str:
    """Where the run lies in the comparison's folder; of a run elsewhere only its name leaves this machine."""
    return str(run.path.relative_to(work.out)) if run.path.is_relative_to(work.out) else run.name


def _score_report(score: Score) -> dict[str, Any]:
    values = {"value": score.value, "low": score.low, "high": score.high, "n": score.num_rows}
    return {**values, "signature": score.signature} if score.signature else values


def _curve(run: RunFolder) -> dict[str, Any]:
    from tunesmith.reports.curve import points, thinned

    records = run.read_metrics()
    return {
        "train": [list(point) for point in thinned(points(records, "train_loss"))],
        "validation": [list(point) for point in points(records, "validation_loss")],
    }


def _environment() -> dict[str, Any]:
    from tunesmith.models.machine import describe

    return environment(machine_details=asdict(describe()))
