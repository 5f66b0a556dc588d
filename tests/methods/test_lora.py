"""LoRA: which matrices it adapts in each architecture, and what its folder says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.methods.lora import LoRA
from tunesmith.models.anatomy import linears, num_parameters
from tunesmith.models.tiny import ARCHITECTURES, tiny


def adapted(model: Any) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp"])
def test_targets_mean_the_same_in_every_architecture(architecture: str, targets: Any) -> None:
    model, _ = tiny(architecture)
    wanted = set(linears(model, targets))
    if not wanted:
        with pytest.raises(UserError, match="no matrices for `targets: mlp`"):
            LoRA(targets=targets).attach(model)
        assert architecture == "mixtral"
        return
    assert adapted(LoRA(targets=targets).attach(model)) == wanted


def test_trainable_parameters_are_rank_times_both_sides() -> None:
    model, _ = tiny("llama")
    sides = sum(sum(model.get_submodule(name).weight.shape) for name in linears(model))
    assert num_parameters(LoRA(rank=4).attach(model))[0] == 4 * sides


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    model, _ = tiny("llama")
    attached: Any = LoRA(rank=4, alpha=12.0, targets=("q_proj",)).attach(model)
    layer = attached.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        x = torch.randn(2, 32)
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.allclose(layer(x) - layer.base_layer(x), 3.0 * x @ update.T, atol=1e-4)


def test_a_wrong_target_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        LoRA(targets=("q_prj",)).attach(tiny("llama")[0])
    assert caught.value.message == 'the model has no matrix "q_prj" in its blocks;'
    assert caught.value.remedy.startswith('did you mean "q_proj"')


def test_a_classifiers_head_trains_whole_and_is_saved(tmp_path: Path) -> None:
    attached: Any = LoRA().attach(tiny("bert")[0])
    trains = {name for name, parameter in attached.named_parameters() if parameter.requires_grad}
    assert any("classifier.modules_to_save" in name for name in trains)
    assert any("pooler.modules_to_save" in name for name in trains)
    LoRA().save(attached, tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert "base_model.model.classifier.weight" in file.keys()  # noqa: SIM118


def test_the_adapter_names_its_base_as_typed(tmp_path: Path) -> None:
    model, _ = tiny("llama")
    model.name_or_path = "tunesmith/base"
    LoRA().save(LoRA().attach(model), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tunesmith/base"
    assert sorted(config["target_modules"]) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def test_an_adapter_with_a_hole_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    LoRA().save(LoRA().attach(tiny("llama")[0]), tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    lost = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != lost}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the file lacks 1 of the adapter's weights"):
        LoRA().load(tiny("llama")[0], tmp_path)
    save_file({**weights, "base_model.model.x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the model has no place for 1 of the adapter's weights"):
        LoRA().load(tiny("llama")[0], tmp_path)


def test_a_truncated_adapter_is_refused(tmp_path: Path) -> None:
    LoRA().save(LoRA().attach(tiny("llama")[0]), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError) as caught:
        LoRA().load(tiny("llama")[0], tmp_path)
    assert caught.value.code == "bad_adapter"


def test_the_summary_is_short() -> None:
    assert LoRA().summary() == "LoRA, rank 16"
    assert LoRA(rank=8, targets="attention").summary() == "LoRA, rank 8, attention"
