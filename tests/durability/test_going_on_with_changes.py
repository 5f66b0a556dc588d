"""A run goes on only as what it began with: all that differs is listed, and what is allowed by name is taken."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning
from tunesmith.core.run import RunFolder
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import make_recipe
from tunesmith.steps.train import resume, train
from tunesmith.training.identity import completed, differences

ROWS = [{"question": f"What is {n}?", "answer": f"It is {n % 3}."} for n in range(12)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows and a run of them."""
    folder = tmp_path_factory.mktemp("changes")
    write_tiny(folder / "base", "llama", "causal", seed=1)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = make_recipe(
        {
            "name": "small",
            "model": {"name": str(folder / "base"), "precision": "fp32"},
            "data": {"source": str(folder / "rows.jsonl")},
            "evaluate": ["perplexity"],
            "train": {"steps": 4, "tokens_per_step": 64, "validations": 2, "lr": 0.01},
            "generate": {"max_new_tokens": 2},
        }
    )
    train(recipe, emit=lambda event: None, root=folder, folder="run")
    return folder


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> RunFolder:
    """A copy of the run as it was after its first checkpoint."""
    shutil.copytree(trained / "run", tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    shutil.rmtree(run.model)
    for path in run.checkpoints.glob("*-000004"):
        shutil.rmtree(path)
    run.set_state("stopped")
    return run


def _refused(run: RunFolder, **settings: Any) -> UserError:
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with pytest.raises(UserError) as caught:
        resume(run, emit=lambda event: None, **settings)
    assert caught.value.code == "resume_mismatch"
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    return caught.value


def test_every_setting_that_differs_is_listed_with_what_it_was_and_is(stopped: RunFolder) -> None:
    fault = _refused(stopped, overrides=["train.lr=0.02", "train.tokens_per_step=128", "seed=2"])
    assert fault.message == (
        "these settings are not what the run began with: "
        "seed: 1 → 2; train.lr: 0.01 → 0.02; train.tokens_per_step: 64 → 128."
    )
    assert f"--resume {stopped.path} --allow seed --allow train.lr" in fault.remedy


def test_a_recipe_that_was_edited_in_the_run_is_refused_as_well(stopped: RunFolder) -> None:
    stopped.recipe.write_text(stopped.recipe.read_text().replace("lr: 0.01", "lr: 0.05"))
    assert "train.lr: 0.01 → 0.05" in _refused(stopped).message


def test_allowing_one_thing_does_not_allow_another(stopped: RunFolder) -> None:
    fault = _refused(stopped, overrides=["train.lr=0.02", "seed=2"], allow=["train"])
    assert "seed" in fault.message and "train.lr" not in fault.message


def test_other_rows_are_refused(stopped: RunFolder, trained: Path) -> None:
    rows = (trained / "rows.jsonl").read_text()
    (trained / "rows.jsonl").write_text(rows.replace("It is 2.", "It is two."))
    try:
        fault = _refused(stopped)
    finally:
        (trained / "rows.jsonl").write_text(rows)
    assert fault.message.startswith("the data are not what this run began with: data.")


def test_another_base_under_the_same_name_is_refused(stopped: RunFolder, trained: Path) -> None:
    weights = trained / "base" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        fault = _refused(stopped)
    finally:
        weights.write_bytes(before)
    assert fault.message.startswith("the base model's files are not what this run began with: model.sha256: ")


def test_what_is_allowed_by_name_is_taken_and_kept(stopped: RunFolder) -> None:
    events: list[Event] = []
    record = json.loads((stopped.path / "environment.json").read_text())
    stopped.write("environment.json", {**record, "threads": 96})
    done = resume(stopped, emit=events.append, overrides=["train.lr=0.02"], allow=["train.lr"])
    rates = [one["learning_rate"] for one in done.read_metrics() if "learning_rate" in one]
    assert rates[2:] == pytest.approx([2 * rate for rate in _rates_at(0.01, [2, 3])])
    assert "lr: 0.02" in done.recipe.read_text()
    record = done.read_json("resumes.json")
    assert record["allowed"] == ["train.lr"]
    assert [(one["setting"], one["was"], one["now"]) for one in record["changes"]] == [("train.lr", 0.01, 0.02)]
    (warning,) = [one for one in events if isinstance(one, Warning) and one.code == "other_environment"]
    assert "threads 96 → " in warning.message


def test_groups_in_lists_are_completed_and_compared_one_by_one() -> None:
    recipe = make_recipe({"model": "m", "data": {"source": "r"}, "evaluate": ["perplexity", "rouge"]})
    whole = recipe.model_dump(mode="json")
    evaluate = [{**one} for one in whole["evaluate"]]
    del evaluate[1]["variant"]
    filled, added = completed({**whole, "evaluate": evaluate}, recipe)
    assert filled == whole
    assert [str(one) for one in added] == ["evaluate.1.variant: nothing → rougeL"]
    assert differences({"evaluate": evaluate}, whole, is_known_only=True) == []
    other = [evaluate[0], {**evaluate[1], "use_stemmer": True}]
    (found,) = differences({"evaluate": other}, whole, is_known_only=True)
    assert str(found) == "evaluate.1.use_stemmer: True → False"


def _rates_at(peak: float, steps: list[int]) -> list[float]:
    from tunesmith.recipe import TrainSettings
    from tunesmith.training.optim import learning_rate_at

    return [learning_rate_at(step, 4, peak, TrainSettings()) for step in steps]


def _forget(run: RunFolder, *places: str) -> None:
    """Take settings out of the run's recipe and checkpoints, as if the version that began it had not had them."""

    def without(values: dict[str, Any]) -> dict[str, Any]:
        for place in places:
            *outer, name = place.split(".")
            group: Any = values
            for key in outer:
                group = group[int(key) if key.isdigit() else key]
            del group[name]
        return values

    run.write("recipe.yaml", yaml.safe_dump(without(yaml.safe_load(run.recipe.read_text()))))
    for state in run.checkpoints.glob("step-*/state.json"):
        record = json.loads(state.read_text())
        record["identity"] = without(record["identity"])
        state.write_text(json.dumps(record))
        manifest = json.loads((state.parent / "manifest.json").read_text())
        manifest["files"]["state.json"] = {
            **manifest["files"]["state.json"],
            "sha256": hashlib.sha256(state.read_bytes()).hexdigest(),
            "bytes": state.stat().st_size,
        }
        (state.parent / "manifest.json").write_text(json.dumps(manifest))


def test_settings_that_the_run_did_not_know_are_as_before_them(stopped: RunFolder) -> None:
    _forget(stopped, "train.compile", "train.max_bad_steps", "method.rank", "data.shots")
    fault = _refused(stopped, overrides=["train.compile=auto"])
    assert fault.message == "these settings are not what the run began with: train.compile: off → auto."
    fault = _refused(stopped, overrides=["train.lr=0.02"])
    assert fault.message == "these settings are not what the run began with: train.lr: 0.01 → 0.02."
    events: list[Event] = []
    done = resume(stopped, emit=events.append)
    (warning,) = [one for one in events if isinstance(one, Warning) and one.code == "new_settings"]
    assert warning.message == (
        "this run is older than some settings; it goes on with data.shots=0, method.rank=16, train.compile=off, "
        "train.max_bad_steps=3"
    )
    assert done.state == "finished"
    assert yaml.safe_load(done.recipe.read_text())["train"]["compile"] == "off"
    assert done.read_json("resumes.json") is None
