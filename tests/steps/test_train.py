"""Training through the step: every family, the run folder, resuming, and what is refused before anything is written."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Finding, Finished, Metric, Progress, Sample, Saved, Started
from tunesmith.core.publish import verify
from tunesmith.core.run import RunFolder
from tunesmith.models.load import load_trained
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import Recipe, make_recipe, override_recipe
from tunesmith.steps.train import resume, train

TRAIN = {"steps": 6, "tokens_per_step": 128, "micro_tokens": 128, "validations": 2, "lr": 1e-2}
CHATS = [{"question": f"What is {n}?", "answer": f"It is {n % 3}."} for n in range(20)]
LABELS = [{"text": f"row {n} is {'good' if n % 2 else 'bad'}", "label": "yes" if n % 2 else "no"} for n in range(20)]
PAIRS = [{"source": f"say {n}", "target": f"{n} said"} for n in range(20)]
TEXTS = [{"text": f"once upon a time there were {n} of them"} for n in range(20)]


def _recipe(folder: Path, architecture: str, task: str, rows: list[dict], **settings) -> Recipe:
    torch.manual_seed(0)
    write_tiny(folder / "base", architecture, task)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "small",
        "model": {"name": str(folder / "base"), "precision": "fp32"},
        "data": {"source": str(folder / "rows.jsonl")},
        "train": TRAIN,
        "generate": {"max_new_tokens": 4},
    }
    return make_recipe({**values, **settings})


def _train(folder: Path, *args, **settings) -> tuple[RunFolder, list[Event]]:
    events: list[Event] = []
    return train(_recipe(folder, *args, **settings), emit=events.append, root=folder / "runs"), events


@pytest.mark.parametrize(
    ("architecture", "task", "rows", "objective", "method"),
    [
        ("llama", "causal", CHATS, "sft", "lora"),
        ("gpt2", "causal", TEXTS, "clm", "full"),
        ("bert", "classify", LABELS, "classification", "feature_extraction"),
        ("distilbert", "classify", LABELS, "classification", "last_k"),
        ("t5", "seq2seq", PAIRS, "seq2seq", "full"),
    ],
)
def test_every_family_trains_from_file_to_report(tmp_path, monkeypatch, architecture, task, rows, objective, method):
    collections = []
    monkeypatch.setattr(gc, "collect", lambda *generation: collections.append(generation))
    run, _ = _train(
        tmp_path, architecture, task, rows, method={"name": method, "k": 1} if method == "last_k" else method
    )
    assert not collections, "optimiser, copies and published model are gone once they are dropped: no cycle holds them"
    recipe = yaml.safe_load(run.recipe.read_text())
    assert recipe["objective"]["name"] == objective and recipe["evaluate"] != "auto"
    assert run.state == "finished"
    assert verify(run.model)
    report = run.read_json("report.json")
    assert [one["origin"] for one in report["before"]["outcomes"]] == [
        one["origin"] for one in report["after"]["outcomes"]
    ]
    assert report["training"]["steps"] == 6
    card = json.loads((run.model / "tunesmith.json").read_text())
    assert (card["task"], card["objective"], card["method"]["name"]) == (task, objective, method)
    assert {"environment.json", "data.json", "metrics.jsonl", "loss.png"} <= {path.name for path in run.path.iterdir()}
    assert load_trained(run.model).task == task


def test_a_run_is_gone_on_with_by_its_name(tmp_path):
    run = RunFolder.create(tmp_path / "runs", "small")
    run.write("recipe.yaml", "model: tunesmith/base\n")
    write_tiny(run.model, "bert", "classify", labels=("no", "yes"))
    recipe = override_recipe(_recipe(tmp_path, "bert", "classify", LABELS, method="full"), model={"name": run.name})
    again = train(recipe, emit=lambda event: None, root=tmp_path / "runs")
    assert yaml.safe_load(again.recipe.read_text())["model"]["name"] == str(run.path)


def test_it_learns(tmp_path):
    rows = [{"question": f"Say it {n}.", "answer": "yes"} for n in range(12)]
    run, _ = _train(tmp_path, "llama", "causal", rows, method="full", train={**TRAIN, "steps": 60, "patience": 0})
    scores = {one["metric"]: one["value"] for one in run.read_json("report.json")["after"]["scores"]}
    assert scores["exact_match"] == 1.0
    before = run.read_json("report.json")["before"]["scores"]
    assert next(one["value"] for one in before if one["metric"] == "perplexity") > 10 * scores["perplexity"]


def test_what_it_says_on_the_way(tmp_path):
    run, events = _train(tmp_path, "llama", "causal", CHATS)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert [label for label, _ in started.lines] == [
        *("run", "model", "machine", "data", "method", "plan", "memory", "kernels", "blocks")
    ]
    assert re.search(r" · \d+ threads? \(\w", dict(started.lines)["machine"]), "how many, and why"
    assert str(run.path) in started.on_interrupt
    marks = [(event.at, event.of) for event in events if isinstance(event, Metric)]
    assert marks == [(3, 6), (6, 6)]
    assert [event.at for event in events if isinstance(event, Sample)] == [3, 6]
    steps = [event for event in events if isinstance(event, Progress) and event.label == "training"]
    assert [event.done for event in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1].values["left_seconds"] == 0
    assert {event.what for event in events if isinstance(event, Saved)} == {"checkpoint", "model"}
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.table[0][1:] == ("before", "after")
    assert f"tunesmith chat {run.path}" in finished.next


@pytest.mark.parametrize(
    ("architecture", "rows", "settings", "why"),
    [
        (
            "llama",
            CHATS,
            {"method": {"name": "prompt_tuning", "num_tokens": 2}},
            "virtual tokens stand before every row",
        ),
        ("llama", CHATS, {"train": {**TRAIN, "steps": 1, "packing": "off"}}, "train.packing is off"),
        ("bert", LABELS, {"method": "lora"}, "only decoders that write text are packed"),
    ],
)
def test_padded_rows_are_said_to_be_padded_and_why(tmp_path, architecture, rows, settings, why):
    task = "classify" if architecture == "bert" else "causal"
    run, events = _train(tmp_path, architecture, task, rows, **{"train": {**TRAIN, "steps": 1}, **settings})
    (started,) = [event for event in events if isinstance(event, Started)]
    assert dict(started.lines)["plan"].endswith(f"padded, in groups of like length: {why}")
    assert run.read_json("report.json")["training"]["padded_because"] == why


def test_rows_that_are_cut_are_counted_and_rows_without_anything_left_are_named(tmp_path):
    rows = [*CHATS, {"question": "long " * 60, "answer": "no room"}]
    _, events = _train(
        tmp_path, "llama", "causal", rows, data={"source": str(tmp_path / "rows.jsonl"), "max_length": 64}
    )
    found = {event.code: event for event in events if isinstance(event, Finding)}
    assert found["nothing_trained"].where.endswith("rows.jsonl:21")
    assert found["truncated"].num_rows >= 1


def _refused(folder: Path, *args, **settings) -> UserError:
    with pytest.raises(UserError) as caught:
        _train(folder, *args, **settings)
    assert not (folder / "runs").exists()  # nothing half-written
    return caught.value


def test_a_context_that_is_too_short_is_refused(tmp_path):
    data = {"source": str(tmp_path / "rows.jsonl"), "max_length": 100_000}
    fault = _refused(tmp_path, "llama", "causal", CHATS, data=data)
    assert fault.code == "context_too_short" and "data.max_length=" in fault.remedy


def test_an_objective_that_does_not_fit_the_rows_is_refused(tmp_path):
    fault = _refused(tmp_path, "llama", "causal", LABELS, objective="sft")
    assert fault.code == "objective_unfit" and "objective=classification" in fault.remedy


def test_a_model_that_cannot_do_the_task_is_refused(tmp_path):
    fault = _refused(tmp_path, "bert", "classify", CHATS)
    assert fault.code == "wrong_task"


def test_rows_that_only_judge_are_refused(tmp_path):
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    assert _refused(tmp_path, "llama", "causal", rows).code == "objective_unfit"


def test_packing_that_would_mix_examples_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.training.learner.why_not_packed", lambda model, size, kernel: "they would mix")
    fault = _refused(tmp_path, "llama", "causal", CHATS, train={**TRAIN, "packing": "on"})
    assert fault.code == "cannot_pack" and fault.message == "rows cannot be packed: they would mix."


def test_a_finished_run_is_not_resumed(tmp_path):
    run, _ = _train(tmp_path, "llama", "causal", CHATS)
    with pytest.raises(UserError, match="this run is finished"):
        resume(run, emit=lambda event: None)


def test_other_data_than_it_began_with_are_refused(tmp_path):
    run, _ = _train(tmp_path, "llama", "causal", CHATS)
    run.set_state("stopped")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"question": "new?", "answer": "yes"}) + "\n")
    with pytest.raises(UserError, match="the data are not what this run began with") as caught:
        resume(run, emit=lambda event: None)
    assert caught.value.code == "resume_mismatch"


SLOW = {**TRAIN, "steps": 200, "validations": 20, "patience": 0, "keep": "last"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A training that nobody kills: what every killed one must end as."""
    folder = tmp_path_factory.mktemp("straight")
    recipe = _recipe(folder, "llama", "causal", CHATS, train=SLOW)
    return train(recipe, emit=lambda event: None, root=folder / "runs")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(tmp_path, straight, number):
    shutil.copy(straight.recipe, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "tunesmith", "--home", str(tmp_path), "train", str(tmp_path / "recipe.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "runs" / "small-1" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step-*")):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), said
    if number != signal.SIGKILL:
        assert "tunesmith train --resume" in said
    run = resume(RunFolder.open(tmp_path / "runs" / "small-1"), emit=lambda event: None)
    name = "adapter_model.safetensors"
    assert (run.model / name).read_bytes() == (straight.model / name).read_bytes()
    assert _losses(run) == _losses(straight)


