"""A comparison of methods: several seeds, rates chosen by trying, baselines, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning, silent
from tunesmith.core.run import RunFolder
from tunesmith.recipe import Recipe, make_recipe, read_recipe
from tunesmith.steps.compare import Comparison, compare
from tunesmith.steps.compare_baselines import fit_tfidf

CLASSES = ("card", "cash", "loan")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tunesmith.models.tiny import write_tiny

    folder = tmp_path_factory.mktemp("project")
    write_tiny(folder / "model", "bert", "classify", labels=CLASSES)
    rows = "text,label\n" + "".join(f"where is the {w} number {i},{w}\n" for i in range(20) for w in CLASSES)
    (folder / "train.csv").write_text(rows, encoding="utf-8")
    held = "text,label\n" + "".join(f"my {w} is {i} days late,{w}\n" for i in range(4) for w in CLASSES)
    (folder / "held.csv").write_text(held, encoding="utf-8")
    return {
        "name": "methods",
        "model": {"name": str(folder / "model"), "precision": "fp32"},
        "data": {
            "source": str(folder / "train.csv"),
            "test": str(folder / "held.csv"),
            "split": {"validation": 0.2},
        },
        "train": {"steps": 4, "tokens_per_step": 64, "validations": 1, "patience": 0},
        "compare": {
            "seeds": 2,
            "tries": {"steps": 2},
            "rows": [
                {"baseline": "tfidf"},
                {"baseline": "frozen_features"},
                {"method": {"name": "lora", "rank": 2}, "lr": [1e-6, 1e-2]},
                {"method": "full", "title": "everything", "train": {"lr": 1e-3}},
            ],
        },
    }


@pytest.fixture(scope="module")
def recipe(values: dict[str, Any]) -> Recipe:
    return make_recipe(values)


@pytest.fixture(scope="module")
def comparison(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(recipe, emit=silent, out=tmp_path_factory.mktemp("out"))


def rows_of(comparison: Comparison) -> dict[str, Any]:
    return {row["name"]: row for row in comparison.report["rows"]}


def test_methods_have_every_seed_and_baselines_one(comparison: Comparison) -> None:
    rows = rows_of(comparison)
    assert [row["seeds"] for row in rows.values()] == [[1], [1], [1, 2], [1, 2]]
    assert [row["kind"] for row in rows.values()] == ["baseline", "baseline", "fine-tuning", "fine-tuning"]
    found = rows["everything"]["scores"]["accuracy"]
    assert found["value"] == pytest.approx(mean(found["details"]["seeds"]))
    assert len(found["details"]["seeds"]) == 2


def test_seeds_differ_in_all_but_who_is_held_out(comparison: Comparison) -> None:
    runs = [RunFolder(comparison.path / name) for name in rows_of(comparison)["everything"]["runs"]]
    assert [read_recipe(run.recipe).seed for run in runs] == [1, 2]
    sums = [run.read_json("data.json")["contents_sha256"] for run in runs]
    assert sums[0] == sums[1]
    first, second = ([one["train_loss"] for one in run.read_metrics() if "train_loss" in one] for run in runs)
    assert first != second


def test_the_rate_with_the_lowest_validation_loss_is_used(comparison: Comparison) -> None:
    row = next(row for row in comparison.report["rows"] if row["method"] and row["method"]["name"] == "lora")
    losses = {found["lr"]: found["validation_loss"] for found in row["tries"]}
    assert set(losses) == {1e-6, 1e-2}
    assert row["learning_rate"] == min(losses, key=lambda lr: losses[lr])
    assert row["is_at_edge"]
    for name in row["runs"]:
        assert read_recipe(RunFolder(comparison.path / name).recipe).train.lr == row["learning_rate"]
    tries = [RunFolder(path) for path in sorted((comparison.path / "tries").iterdir())]
    assert [read_recipe(run.recipe).train.steps for run in tries] == [2, 2]
    assert not any(run.model.exists() for run in tries)


def test_every_row_is_set_against_full_and_costs_are_told(comparison: Comparison) -> None:
    rows = rows_of(comparison)
    assert comparison.report["reference"] == "everything"
    assert rows["everything"]["against_reference"] is None
    lora = next(row for name, row in rows.items() if "lora" in name.lower())
    value = lora["scores"]["accuracy"]["value"] - rows["everything"]["scores"]["accuracy"]["value"]
    assert lora["against_reference"]["value"] == pytest.approx(value)
    assert lora["total_parameters"] > lora["trainable_parameters"] > 0
    weights = sum(f.stat().st_size for f in (comparison.path / lora["run"] / "model").glob("*.safetensors"))
    assert lora["disk_bytes"] == weights
    assert lora["train_cpu_seconds"] > 0
    assert lora["train_whole_seconds"] >= lora["train_seconds"]
    assert not any((comparison.path / name / "checkpoints").exists() for name in lora["runs"])


def test_baselines_choose_their_strength_on_validation(comparison: Comparison) -> None:
    row = rows_of(comparison)["TF-IDF, logistic regression"]
    tried = {float(strength): loss for strength, loss in row["notes"]["tried"].items()}
    assert row["notes"]["C"] == min(tried, key=lambda strength: tried[strength])
    assert row["scores"]["accuracy"]["value"] == 1.0  # the class is a word of the text
    assert "the best baseline" in comparison.verdict


def test_tfidf_is_what_scikit_learn_gives() -> None:
    from sklearn.linear_model import LogisticRegression

    from tunesmith.core.records import LabelExample, Origin

    rows = [
        LabelExample(origin=Origin("a", i), text=f"the {word} {i % 5}", label=word)
        for i, word in enumerate(["card", "cash"] * 10)
    ]
    fitted = fit_tfidf(rows[:16], rows[16:])
    outcomes = fitted.classify(rows[16:], lambda done, total: None)
    other = LogisticRegression(C=fitted.notes["C"], max_iter=1000, tol=1e-8)
    other.fit(fitted.features(rows[:16]), [row.label for row in rows[:16]])
    expected = other.predict_proba(fitted.features(rows[16:]))
    for outcome, wanted in zip(outcomes, expected, strict=True):
        assert list(outcome.probabilities.values()) == pytest.approx(list(wanted), abs=1e-3)
        assert outcome.answer == outcome.reference


def test_features_of_a_text_do_not_depend_on_its_neighbours(recipe: Recipe) -> None:
    import numpy as np
    import torch

    from tunesmith.models.load import load_base
    from tunesmith.models.pooled import mean_states

    settings = {"labels": CLASSES, "trains_base_weights": False, "precision": "fp32", "seed": 1}
    loaded = load_base(recipe.model, "classify", **settings)  # type: ignore[arg-type]
    texts = [("a card", None), ("where is the cash machine of the bank", None)]
    together = mean_states(loaded, texts, lambda done, total: None)
    alone = np.concatenate([mean_states(loaded, [text], lambda done, total: None) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)
    with torch.no_grad():
        states = loaded.model.base_model(**loaded.tokenizer("a card", return_tensors="pt")).last_hidden_state
    assert together[0] == pytest.approx(states[0].mean(0).numpy(), abs=1e-5)


def test_nothing_is_done_twice(comparison: Comparison, recipe: Recipe) -> None:
    runs = sorted(path.name for path in (comparison.path / "runs").iterdir())
    again = compare(recipe, emit=silent, out=comparison.path)
    assert sorted(path.name for path in (comparison.path / "runs").iterdir()) == runs
    assert all(row["is_reused"] for row in again.report["rows"])
    for old, new in zip(comparison.report["rows"], again.report["rows"], strict=True):
        assert old["scores"] == new["scores"]
        assert old["train_cpu_seconds"] == new["train_cpu_seconds"]


def test_a_new_row_costs_only_itself(comparison: Comparison, values: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(comparison.path, tmp_path / "out")
    rows = [*values["compare"]["rows"], {"method": "last_k", "train": {"lr": 1e-3}}]
    changed = make_recipe({**values, "compare": {**values["compare"], "rows": rows}})
    found = compare(changed, emit=silent, out=tmp_path / "out").report["rows"]
    assert [row["is_reused"] for row in found] == [True] * 4 + [False]


def test_a_lost_cell_is_made_from_its_run(comparison: Comparison, recipe: Recipe, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "out"
    shutil.copytree(comparison.path, out)
    lost = next(out.glob("cells/everything-seed-2-*"))
    lost.unlink()
    again = compare(recipe, emit=silent, out=out)
    assert lost.is_file()
    assert len(list((out / "runs").glob("everything-*"))) == 2
    assert rows_of(again)["everything"]["scores"] == rows_of(comparison)["everything"]["scores"]


def test_a_training_that_was_killed_goes_on(comparison: Comparison, recipe: Recipe, tmp_path: Path) -> None:
    """What a kill leaves: a run that says it is running, without a model, and no cell."""
    import shutil

    out = tmp_path / "out"
    shutil.copytree(comparison.path, out)
    next(out.glob("cells/everything-seed-2-*")).unlink()
    run = RunFolder(out / rows_of(comparison)["everything"]["runs"][1])
    shutil.rmtree(run.model)
    run.checkpoints.mkdir()
    run.set_state("running")
    again = compare(recipe, emit=silent, out=out)
    assert run.state == "finished"
    assert len(list((out / "runs").glob("everything-*"))) == 2
    assert rows_of(again)["everything"]["scores"] == rows_of(comparison)["everything"]["scores"]


def test_workers_give_what_one_process_gives(comparison: Comparison, values: dict[str, Any], tmp_path: Path) -> None:
    """A baseline, and a method with its learning rates and seeds."""
    rows = [row for row in values["compare"]["rows"] if row.get("baseline") == "tfidf" or "lr" in row]
    some = make_recipe({**values, "compare": {**values["compare"], "rows": rows}})
    found = rows_of(compare(some, emit=silent, out=tmp_path / "out", jobs=2))
    assert len(found) == 2
    for name, beside in found.items():
        alone = rows_of(comparison)[name]
        assert alone["scores"] == beside["scores"]
        assert alone["learning_rate"] == beside["learning_rate"]


def test_a_row_that_fails_leaves_the_others(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"method": {"name": "last_k", "k": 99}}, {"baseline": "tfidf"}]
    broken = make_recipe({**values, "compare": {"seeds": 2, "rows": rows}})
    events: list[Event] = []
    with pytest.raises(UserError, match=r"1 of 2 rows failed \(last_k, k 99\)") as fault:
        compare(broken, emit=events.append, out=tmp_path / "out")
    assert "the other rows are kept" in fault.value.remedy
    assert any(isinstance(event, Warning) and "99" in event.message for event in events)
    assert list((tmp_path / "out" / "cells").glob("tf-idf*"))


def test_a_row_may_have_another_model(values: dict[str, Any], tmp_path: Path) -> None:
    from tunesmith.models.tiny import write_tiny

    other = write_tiny(tmp_path / "other", "llama", "classify", labels=CLASSES)
    rows = [{"method": "full"}, {"method": "full", "model": str(other)}]
    found = compare(make_recipe({**values, "compare": {"rows": rows}}), emit=silent, out=tmp_path / "out").report[
        "rows"
    ]
    assert [row["name"] for row in found] == ["full", "full of other"]
    configs = [json.loads((tmp_path / "out" / row["run"] / "model" / "config.json").read_text()) for row in found]
    assert [config["model_type"] for config in configs] == ["bert", "llama"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"baseline": "tfidf", "method": "full"}, "has both `method` and `baseline`"),
        ({"baseline": "tfidf", "lr": [1e-3]}, "nothing to train with them"),
    ],
)
def test_rows_that_cannot_be_are_refused(
    row: dict[str, Any], said: str, values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        compare(make_recipe({**values, "compare": {"rows": [row]}}), emit=silent, out=tmp_path / "out")


def test_workers_end_with_a_comparison_that_is_killed_outright(tmp_path: Path) -> None:
    """A worker that lived on would hold the lock of its run, and the next comparison could not go on with it."""
    import os
    import signal
    import subprocess
    import sys
    import time

    import psutil

    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from tunesmith.steps.compare_crew import _begin\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), _begin) as workers:\n"
        "        print(workers.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(60)\n",
        encoding="utf-8",
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert psutil.pid_exists(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 20
    while psutil.pid_exists(worker) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker)
