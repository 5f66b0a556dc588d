"""A new head learns faster than what begins trained; one that was trained does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tunesmith.core.plugins import build
from tunesmith.models.anatomy import head_modules
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import tiny
from tunesmith.training.learner import Learner
from tunesmith.training.mixture import Mixture


def factors(method: str, architecture: str, *, has_new_head: bool) -> tuple[set[float], set[float]]:
    """The factors of the head's learning rates and of the others'."""
    built: Any = build("methods", method)
    model, tokenizer = tiny(architecture, "classify")
    loaded = replace(Loaded(model, tokenizer, "classify", ("no", "yes", "maybe"), "tiny"), has_new_head=has_new_head)
    torch.manual_seed(0)
    objective: Any = build("objectives", "classification")
    settings: Any = {"method": built, "objective": objective, "precision": "fp32", "packing": "auto"}
    learner = Learner.make(loaded, built.attach(model), head_factor=10.0, **settings)
    head = {id(weight) for part in head_modules(learner.model).values() for weight in part.parameters()}
    found = Mixture().trainable(learner).values()
    of_head = {factor for weight, factor in found if id(weight) in head}
    return of_head, {factor for weight, factor in found if id(weight) not in head}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("method", ["full", "last_k", "lora", "bottleneck"])
def test_only_a_new_head_learns_faster(method: str, architecture: str) -> None:
    assert factors(method, architecture, has_new_head=True) == ({10.0}, {1.0})
    assert factors(method, architecture, has_new_head=False) == ({1.0}, {1.0})


def test_a_classifier_with_new_weights_in_fp32_is_made_on_a_base_in_bf16() -> None:
    built: Any = build("methods", "lora")
    model, tokenizer = tiny("bert", "classify")
    loaded = Loaded(model.to(torch.bfloat16), tokenizer, "classify", ("no", "yes", "maybe"), "tiny")
    objective: Any = build("objectives", "classification")
    settings: Any = {"method": built, "objective": objective, "precision": "bf16", "packing": "auto"}
    learner = Learner.make(loaded, built.attach(model), **settings)
    assert {weight.dtype for weight in learner.trainable().values()} == {torch.float32}