def _losses(run: RunFolder) -> list[tuple]:
    return [(one["step"], one.get("train_loss"), one.get("validation_loss")) for one in run.read_metrics()]


def test_no_rows_for_validation_are_refused(tmp_path):
    data = {"source": str(tmp_path / "rows.jsonl"), "split": {"validation": 0}}
    assert _refused(tmp_path, "llama", "causal", CHATS, data=data).code == "no_validation"


def test_a_method_that_does_not_fit_the_task_is_refused_before_weights(tmp_path):
    assert _refused(tmp_path, "llama", "causal", CHATS, method="feature_extraction").code


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.steps.train_work.find_spec", lambda name: None)
    fault = _refused(tmp_path, "llama", "causal", CHATS, train={**TRAIN, "trackers": ["wandb"]})
    assert fault.code == "missing_package" and "tunesmith[trackers]" in fault.remedy


def test_tensorboard_gets_the_losses(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard (extra: trackers)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = _train(tmp_path, "llama", "causal", CHATS, train={**TRAIN, "trackers": ["tensorboard"]})
    (file,) = [path for path in run.path.rglob("events.out.tfevents*") if path.stat().st_size > 200]
    events = EventAccumulator(str(file)).Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx([one["train_loss"] for one in run.read_metrics() if "train_loss" in one])
    assert len(events.Scalars("validation/loss")) == 2
