"""The whole circle, small: what it writes, what it prints, and that it may be run twice."""

from __future__ import annotations

import json

import pytest

from tunesmith.cli.main import main
from tunesmith.core.errors import UserError
from tunesmith.core.events import Finished, Started, silent
from tunesmith.steps.demo import PARTS, ROW_KEYS, demo

SMALL = (
    "train.steps=2",
    "train.tokens_per_step=256",
    "compare.limit=4",
    "compare.rows=[zero_shot, {prompting: {name: rag, k: 1}}, {method: lora}]",
    "generate.max_new_tokens=4",
)


def test_the_circle_closes_and_can_be_run_again(tmp_path, capsys):
    events = []
    first = demo(tmp_path / "demo", overrides=SMALL, emit=events.append)
    parts = [event.step for event in events if isinstance(event, Started) and event.at]
    assert parts == list(PARTS)
    assert isinstance(events[-1], Finished) and events[-1].step == "demo"

    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert [row["kind"] for row in report["rows"]] == ["prompting", "retrieval", "fine-tuning"]
    assert all(set(row) == set(ROW_KEYS) for row in report["rows"])
    assert set(report["rows"][0]["fact_match"]) >= {"value", "low", "high", "n"}
    assert report["rows"][2]["trainable_parameters"] > 0 and report["rows"][2]["train_seconds"] > 0
    answers = report["served"]["answers"]
    assert answers[0]["question"] == "What does error E07 mean?"
    assert all({"question", "answer", "correct"} <= set(one) for one in answers)

    exported = sorted(path.name for path in (tmp_path / "demo" / "feedback").glob("*.jsonl"))
    wrong = sum(not one["correct"] for one in answers)
    assert exported and len((tmp_path / "demo" / "feedback" / "rated.jsonl").read_text().splitlines()) == len(answers)
    assert wrong == len(first.answers)  # two steps teach nothing: each got a correction
    assert (tmp_path / "demo" / "compare" / "compare.html").is_file()

    assert (
        main(["--progress=none", "demo", *SMALL, "--out", str(tmp_path / "demo")]) == 0
    )  # trained runs are used again
    printed = capsys.readouterr().out
    assert "zero-shot" in printed and "What does error E07 mean? →" in printed
    assert printed.rstrip().endswith("report.json")
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["served"]["model"] == "manual:1"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="the folder holds something else") as caught:
        demo(tmp_path, emit=silent)
    assert "--out" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
