"""A number is learnt in units of its spread and answered, saved and opened in the data's own unit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from made_training import make_rows
from tunesmith.core.plugins import build
from tunesmith.methods.base import Method
from tunesmith.models.load import Loaded, load_trained
from tunesmith.models.number_head import NumberHead, learn_in_unit, number_heads, spread_of
from tunesmith.models.tiny import tiny
from tunesmith.objectives.base import Objective
from tunesmith.training.learner import Learner

ARCHITECTURES = ("bert", "roberta", "distilbert", "modernbert", "llama", "gpt2", "bart", "t5")
IDS = torch.tensor([[20, 21, 22, 1]])


def number_model(architecture: str) -> Any:
    return tiny(architecture, "classify", problem="regression")[0]


@torch.no_grad()
def answer(model: Any) -> float:
    logits: torch.Tensor = model(input_ids=IDS).logits
    assert logits.dtype == torch.float32
    return logits.item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_unit_changes_what_is_learnt_and_not_what_is_answered(architecture: str, tmp_path: Path) -> None:
    model = number_model(architecture)
    (head,) = number_heads(model)
    before, weight = answer(model), head.weight.detach().clone()
    learn_in_unit(model, 1000.0, 50.0, is_new=False)
    assert answer(model) == pytest.approx(before, abs=1e-3)
    assert torch.allclose(head.weight * 50, weight)
    assert answer(copy.deepcopy(model)) == answer(model)
    model.save_pretrained(tmp_path)
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert answer(alone) == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_head_begins_at_the_mean(architecture: str) -> None:
    model = number_model(architecture)
    rows = [IDS[0].tolist(), [20, 23, 24, 25, 1]]
    learn_in_unit(model, 1000.0, 50.0, is_new=True, rows=rows)
    answers = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert sum(answers) / 2 == pytest.approx(1000, abs=2 * 50)


@pytest.mark.parametrize("method", ["full", "lora", "bottleneck", "feature_extraction", "prompt_tuning"])
def test_any_unit_is_learnt_as_the_standard_one_and_saved_in_its_own(method: str, tmp_path: Path) -> None:
    """y and 1000 + 50 y take the same steps; the gradients are those of mean 0 and spread 1."""
    answers = []
    for scale, shift in ((1.0, 0.0), (50.0, 1000.0)):
        objective: Objective = build("objectives", "regression")
        built: Method = build("methods", method)
        model, tokenizer = tiny("bert", "classify", problem="regression")
        rows = make_rows(objective, tokenizer).features
        values = [feature.value * scale + shift for feature in rows]
        rows = tuple(type(one)(**{**_fields(one), "value": value}) for one, value in zip(rows, values, strict=True))
        unit = objective.unit(rows)
        assert unit is not None
        learn_in_unit(model, *unit, is_new=True)
        loaded = Loaded(model, tokenizer, "classify", ("number",), "tiny")
        torch.manual_seed(0)
        learner = Learner.make(
            loaded, built.attach(model), method=built, objective=objective, precision="fp32", packing="auto"
        )
        assert spread_of(learner.model) == pytest.approx(unit[1])
        optimizer = torch.optim.AdamW(learner.trainable().values(), lr=1e-2)
        learner.model.eval()
        for _ in range(8):
            optimizer.zero_grad()
            batch = learner.batch(rows)
            loss, _ = learner.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            names = ("input_ids", "attention_mask", "token_type_ids")
            given = {name: batch.tensors[name] for name in names if name in batch.tensors}
            found = learner.model(**given).logits[:, 0]
        wanted = ((found - torch.tensor(values)) ** 2).sum()
        assert learner.loss(batch)[0].item() == pytest.approx(wanted.item(), rel=1e-4)  # in the data's unit
        answers.append((found - shift) / scale)
        built.save(learner.model, tmp_path / method / f"{scale}")
        saved = built.load(tiny("bert", "classify", problem="regression")[0], tmp_path / method / f"{scale}").eval()
        assert all((head.mean, head.spread) == (0.0, 1.0) for head in number_heads(saved) if head.weight.requires_grad)
        with torch.no_grad():
            assert torch.allclose(saved(**given).logits[:, 0], found, rtol=1e-5)
    assert torch.allclose(answers[0], answers[1], atol=2e-3)


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in type(one).__dataclass_fields__}


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_numbers_keep_their_digits_in_bf16(architecture: str, tmp_path: Path) -> None:
    model, tokenizer = tiny(architecture, "classify", problem="regression")
    learn_in_unit(model, 1003.2, 2.0, is_new=True, rows=[IDS[0].tolist()])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    exact, rounded = (load_trained(tmp_path, precision=precision).model for precision in ("fp32", "bf16"))
    (kept,), (whole,) = number_heads(rounded), number_heads(exact)
    assert torch.equal(kept.weight, whole.weight)
    assert rounded.dtype == torch.bfloat16
    off = 0.05 if kept.bias is not None else 8.0  # without a bias the mean is a product with a rounded state
    assert answer(rounded) == pytest.approx(answer(exact), abs=off)
    with torch.autocast("cpu", torch.bfloat16):
        assert answer(exact) == pytest.approx(answer(rounded), abs=off)


def test_a_classifier_keeps_a_plain_head() -> None:
    assert not number_heads(tiny("bert", "classify")[0])
    assert isinstance(number_heads(number_model("bert"))[0], NumberHead)
