"""What a method is said to cost is what it costs: parameters that train, and bytes that are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.models import cost
from tunesmith.models.cost import cost_of, method_cost
from tunesmith.models.tiny import tiny, write_tiny
from tunesmith.recipe import ModelSettings

PISSA = {"name": "lora", "variant": "pissa", "rank": 4}
METHODS = ("full", "lora", PISSA, "ia3", "bottleneck", "prompt_tuning", "p_tuning", "last_k")


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_disk_and_parameters_are_those_of_a_real_training(spec: str | dict[str, Any], tmp_path: Path) -> None:
    method = build("methods", spec)
    base, _ = tiny("llama", "causal")
    model = method.attach(base)
    found = cost_of(model, method)
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.optimizer_bytes == 8 * found.trainable
    small = cost_of(model, method, build("optimizers", "adafactor")).optimizer_bytes
    assert small < 0.6 * found.optimizer_bytes
    method.save(model, tmp_path)
    file = tmp_path / ("adapter_model.safetensors" if method.is_adapter else "model.safetensors")
    with safe_open(file, "pt") as saved:
        written = sum(saved.get_tensor(key).nbytes for key in saved.keys())  # noqa: SIM118 - safetensors has no __iter__
    assert found.disk_bytes == written


@pytest.mark.parametrize(("name", "architecture"), [("lora", "llama"), ("full", "bert"), ("last_k", "t5")])
def test_a_large_model_is_costed_without_weights(
    name: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings(name=str(write_tiny(tmp_path / "model", architecture)))
    built = method_cost(build("methods", name), settings)
    monkeypatch.setattr(cost, "MOST_BUILT", 0)
    assert method_cost(build("methods", name), settings) == built


def test_a_method_that_does_not_fit_says_why(tmp_path: Path) -> None:
    settings = ModelSettings(name=str(write_tiny(tmp_path / "model", "llama")))
    with pytest.raises(UserError, match="trains biases"):
        method_cost(build("methods", "bitfit"), settings)


def test_the_line_is_what_a_run_prints() -> None:
    assert cost.Cost(294_912, 6_144_000, 2_359_296, 1_179_648).line() == (
        "294,912 trainable (4.8 %) · optimiser 2.2 MiB · on disk 1.1 MiB"
    )
