"""Going on from a tuned run with any method and objective, and merging it into a plain folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import UserError
from tunesmith.core.events import Event, Warning, silent
from tunesmith.core.publish import verify
from tunesmith.core.run import RunFolder
from tunesmith.models.load import load_trained
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import make_recipe
from tunesmith.steps.merge import merge
from tunesmith.steps.train import train

LORA = {"name": "lora", "rank": 4}
BOTTLENECK = {"name": "bottleneck", "style": "pfeiffer", "reduction": 4}
ROWS: dict[str, list[dict[str, Any]]] = {
    "clm": [{"text": f"once upon a time there were {n} of them"} for n in range(12)],
    "sft": [{"question": f"What is {n}?", "answer": f"It is {n % 3}."} for n in range(12)],
    "classification": [{"text": f"row {n} is {'good' if n % 2 else 'bad'}", "label": "yn"[n % 2]} for n in range(12)],
    "others": [{"text": f"row {n}", "label": ("red", "green", "blue")[n % 3]} for n in range(12)],
    "mlm": [{"text": f"once upon a time there were {n} of them"} for n in range(12)],
}


class Place:
    """A tiny base, and trainings from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, RunFolder] = {}

    def base(self, architecture: str, task: Any) -> str:
        path = self.folder / f"base-{architecture}-{task}"
        return str(path if path.is_dir() else write_tiny(path, architecture, task))

    def train(self, model: str | RunFolder, objective: str, method: Any, **settings: Any) -> RunFolder:
        rows = self.folder / f"{objective}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[objective]), encoding="utf-8")
        recipe = make_recipe(
            {
                "name": "small",
                "model": {"name": str(model.path if isinstance(model, RunFolder) else model), "precision": "fp32"},
                "data": {"source": str(rows), "split": {"validation": 0.2}},
                "method": method,
                "objective": "classification" if objective == "others" else objective,
                "train": {"steps": 2, "tokens_per_step": 128, "validations": 1, "lr": 1e-2},
                "generate": {"max_new_tokens": 4},
                **settings,
            }
        )
        return train(recipe, emit=silent, root=self.folder / "runs")

    def trained(self, objective: str, method: Any) -> RunFolder:
        """A training from the base that fits the objective, made once for all tests."""
        key = json.dumps([objective, method])
        if key not in self.runs:
            base = self.base("llama", "causal") if objective in ("clm", "sft") else self.base("bert", "mask")
            self.runs[key] = self.train(base, objective, method)
        return self.runs[key]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("continue"))


@pytest.fixture(scope="module")
def tuned(place: Place) -> RunFolder:
    """A LoRA run on a decoder."""
    return place.trained("clm", LORA)


@pytest.fixture(scope="module")
def bottleneck(place: Place) -> RunFolder:
    return place.trained("clm", BOTTLENECK)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=torch.tensor([[20, 21, 22, 23, 24]])).logits
    return found[:, -5:]  # virtual tokens have positions of their own before these


@torch.no_grad()
def states(model: Any) -> torch.Tensor:
    """What the last block gives."""
    found: torch.Tensor = model.eval().base_model(torch.tensor([[20, 21, 22]]), output_hidden_states=True).hidden_states
    return found[-1]


def card(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.model / "tunesmith.json").read_text())
    return found


@pytest.mark.parametrize("method", [LORA, BOTTLENECK, {"name": "prompt_tuning", "num_tokens": 4}])
def test_the_very_adapter_goes_on_with_the_same_method(place: Place, method: dict[str, Any]) -> None:
    base = place.base("llama", "causal")
    first = place.trained("clm", method)
    second = place.train(first, "sft", method, train={"steps": 1, "lr": 1e-9, "warmup": 0.0, "weight_decay": 0.0})
    assert card(second)["base"] == card(first)["base"]
    assert card(second)["parent"]["name"] == str(first.path)
    before, after = load_trained(first.path).model, load_trained(second.path).model
    assert torch.allclose(logits(before), logits(after), atol=1e-5)
    assert not torch.allclose(logits(after), logits(load_trained(base, precision="fp32").model), atol=1e-4)


def test_training_on_begins_where_the_run_ended(place: Place, tuned: RunFolder) -> None:
    again = place.train(tuned, "clm", LORA)
    ended = {score["metric"]: score["value"] for score in tuned.read_json("report.json")["after"]["scores"]}
    begun = {score["metric"]: score["value"] for score in again.read_json("report.json")["before"]["scores"]}
    assert begun == pytest.approx(ended, rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        ("clm", {"name": "lora", "rank": 8}),
        ("sft", BOTTLENECK),
        ("sft", "full"),
        ("classification", LORA),
        ("classification", "feature_extraction"),
    ],
)
def test_a_lora_run_is_a_base_for_every_method_and_objective(
    place: Place, tuned: RunFolder, objective: str, method: Any
) -> None:
    run = place.train(tuned, objective, method)
    assert card(run)["base"]["name"] == str(tuned.path)
    loaded = load_trained(run.path)
    assert loaded.task == ("classify" if objective == "classification" else "causal")
    assert torch.isfinite(logits(loaded.model)).all()


