"""Every objective of encoders, and labels in every way, from rows to scores through the steps a user takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning, silent
from tunesmith.core.home import Home
from tunesmith.core.plugins import build
from tunesmith.core.run import RunFolder
from tunesmith.models.load import load_trained
from tunesmith.models.parity import replay
from tunesmith.models.predict import LocalPredictor
from tunesmith.models.tiny import write_tiny
from tunesmith.objectives.base import Task
from tunesmith.recipe import make_recipe
from tunesmith.steps.compare import compare
from tunesmith.steps.evaluate import evaluate
from tunesmith.steps.train import train

TRAIN = {"steps": 6, "tokens_per_step": 128, "micro_tokens": 128, "validations": 2, "lr": 1e-2}
KINDS = ("red", "green", "blue")
PAIRS = [
    {"premise": f"the light {n} is on", "hypothesis": f"it is {'on' if n % 2 else 'off'}", "label": f"l{n % 2}"}
    for n in range(24)
]
SETS = [{"text": f"lamp {n}", "labels": [k for i, k in enumerate(KINDS) if n >> i & 1]} for n in range(24)]
NUMBERS = [{"sentence1": f"row {n}", "sentence2": "b " * (n % 4), "score": n % 4 + 0.5} for n in range(1, 24) if n % 4]
TAGGED = [{"tokens": ["Ann", "sees", "Paris", str(n)], "ner_tags": ["B-PER", "O", "B-LOC", "I-LOC"]} for n in range(24)]
TEXTS = [{"text": f"once upon a time there were {n} of them and no more"} for n in range(24)]
CASES: dict[str, tuple[list[dict[str, Any]], Task, str, set[str]]] = {
    "pairs": (PAIRS, "classify", "classification", {"accuracy", "f1"}),
    "sets": (SETS, "classify", "multi_label", {"f1:average=micro", "f1", "accuracy"}),
    "numbers": (NUMBERS, "classify", "regression", {"mean_absolute_error", "pearson", "spearman"}),
    "tags": (TAGGED, "tag", "token_classification", {"entity_f1", "tag_accuracy"}),
    "texts": (TEXTS, "mask", "mlm", {"perplexity"}),
}


def trained(
    folder: Path, architecture: str, task: Task, rows: list[dict[str, Any]], **settings: Any
) -> tuple[RunFolder, list[Event]]:
    write_tiny(folder / "base", architecture, task)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"source": str(file), "split": {"validation": 0.2, "test": 0.2}, **settings.pop("data", {})}
    values = {
        "name": "small",
        "model": {"name": str(folder / "base"), "precision": "fp32"},
        "data": data,
        "train": TRAIN,
        "generate": {"max_new_tokens": 8},
    }
    events: list[Event] = []
    return train(make_recipe({**values, **settings}), emit=events.append, root=folder / "runs"), events


def refused(*arguments: Any, **settings: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        trained(*arguments, **settings)
    assert not (arguments[0] / "runs").exists()
    return caught.value


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("case", CASES)
def test_an_encoder_trains_scores_and_answers_again_from_its_folder(case: str, method: str, tmp_path: Path) -> None:
    rows, task, objective, metrics = CASES[case]
    chosen = {"objective": "mlm"} if task == "mask" else {}
    run, _ = trained(tmp_path, "bert", task, rows, method=method, **chosen)
    report = run.read_json("report.json")
    assert {score["metric"] for score in report["after"]["scores"]} == metrics
    card = json.loads((run.model / "tunesmith.json").read_text(encoding="utf-8"))
    assert (card["task"], card["objective"]) == (task, objective)
    loaded = load_trained(run.model)
    assert replay(loaded, json.loads((run.model / "probes.json").read_text(encoding="utf-8"))).is_equal
    again = evaluate(str(run.path), home=Home.open(tmp_path))
    after = {score["metric"]: score["value"] for score in report["after"]["scores"]}
    assert {score.metric: score.value for score in again.scores} == pytest.approx(after, abs=1e-4)


def test_the_loss_curve_names_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr("tunesmith.steps.train.loss_curve", lambda records, path, *, title: titles.append(title))
    trained(tmp_path, "bert", "classify", NUMBERS, method="full")
    assert titles == ["Loss, mean squared error"]


def test_tags_and_sets_are_learnt(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "full", "train": {**TRAIN, "steps": 60, "patience": 0}}
    run, _ = trained(tmp_path / "tags", "bert", "tag", TAGGED, **settings)
    scores = {one["metric"]: one["value"] for one in run.read_json("report.json")["after"]["scores"]}
    assert scores["entity_f1"] == scores["tag_accuracy"] == 1
    (outcome, *_) = run.read_json("report.json")["after"]["outcomes"]
    assert outcome["answer"] == "B-PER O B-LOC I-LOC"
    sets = [{"text": " ".join(row["labels"]) + f" {n}", "labels": row["labels"]} for n, row in enumerate(SETS)]
    many = {**TRAIN, "steps": 100, "patience": 0}
    run, _ = trained(tmp_path / "sets", "bert", "classify", sets, **{**settings, "train": many})
    report = run.read_json("report.json")
    before, after = ({s["metric"]: s["value"] for s in report[side]["scores"]} for side in ("before", "after"))
    assert after["f1:average=micro"] > before["f1:average=micro"] + 0.1


@pytest.mark.parametrize("case", ["sets", "numbers", "tags"])
def test_rows_are_compared_over_the_same_rows(case: str, tmp_path: Path) -> None:
    rows, task, _, metrics = CASES[case]
    write_tiny(tmp_path / "base", "bert", task)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = make_recipe(
        {
            "name": "small",
            "model": {"name": str(tmp_path / "base"), "precision": "fp32"},
            "data": {"source": str(tmp_path / "rows.jsonl"), "split": {"validation": 0.2, "test": 0.2}},
            "train": {**TRAIN, "steps": 2},
            "compare": {"rows": [{"method": "full"}, {"method": "lora"}]},
        }
    )
    found = compare(recipe, emit=silent, out=tmp_path / "out").to_dict()
    assert len(found["rows"]) == 2
    for row in found["rows"]:
        assert set(row["scores"]) == metrics


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_decoder_classifies_with_a_head(architecture: str, tmp_path: Path) -> None:
    run, _ = trained(tmp_path, architecture, "causal", PAIRS, method="lora")
    loaded = load_trained(run.model)
    assert (loaded.task, loaded.labels) == ("classify", ("l0", "l1"))
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("architecture", "task", "objective"), [("llama", "causal", "sft"), ("t5", "seq2seq", "seq2seq")]
)
def test_a_label_can_be_written_as_an_answer(architecture: str, task: Task, objective: str, tmp_path: Path) -> None:
    rows = [{"text": f"lamp {n}", "label": "on"} for n in range(20)] + [{"text": "x", "label": "off"}]
    form = {"name": "classification", "as_chat": True, "instruction": "On or off?"}
    many = {**TRAIN, "steps": 80, "patience": 0}
    run, _ = trained(
        tmp_path,
        architecture,
        task,
        rows,
        method="full",
        objective=objective,
        train=many,
        data={"format": form},
        evaluate=["exact_match"],
    )
    report = run.read_json("report.json")["after"]
    answers = [(one["answer"], one["reference"]) for one in report["outcomes"]]
    assert {reference for _, reference in answers} <= {"on", "off"}
    share = sum(answer == reference for answer, reference in answers) / len(answers)
    assert report["scores"][0]["value"] == pytest.approx(share)
    assert share > 0.5


def test_labels_are_refused_by_sft_with_the_way_to_write_them(tmp_path: Path) -> None:
    fault = refused(tmp_path, "llama", "causal", PAIRS, objective="sft")
    assert fault.code == "objective_unfit"
    assert "objective=classification" in fault.remedy and "as_chat: true" in fault.remedy


@pytest.mark.parametrize(
    ("architecture", "task", "rows", "objective", "message"),
    [
        ("llama", "causal", TEXTS, "mlm", "the task needs an encoder, and this model (llama) is a decoder."),
        ("t5", "seq2seq", TEXTS, "mlm", "the task needs an encoder, and this model (t5) is an encoder-decoder."),
        ("bert", "mask", TEXTS, "clm", "the task needs a decoder, and this model (bert) is an encoder."),
        ("bart", "seq2seq", TAGGED, "auto", "transformers has no classifier of words for bart."),
        ("llama", "causal", TAGGED, "sft", "the objective sft needs chat rows, and these were read as tags."),
        ("llama", "causal", SETS, "classification", "the objective classification needs label rows"),
        ("bert", "classify", NUMBERS, "multi_label", "the objective multi_label needs multi label rows"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    architecture: str, task: Task, rows: list[dict[str, Any]], objective: str, message: str, tmp_path: Path
) -> None:
    assert refused(tmp_path, architecture, task, rows, objective=objective, method="full").message.startswith(message)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "base", "bert", "mask")
    config = tmp_path / "base" / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    del values["mask_token"]
    config.write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXTS), encoding="utf-8")
    recipe = make_recipe(
        {"name": "x", "model": str(tmp_path / "base"), "data": str_source(tmp_path), "objective": "mlm"}
    )
    with pytest.raises(UserError, match="no token that hides a word") as caught:
        train(recipe, emit=silent, root=tmp_path / "runs")
    assert caught.value.code == "no_mask_token"


def str_source(folder: Path) -> dict[str, str]:
    return {"source": str(folder / "rows.jsonl")}


def test_an_encoder_without_a_head_for_words_gets_a_new_one_and_says_so(tmp_path: Path) -> None:
    run, events = trained(tmp_path / "a", "bert", "classify", TEXTS, objective="mlm", method="full")
    assert [event.code for event in events if isinstance(event, Warning)] == ["new_head"]
    assert load_trained(run.model).task == "mask"
    fault = refused(tmp_path / "b", "bert", "classify", TEXTS, objective="mlm", method="lora")
    assert fault.code == "untrained_head"


def test_an_encoder_that_went_on_learning_its_texts_becomes_a_classifier(tmp_path: Path) -> None:
    base, _ = trained(tmp_path, "bert", "mask", TEXTS, objective="mlm", method="full")
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    recipe = make_recipe(
        {
            "name": "next",
            "model": {"name": str(base.path), "precision": "fp32"},
            "data": {"source": str(rows)},
            "method": "feature_extraction",
            "train": TRAIN,
        }
    )
    run = train(recipe, emit=silent, root=tmp_path / "runs")
    tuned, before = load_trained(run.model, precision="fp32"), load_trained(base.model, precision="fp32")
    assert tuned.task == "classify"
    ours, theirs = tuned.model.state_dict(), before.model.state_dict()
    key = "bert.encoder.layer.1.output.dense.weight"
    assert ours[key].equal(theirs[key])


def test_hidden_words_are_scored_the_same_every_time(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "bert", "mask")
    predictor = LocalPredictor(load_trained(folder, precision="fp32"))
    rows = [build("formats", "text").read(row, None) for row in TEXTS[:5]]
    first, second = (predictor.likelihood(rows, lambda done, of: None) for _ in range(2))
    assert first == second
    assert all(outcome.num_scored_tokens > 0 for outcome in first)
