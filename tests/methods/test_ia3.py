"""(IA)^3: where its vectors stand in each architecture, and that they scale what the paper scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.methods.ia3 import IA3
from tunesmith.models.anatomy import blocks, encoder_blocks, num_parameters
from tunesmith.models.tiny import ARCHITECTURES, tiny
from tunesmith.recipe import TrainSettings
from tunesmith.training.optim import make_optimizer

IDS = torch.tensor([[20, 21, 22, 23, 1], [30, 31, 32, 33, 1]])
HIDDEN = ("output.dense", "lin2", "mlp.Wo", "mlp.c_proj", "dense_4h_to_h", "down_proj", "fc2", "DenseReluDense.wo")
KEYS = ("key", "k_lin", "k_proj", "self_attn.k_proj", "SelfAttention.k", "EncDecAttention.k")
FUSED = ("attn.Wqkv", "attn.c_attn", "query_key_value")
DENSE = [name for name in ARCHITECTURES if name != "mixtral"]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = IDS
    found: torch.Tensor = model.eval()(**given).logits.clone()
    return found


def vectors(model: Any) -> dict[str, Any]:
    return {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if hasattr(m, "ia3_l")}


@pytest.mark.parametrize("architecture", DENSE)
def test_each_architecture_has_its_three_vectors(architecture: str) -> None:
    model, _ = tiny(architecture)
    num_blocks, num_encoder = len(blocks(model)), len(encoder_blocks(model))
    num_attentions = num_encoder + num_blocks * (2 if num_encoder else 1)
    found = vectors(IA3().attach(model))
    hidden = [name for name, layer in found.items() if layer.is_feedforward]
    fused = [name for name in found if name.endswith(FUSED)]
    keys = [name for name in found if name.endswith(KEYS)]
    values = set(found) - {*hidden, *fused, *keys}
    assert len(hidden) == num_encoder + num_blocks
    assert all(name.endswith(HIDDEN) and "attention.output" not in name for name in hidden)
    assert (len(fused), len(keys), len(values)) in {(num_attentions, 0, 0), (0, num_attentions, num_attentions)}
    assert all(name.rpartition(".")[2][0] == "v" for name in values)


@pytest.mark.parametrize("architecture", DENSE)
def test_it_starts_as_the_base_merges_exactly_and_opens_again(architecture: str, tmp_path: Path) -> None:
    base = logits(tiny(architecture)[0])
    attached: Any = IA3().attach(tiny(architecture)[0])
    assert torch.equal(logits(attached), base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    trained = logits(attached)
    assert not torch.allclose(trained, base, atol=1e-4)
    with IA3().disabled(attached):
        assert torch.equal(logits(attached), base)
    IA3().save(attached, tmp_path)
    assert torch.equal(logits(IA3().load(tiny(architecture)[0], tmp_path)), trained)
    assert (logits(IA3().merge(attached)) - trained).abs().max() < 1e-5


def test_the_vectors_scale_keys_values_and_hidden_units() -> None:
    attached: Any = IA3().attach(tiny("llama")[0])
    block = attached.base_model.model.model.layers[0]
    keys, hidden = block.self_attn.k_proj, block.mlp.down_proj
    with torch.no_grad():
        for layer in (keys, hidden):
            layer.ia3_l["default"].uniform_(0.5, 1.5)
        x, h = torch.randn(3, 32), torch.randn(3, 64)
        torch.testing.assert_close(keys(x), keys.base_layer(x) * keys.ia3_l["default"].flatten())
        torch.testing.assert_close(hidden(h), hidden.base_layer(h * hidden.ia3_l["default"].flatten()))


def test_llama_has_exactly_these_parameters() -> None:
    trainable, _ = num_parameters(IA3().attach(tiny("llama")[0]))
    assert trainable == 3 * (16 + 16 + 64)  # three blocks; 2 of 4 heads' keys and values of 8, 64 hidden units


def test_a_mixture_of_experts_is_refused_before_its_weights_and_its_attention_can_be_scaled() -> None:
    model, _ = tiny("mixtral")
    for refuse in (lambda: IA3().check_model(model.config, "causal"), lambda: IA3().attach(model)):
        with pytest.raises(UserError, match="experts of a mixture") as caught:
            refuse()
        assert caught.value.code == "method_refused"
        assert caught.value.remedy == "Set method.parts: [keys, values], or use `method: lora`."
    method = IA3(parts=("keys", "values"))
    method.check_model(model.config, "causal")
    assert {name.rpartition(".")[2] for name in vectors(method.attach(model))} == {"k_proj", "v_proj"}


def test_keys_alone_are_refused_where_one_matrix_makes_keys_and_values() -> None:
    model, _ = tiny("gpt2")
    with pytest.raises(UserError, match="queries, keys and values at once") as caught:
        IA3(parts=("keys", "mlp")).check_model(model.config, "causal")
    assert caught.value.remedy.startswith("Set method.parts: [keys, values, mlp]")
    assert vectors(IA3(parts=("keys",)).attach(tiny("llama")[0]))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="nothing would train"):
        IA3(parts=())


def test_weight_decay_leaves_the_factors_alone() -> None:
    attached: Any = IA3().attach(tiny("bert")[0])
    tensors = {name: p for name, p in attached.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(tensors, TrainSettings(weight_decay=0.1), decays=IA3().decays)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in tensors.items():
        is_matrix = "ia3_l" not in name and parameter.ndim == 2
        assert decays[id(parameter)] == (0.1 if is_matrix else 0.0), name


def test_the_summary_names_the_parts() -> None:
    assert IA3().summary() == "(IA)^3"
    assert IA3(parts=("mlp",)).summary() == "(IA)^3, mlp"
