"""Several tasks with their own heads: trained together, opened one by one with transformers or peft alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Finished, Metric, Saved, Started, silent
from tunesmith.core.home import Home
from tunesmith.core.publish import verify
from tunesmith.core.run import RunFolder
from tunesmith.data.load import load_data
from tunesmith.models.load import load_trained
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import Recipe, make_recipe, override_recipe, read_recipe
from tunesmith.steps.evaluate import evaluate
from tunesmith.steps.register import register
from tunesmith.steps.train import resume, train

TRAIN = {"steps": 6, "tokens_per_step": 160, "micro_tokens": 96, "validations": 2, "lr": 1e-2, "patience": 0}
KINDS = [{"text": f"row {n} is of kind {n % 3}", "label": f"k{n % 3}"} for n in range(40)]
MOODS = [{"text": f"row {n} is {'good' if n % 2 else 'bad'}", "label": "yes" if n % 2 else "no"} for n in range(24)]
CHATS = [{"question": f"What is {n}?", "answer": f"It is {n % 3}."} for n in range(30)]


def _recipe(folder: Path, architecture: str, second: list[dict], objective: str, **settings) -> Recipe:
    torch.manual_seed(0)
    if not (folder / "base").is_dir():
        write_tiny(folder / "base", architecture)
    sources = []
    for name, rows, one in (("kinds", KINDS, "classification"), ("second", second, objective)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"path": str(folder / f"{name}.jsonl"), "objective": one})
    values = {
        "name": "joint",
        "model": {"name": str(folder / "base"), "precision": "fp32"},
        "data": {"source": sources, "split": {"validation": 0.2, "test": 0.1}},
        "method": "full",
        "train": TRAIN,
        "generate": {"max_new_tokens": 4},
    }
    return make_recipe({**values, **settings})


def _train(folder: Path, *args, **settings) -> tuple[RunFolder, list[Event]]:
    events: list[Event] = []
    return train(_recipe(folder, *args, **settings), emit=events.append, root=folder / "runs"), events


CASES = [
    ("bert", MOODS, "classification", "full"),
    ("distilbert", MOODS, "classification", "last_k"),
    ("bert", MOODS, "classification", "feature_extraction"),
    ("llama", CHATS, "sft", "full"),
    ("llama", CHATS, "sft", "lora"),
    ("gpt2", CHATS, "sft", "last_k"),
]


@pytest.mark.parametrize(("architecture", "second", "objective", "method"), CASES)
def test_tasks_train_together_and_each_opens_alone(tmp_path, architecture, second, objective, method) -> None:
    spec = {"name": method, "k": 1} if method == "last_k" else method
    run, _ = _train(tmp_path, architecture, second, objective, method=spec)
    assert (run.state, run.tasks) == ("finished", ("kinds", "second"))
    report = run.read_json("report.json")
    assert report["training"]["steps"] == 6
    for name in run.tasks:
        folder = RunFolder(run.path / name)
        assert folder.state == "finished" and verify(folder.model)
        alone = load_trained(folder.path)
        assert len(alone.labels) == {"kinds": 3, "second": 2 if objective == "classification" else 0}[name]
        scores = {one["metric"]: one["value"] for one in report["tasks"][name]["after"]["scores"]}
        again = evaluate(str(folder.path), home=Home.open(str(tmp_path)))
        assert {one.metric: pytest.approx(one.value) for one in again.scores} == scores


def test_the_log_has_each_tasks_loss_and_the_end_each_tasks_scores(tmp_path) -> None:
    run, events = _train(tmp_path, "llama", CHATS, "sft")
    trained = [record for record in run.read_metrics() if "train_loss" in record]
    for record in trained:
        parts = [value for name, value in record.items() if name.startswith("train_loss.")]
        assert record["train_loss"] == pytest.approx(sum(parts))  # loss_weight 1 each
    assert {"train_loss.kinds", "train_loss.second"} <= set().union(*trained)
    last = [event for event in events if isinstance(event, Metric)][-1]
    assert {"validation_loss.kinds", "validation_loss.second", "validation_accuracy.kinds"} <= set(last.values)
    (started,) = [event for event in events if isinstance(event, Started)]
    labels = [label for label, _ in started.lines]
    assert labels == ["run", "model", "machine", "kinds", "second", "method", "plan", "memory", "kernels", "blocks"]
    assert isinstance(events[-1], Finished)
    assert [row[0].partition(":")[0] for row in events[-1].table[1:]] == ["kinds"] * 2 + ["second"] * 3


def test_the_backbone_is_on_disk_once_and_the_heads_are_apart(tmp_path) -> None:
    run, _ = _train(tmp_path, "bert", MOODS, "classification")
    files = [run.path / name / "model" / "model-00001-of-00002.safetensors" for name in run.tasks]
    assert files[0].samefile(files[1])
    one, other = (load_trained(run.path / name).model for name in run.tasks)
    for (name, left), right in zip(one.bert.encoder.named_parameters(), other.bert.encoder.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert one.classifier.out_features == 3 and other.classifier.out_features == 2


def test_transformers_alone_opens_a_task(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    run, _ = _train(tmp_path, "llama", CHATS, "sft")
    kinds, info = AutoModelForSequenceClassification.from_pretrained(
        run.path / "kinds" / "model", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    second, info = AutoModelForCausalLM.from_pretrained(run.path / "second" / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(kinds.model.layers[0].mlp.up_proj.weight, second.model.layers[0].mlp.up_proj.weight)


def test_the_tasks_adapters_are_equal_but_for_their_heads(tmp_path) -> None:
    from safetensors.torch import load_file

    run, _ = _train(tmp_path, "llama", CHATS, "sft", method={"name": "lora", "rank": 2})
    kinds, second = (load_file(run.path / name / "model" / "adapter_model.safetensors") for name in run.tasks)
    assert set(second) < set(kinds)
    assert all(torch.equal(tensor, kinds[name]) for name, tensor in second.items())
    assert any(tensor.abs().sum() > 0 for name, tensor in second.items() if "lora_B" in name)
    assert set(kinds) - set(second) == {"base_model.model.score.weight"}


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path) -> None:
    class StopError(Exception):
        """Stands for a kill after the first checkpoint."""

    def stop(event: Event) -> None:
        if isinstance(event, Saved) and event.what == "checkpoint":
            raise StopError

    recipe = _recipe(tmp_path, "llama", CHATS, "sft", method="lora")
    whole = train(recipe, emit=silent, root=tmp_path / "whole")
    with pytest.raises(StopError):
        train(recipe, emit=stop, root=tmp_path / "runs")
    (path,) = (tmp_path / "runs").iterdir()
    again = resume(RunFolder(path), emit=silent)
    for name in again.tasks:
        files = [run.path / name / "model" / "adapter_model.safetensors" for run in (whole, again)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_task_is_registered_and_a_run_without_a_task_is_refused(tmp_path) -> None:
    run, _ = _train(tmp_path, "llama", CHATS, "sft")
    home = Home.open(str(tmp_path / "home"))
    for use in (
        load_trained,
        lambda path: evaluate(str(path), home=home),
        lambda path: register(home, path, emit=silent),
    ):
        with pytest.raises(UserError, match="this run holds 2 tasks: kinds, second") as caught:
            use(run.path)
        assert caught.value.code == "which_task" and str(run.path / "kinds") in caught.value.remedy
    version = register(home, run.path / "second", emit=silent)
    assert version.reference == "second:1"


def _refused(folder: Path, *args, **settings) -> UserError:
    with pytest.raises(UserError) as caught:
        _train(folder, *args, **settings)
    assert not (folder / "runs").exists()
    return caught.value


def test_what_cannot_be_trained_together_is_refused_before_anything_is_written(tmp_path) -> None:
    assert _refused(tmp_path, "llama", CHATS, "sft", method="feature_extraction").code == "method_refused"
    recipe = _recipe(tmp_path, "llama", CHATS, "sft")
    sources = recipe.model_dump(mode="json")["data"]["source"]
    data = {"source": [sources[0], {**sources[1], "objective": "auto"}]}
    assert _refused(tmp_path, "llama", CHATS, "sft", data=data).code == "no_objective"
    data = {"source": [sources[0], {**sources[1], "name": "model"}]}
    assert _refused(tmp_path, "llama", CHATS, "sft", data=data).code == "bad_name"
    data = {"source": sources, "test": str(tmp_path / "kinds.jsonl")}
    assert _refused(tmp_path, "llama", CHATS, "sft", data=data).code == "several_tasks"


def test_sources_that_share_a_head_are_scored_one_by_one_too(tmp_path) -> None:
    recipe = _recipe(tmp_path, "bert", MOODS, "classification")
    names = ("kinds", "second")
    (tmp_path / "second.jsonl").write_text(
        "".join(json.dumps({"text": f"number {n}", "label": f"k{n % 3}"}) + "\n" for n in range(30))
    )
    data = {
        "source": [{"path": str(tmp_path / f"{name}.jsonl")} for name in names],
        "mixing": "equal",
        "split": {"validation": 0.2, "test": 0.2},
    }
    events: list[Event] = []
    run = train(override_recipe(recipe, data=data), emit=events.append, root=tmp_path / "runs")
    report = run.read_json("report.json")
    outcomes = report["after"]["outcomes"]
    for name in names:
        mine = [one for one in outcomes if name in one["origin"]]
        accuracy = next(one for one in report["sources"][name] if one["metric"] == "accuracy")
        assert accuracy["num_rows"] == len(mine) > 0
        assert accuracy["value"] == pytest.approx(sum(one["answer"] == one["reference"] for one in mine) / len(mine))
    assert load_trained(run.path).labels == ("k0", "k1", "k2")
    copies = run.read_json("data.json")["copies"]
    rows = dict.fromkeys(names, 0)
    for example in load_data(read_recipe(run.recipe).data, seed=1).train:
        rows[example.source_name] += 1
    assert rows["kinds"] * copies["kinds"] == pytest.approx(rows["second"] * copies["second"])
    assert isinstance(events[-1], Finished)
    assert {"kinds: accuracy", "second: accuracy"} <= {row[0] for row in events[-1].table}
