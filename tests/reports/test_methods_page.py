"""docs/methods.md follows from the kept comparisons: every sentence, and the page in the repository itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.reports.measured import keep, table
from tunesmith.reports.methods_page import made, main, methods_page, readings

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def row(name: str, value: float, gap: tuple[float, float, float] | None, **changes: Any) -> dict[str, Any]:
    low, high = value - 0.01, value + 0.01
    found = None if gap is None else dict(zip(("value", "low", "high"), gap, strict=True))
    score = {"value": value, "low": low, "high": high, "n": 3080, "seeds": [value] * 3, "seeds_sd": 0.004}
    return {
        "name": name,
        "kind": "fine-tuning",
        "scores": {"accuracy": score},
        "against": "full",
        "against_reference": found,
        "learning_rate": 1e-3,
        "tries": [{"lr": 3e-4, "validation_loss": 0.5}, {"lr": 1e-3, "validation_loss": 0.4}],
        "is_at_edge": False,
        "notes": None,
        "method": {"name": name},
        "trainable_parameters": 1_000_000,
        "total_parameters": 22_000_000,
        "disk_bytes": 4_000_000,
        "epochs": 4.0,
        "train_cpu_seconds": 100.0,
        "train_whole_seconds": 110.0,
        "peak_memory_bytes": 2**30,
        "seconds_per_answer": 0.004,
        "forgets": None,
        **changes,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "name": "methods",
        "model": "a-small-encoder",
        "data_name": "banking77",
        "at": "2026-11-21T10:00:00Z",
        "metric": "accuracy",
        "metric_title": "accuracy",
        "higher_is_better": True,
        "is_rate": True,
        "num_rows": 3080,
        "noun": "rows",
        "held_out": "test",
        "seeds": [1, 2, 3],
        "reference": "full",
        "recipe_fingerprint": "ab" * 32,
        "metrics": {"accuracy": {"title": "accuracy", "higher_is_better": True}},
        "data": {"rows": {"train": 9473, "validation": 526}, "files": []},
        "environment": {"python": "3.11.7", "machine": "x86_64", "num_cores": 2, "packages": {"torch": "2.13.0"}},
        "rows": [
            row(
                "tfidf",
                0.91,
                (-0.02, -0.03, -0.01),
                kind="baseline",
                method=None,
                notes={"C": 100.0, "tried": {"100": 1}},
            ),
            row("full", 0.93, None, trainable_parameters=22_000_000, train_cpu_seconds=400.0),
            row("lora", 0.928, (-0.002, -0.008, 0.004), is_at_edge=True),
            row("bottleneck", 0.926, (-0.004, -0.009, 0.001), trainable_parameters=500_000, train_cpu_seconds=200.0),
            row("ia3", 0.90, (-0.03, -0.04, -0.02), trainable_parameters=30_000, train_cpu_seconds=50.0),
        ],
    }


def test_what_is_said_follows_from_the_numbers(report: dict[str, Any]) -> None:
    said = readings(report)
    assert "full reaches accuracy 93.0 % [92.0, 94.0]." in said
    assert "Not to be told from full with these rows and seeds: lora (−0.2) and bottleneck (−0.4)." in said
    assert "Worse than full beyond chance: ia3 (−3.0)." in said
    assert "The fewest trained parameters that reach it: bottleneck, 500,000 (2.3 % of full's)." in said
    assert any(line.startswith("The least training time that reaches it: lora, 1 min 40 s") for line in said)
    assert "The best row without fine-tuning is tfidf: 91.0 % [90.0, 92.0], −2.0 against it." in said
    assert "At the edge of the rates tried, so perhaps not at its best: lora." in said
    assert any("0.4 points behind full fine-tuning on GLUE; here bottleneck is −0.4 points" in line for line in said)


def test_other_numbers_make_another_reading(report: dict[str, Any]) -> None:
    report["rows"][2]["against_reference"] = {"value": 0.01, "low": 0.004, "high": 0.016}
    report["rows"][4]["forgets"] = 0.5
    report["rows"][3]["forgets"] = 0.1
    said = readings(report)
    assert "Better than full beyond chance: lora (+1.0)." in said
    assert "Perplexity on general English grows most with ia3 (+50 %) and least with bottleneck (+10 %)." in said


def test_the_tables_show_quality_and_cost(report: dict[str, Any]) -> None:
    page = methods_page([report], None)
    assert "| lora | **92.8 %** | 91.8 % to 93.8 % | 0.4 % | −0.2 [−0.8, +0.4] | 0.001 (0.0003, 0.001) † |" in page
    assert "| full | 22.0 M | 100.00 % | 3.8 MiB | 4 | 6 min 40 s | 1 min 50 s | 1.0 GiB | 0.004 |" in page
    assert "9,473 training and 526 validation rows; scored on 3,080 test rows; seeds 1, 2, 3" in page
    assert "notebook" not in page


def test_the_faults_of_the_notebook_are_told_where_they_were_measured(report: dict[str, Any]) -> None:
    def fault(name: str, accuracy: float, gap: float | None) -> dict[str, Any]:
        common = {"spread": 0.004, "lr": 1e-3, "epochs": 6.0, "num_train_rows": 9473, "seeds": [1, 2, 3]}
        return {"variant": name, "accuracy": accuracy, "against_full": gap, **common}

    summary = [
        fault("full", 0.93, None),
        fault("houlsby", 0.925, -0.005),
        fault("houlsby, no residual", 0.80, -0.13),
        fault("houlsby, frozen head", 0.90, -0.03),
        fault("houlsby, both", 0.70, -0.23),
    ]
    page = methods_page([report], {"date": "2026-11-21", "machine": "a processor", "summary": summary})
    assert "| houlsby, no residual | 80.0 % ± 0.4 | −13.0 | 0.001 | 6 | 9,473 | 3 |" in page
    assert (
        "houlsby as published lies −0.5 points from full; against that, the faults cost: no residual −12.5 points, "
        "frozen head −2.5 points and both −22.5 points." in page
    )
    assert "Of the two the greater cause is: no residual." in page


def test_what_is_kept_names_no_place_on_this_machine(tmp_path: Path) -> None:
    from made_report import made as made_report

    whole, _ = made_report()
    for one in whole["rows"]:
        one |= {
            "against_reference": None,
            "against": "full",
            "model": {"name": "/home/someone/models/tiny"},
            "runs": ["/home/someone/x"],
        }
        for score in one["scores"].values():
            score["details"] = {"labels": ["a"]}
    whole["recipe"] |= {
        "train": {},
        "objective": {},
        "data": {"source": "../data/viggo/train.csv"},
        "compare": {"tries": {}},
    }
    whole["recipe"]["model"]["name"] = "/home/someone/models/tiny"
    whole |= {"seeds": [1], "reference": "lora, rank 16"}
    whole["data"] |= {"rows": {"train": 1, "validation": 1}, "files": []}
    (tmp_path / "report.json").write_text(json.dumps(whole), encoding="utf-8")
    keep(tmp_path, tmp_path / "kept.json")
    text = (tmp_path / "kept.json").read_text(encoding="utf-8")
    assert "/home/someone" not in text
    kept = json.loads(text)
    assert (kept["model"], kept["data_name"], kept["rows"][0]["model"]["name"]) == ("tiny", "viggo", "tiny")
    assert "curve" not in kept["rows"][0]


def test_a_table_is_markdown() -> None:
    assert table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | ---: |\n| x | 1 |"


def test_wrong_words_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pgae"]) == 2
    assert "methods_page page" in capsys.readouterr().err


def test_the_page_in_the_repository_is_what_the_results_give() -> None:
    page = ROOT / "docs" / "methods.md"
    if not page.is_file():
        pytest.skip("docs/methods.md is not made yet: see the head of reports/methods_page.py")
    assert page.read_text(encoding="utf-8") == made(RESULTS)