def test_an_adapter_over_an_adapter_run_finds_its_bases(place: Place, tuned: RunFolder) -> None:
    over = place.train(tuned, "sft", {"name": "lora", "rank": 8}, train={"steps": 1, "lr": 1e-9})
    assert torch.allclose(logits(load_trained(over.path).model), logits(load_trained(tuned.path).model), atol=1e-5)
    third = place.train(over, "sft", "full", train={"steps": 1, "lr": 1e-9})
    assert torch.allclose(logits(load_trained(third.path).model), logits(load_trained(tuned.path).model), atol=1e-5)


def test_a_classifier_goes_on_with_other_labels_and_with_the_same(place: Place) -> None:
    first = place.trained("classification", LORA)
    same = place.train(first, "classification", LORA)
    assert card(same)["base"] == card(first)["base"]
    others = place.train(first, "others", LORA)
    assert card(others)["base"]["name"] == str(first.path)
    assert load_trained(others.path).labels == ("blue", "green", "red")
    mixed = place.train(first, "classification", "full")
    assert load_trained(mixed.path).labels == ("n", "y")


@pytest.mark.parametrize("method", [LORA, "full"])
def test_hidden_words_then_classes(place: Place, method: Any) -> None:
    first = place.trained("mlm", method)
    second = place.train(first, "classification", method, train={"steps": 1, "lr": 1e-9, "weight_decay": 0.0})
    tuned, before = load_trained(second.path).model, load_trained(first.path).model
    assert tuned.config.num_labels == 2
    assert torch.allclose(states(tuned), states(before), atol=1e-5), "the classifier reads what the texts taught"
    base = load_trained(place.base("bert", "mask"), precision="fp32").model
    assert not torch.allclose(states(before), states(base), atol=1e-4)


@pytest.mark.parametrize(
    ("objective", "method"), [("sft", LORA), ("sft", {**BOTTLENECK, "reduction": 8}), ("classification", BOTTLENECK)]
)
def test_what_cannot_be_merged_is_refused_before_weights_are_read(
    place: Place, bottleneck: RunFolder, objective: str, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: Any, **settings: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("tunesmith.models.opened.Opened.model", read)
    with pytest.raises(UserError) as caught:
        place.train(bottleneck, objective, method)
    assert caught.value.code == "cannot_merge"
    assert "non-linear" in caught.value.message
    assert caught.value.remedy.startswith("Train on with the very same method")


def test_merged_is_plain_transformers_with_the_same_outputs(tuned: RunFolder, tmp_path: Path) -> None:
    events: list[Event] = []
    merged = merge(tuned.path, tmp_path / "merged", emit=events.append)
    assert merged.difference <= 1e-5
    assert merged.probes == "equal"
    assert not [event for event in events if isinstance(event, Warning)]
    verify(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(plain) - logits(load_trained(tuned.path).model)).abs().max() <= 1e-5
    assert load_trained(tmp_path / "merged").card["merged"]["method"]["name"] == "lora"


def test_merged_in_bf16_says_how_far_it_is_off(tuned: RunFolder, tmp_path: Path) -> None:
    merged = merge(tuned.path, tmp_path / "merged", precision="bf16", emit=silent)
    loaded = load_trained(tmp_path / "merged")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert 1e-5 < merged.difference < 0.05
    assert f"{merged.difference:.1e}" in merged.sentence


def test_a_merged_run_is_trained_on_like_any_model(place: Place, tuned: RunFolder, tmp_path: Path) -> None:
    merge(tuned.path, tmp_path / "merged", emit=silent)
    run = place.train(str(tmp_path / "merged"), "sft", BOTTLENECK)
    assert card(run)["base"]["name"] == str(tmp_path / "merged")
    assert load_trained(run.path).task == "causal"


def test_a_classifier_is_merged_with_its_head(place: Place, tmp_path: Path) -> None:
    run = place.trained("classification", LORA)
    assert merge(run.path, tmp_path / "merged", emit=silent).difference <= 1e-5
    assert load_trained(tmp_path / "merged").labels == ("n", "y")


def test_what_is_not_merged_says_why(place: Place, tuned: RunFolder, bottleneck: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="non-linear function") as caught:
        merge(bottleneck.path, tmp_path / "one", emit=silent)
    assert caught.value.code == "cannot_merge"
    with pytest.raises(UserError, match="plain already"):
        merge(place.base("llama", "causal"), tmp_path / "one", emit=silent)
    with pytest.raises(UserError, match="no folder of this name"):
        merge("nothere", tmp_path / "one", emit=silent)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="the folder exists"):
        merge(tuned.path, tmp_path / "taken", emit=silent)
    assert not (tmp_path / "one").exists()


def test_a_run_that_went_on_tells_when_its_base_changed(place: Place, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(place.base("llama", "causal"), base)
    first = place.train(str(base), "clm", LORA)
    shutil.rmtree(base)
    write_tiny(base, "llama", "causal", seed=2)
    with pytest.raises(UserError) as caught:
        place.train(first, "clm", LORA)
    assert caught.value.code == "wrong_base"
