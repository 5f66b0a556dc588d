"""A comparison's report and answers, made from outcomes by the real code; only the answers are invented."""

from __future__ import annotations

import math
import random
from dataclasses import asdict
from typing import Any

from tunesmith.core.intervals import score
from tunesmith.core.plugins import build
from tunesmith.core.records import Outcome
from tunesmith.core.run import environment
from tunesmith.steps.verdict import Candidate, changes, goodness, judge

ROWS = (("zero-shot", "prompting", 0.02), ("retrieval, 3", "retrieval", 0.31), ("lora, rank 16", "fine-tuning", 0.78))


def outcomes(skill: float, count: int, seed: int) -> tuple[Outcome, ...]:
    draw = random.Random(seed)
    return tuple(
        Outcome(
            origin=f"heldout.jsonl:{i + 1}",
            prompt=f"What does <E{i:02}> mean & why?",
            answer="The water tank is empty." if draw.random() < skill else "Once upon a <b>time</b>",
            reference="The water tank is empty.",
            fields={"facts": [["tank is empty"]]},
        )
        for i in range(count)
    )


def made(count: int = 96, metric_name: str = "fact_match") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(report, answers) as `steps/compare_report.py` writes them."""
    metric = build("metrics", metric_name)
    answered = {name: outcomes(skill, count, seed) for seed, (name, _, skill) in enumerate(ROWS)}
    scores = {name: score(metric, rows, 1) for name, rows in answered.items()}
    candidates = [Candidate(name, kind == "fine-tuning", scores[name], answered[name]) for name, kind, _ in ROWS]
    verdict = judge(metric, candidates, seed=1, noun="questions")
    rival = answered[verdict.rival]
    good = {name: goodness(metric, rows) for name, rows in answered.items()}
    rows = []
    for name, kind, _ in ROWS:
        tuned = kind == "fine-tuning"
        one = scores[name]
        found = changes(metric, answered[name], rival)
        rows.append(
            {
                "name": name,
                "kind": kind,
                "scores": {metric.key(): {"value": one.value, "low": one.low, "high": one.high, "n": one.num_rows}},
                "trainable_parameters": 294_912 if tuned else 0,
                "train_seconds": 74.2 if tuned else None,
                "seconds_per_answer": 0.083,
                "peak_memory_bytes": 2**30,
                "forgets": 0.057 if tuned else None,
                "is_reused": False,
                "curve": {
                    "train": [[i, 0.5 + 3 * math.exp(-i / 100)] for i in range(1, 640)],
                    "validation": [[i, 0.6 + 3 * math.exp(-i / 100)] for i in range(80, 641, 80)],
                }
                if tuned
                else None,
                **({"fixed": list(found.fixed), "broken": list(found.broken)} if tuned else {}),
            }
        )
    answers = [
        {
            "origin": answered["zero-shot"][i].origin,
            "prompt": answered["zero-shot"][i].prompt,
            "reference": answered["zero-shot"][i].reference,
            "answers": [
                {"name": name, "answer": answered[name][i].answer, "goodness": float(good[name][i])}
                for name in answered
            ],
        }
        for i in range(count)
    ]
    report = {
        "name": "manual",
        "at": "2026-11-20T10:00:00Z",
        "seconds": 241.0,
        "metric": metric.key(),
        "metric_title": metric.heading(),
        "higher_is_better": metric.higher_is_better,
        "is_rate": metric.is_rate,
        "num_rows": count,
        "noun": "questions",
        "held_out": "test",
        "verdict": verdict.to_dict(),
        "rows": rows,
        "wrong_in_every_row": [a["origin"] for a in answers if all(g["goodness"] == 0 for g in a["answers"])],
        "metrics": {metric.key(): {"title": metric.heading(), "higher_is_better": metric.higher_is_better}},
        "recipe": {
            "name": "manual",
            "model": {"name": "tunesmith/base"},
            "generate": {"max_new_tokens": 64, "temperature": 0.0},
        },
        "recipe_fingerprint": "ab" * 32,
        "environment": environment(machine_details={"processor": "a processor", "cores": 2, "precision": "bf16"}),
        "data": {"contents_sha256": {"train": "cd" * 32}},
        "score_details": {name: asdict(one)["details"] for name, one in scores.items()},
    }
    return report, answers
