"""LoRA's variants: each against PEFT or its paper's formula, and through the whole life of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.kernels.fused_lora import fuse_lora_layers
from tunesmith.methods.lora import LoRA
from tunesmith.models.pissa import principal_part
from tunesmith.models.tiny import tiny, tiny_config, tiny_tokenizer
from tunesmith.recipe import TrainSettings
from tunesmith.training.optim import make_optimizer, set_learning_rate

VARIANTS = ("rslora", "dora", "pissa", "lora_plus")
ARCHITECTURES = ("bert", "gpt2", "llama", "mixtral", "t5")
IDS = torch.tensor([[20, 21, 22, 23, 1], [30, 31, 32, 33, 1]])
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = IDS
    found: Tensor = model.eval()(**given).logits.clone()
    return found


def variant(name: str, **settings: Any) -> LoRA:
    method: LoRA = build("methods", {"name": "lora", "variant": name, "rank": 4, **settings})
    return method


def disturb(model: Any, seed: int = 5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_lives_through_everything(name: str, architecture: str, tmp_path: Path) -> None:
    from peft import PeftModel

    method = variant(name, targets="attention")
    base = logits(tiny(architecture)[0])
    attached: Any = method.attach(tiny(architecture)[0])
    assert torch.allclose(logits(attached), base, atol=1e-5)
    trained = logits(disturb(attached))
    assert not torch.allclose(trained, base, atol=1e-3)
    with method.disabled(attached):
        assert torch.equal(logits(attached), base)
    assert torch.equal(logits(attached), trained)
    method.save(attached, tmp_path / "a")
    loaded: Any = method.load(tiny(architecture)[0], tmp_path / "a")
    found = dict(loaded.named_parameters())
    for key, parameter in attached.named_parameters():
        assert torch.equal(parameter, found[key]), key
        assert parameter.requires_grad == found[key].requires_grad, key
    assert torch.equal(logits(loaded), trained)
    alone: Any = PeftModel.from_pretrained(tiny(architecture)[0], str(tmp_path / "a"))
    assert torch.allclose(logits(alone), trained, atol=1e-5)
    with alone.disable_adapter():
        assert torch.equal(logits(alone), base)
    merged = method.merge(attached)
    assert type(merged) is type(tiny(architecture)[0])
    assert (logits(merged) - trained).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["rslora", "dora"])
def test_pefts_own_variant_gives_the_same(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    peft_settings: Any = {"use_rslora": name == "rslora", "use_dora": name == "dora"}
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], **peft_settings)
    theirs = get_peft_model(tiny("llama")[0], config)
    mine = variant(name, targets=["q_proj", "down_proj"]).attach(tiny("llama")[0])
    mine.load_state_dict(theirs.state_dict())
    assert torch.equal(logits(disturb(mine)), logits(disturb(theirs)))


def test_rslora_scales_by_alpha_over_the_root_of_the_rank() -> None:
    layer: Any = variant("rslora", alpha=12.0).attach(tiny("llama")[0]).get_submodule(LAYER)
    assert layer.scaling["default"] == pytest.approx(12 / 4**0.5)


def test_dora_is_a_magnitude_times_a_direction() -> None:
    attached: Any = disturb(variant("dora").attach(tiny("llama")[0]))
    layer = attached.get_submodule(LAYER)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    whole = layer.base_layer.weight + layer.scaling["default"] * b @ a
    x = torch.randn(3, 32)
    wanted = x @ (magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_doras_magnitude_begins_as_the_norm_of_each_outputs_weights() -> None:
    layer: Any = variant("dora").attach(tiny("llama")[0]).get_submodule(LAYER)
    found = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(found, layer.base_layer.weight.norm(dim=1))


def test_lora_plus_steps_b_sixteen_times_as_far() -> None:
    method = variant("lora_plus")
    attached: Any = method.attach(tiny("llama")[0])
    tensors = {name: p for name, p in attached.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(tensors, TrainSettings(weight_decay=0.0), method.learning_rate_factor)
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in tensors.items():
        assert rates[id(parameter)] == pytest.approx(16e-3 if "lora_B" in name else 1e-3), name
    assert variant("lora_plus", plus_ratio=4).learning_rate_factor("x.lora_B.default.weight") == 4
    assert variant("lora").learning_rate_factor("x.lora_B.default.weight") == 1


def test_lora_plus_has_the_groups_of_pefts_optimizer() -> None:
    from peft.optimizers import create_loraplus_optimizer

    method = variant("lora_plus")
    attached: Any = method.attach(tiny("llama")[0])
    theirs = create_loraplus_optimizer(attached, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    wanted = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    for name, parameter in attached.named_parameters():
        if parameter.requires_grad:
            assert 1e-3 * method.learning_rate_factor(name) == pytest.approx(wanted[id(parameter)]), name


def test_the_ratio_is_refused_where_it_has_no_effect() -> None:
    with pytest.raises(UserError, match=r"`method\.plus_ratio` has no effect on `variant: dora`"):
        variant("dora", plus_ratio=4)


def test_the_principal_part_and_the_residual_are_the_matrix() -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    a, b = principal_part(weight, 3, 2.0)
    values = torch.linalg.svdvals(weight)
    residual = weight - 2 * b @ a
    torch.testing.assert_close(torch.linalg.svdvals(residual)[:5], values[3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.linalg.svdvals(2 * b @ a)[:3], values[:3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))  # both get the root of each singular value


def test_pissa_starts_and_answers_as_pefts() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj"], init_lora_weights="pissa")
    theirs: Any = get_peft_model(tiny("llama")[0], config)
    mine: Any = variant("pissa", targets=["q_proj"]).attach(tiny("llama")[0])
    one, other = theirs.get_submodule(LAYER), mine.get_submodule(LAYER)
    for part in ("lora_A", "lora_B"):
        torch.testing.assert_close(getattr(one, part)["default"].weight, getattr(other, part)["default"].weight)
    untouched = tiny("llama")[0].get_submodule(LAYER.removeprefix("base_model.model."))
    assert torch.equal(other.base_layer.weight, untouched.weight)
    a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
    torch.testing.assert_close(one.base_layer.weight + 8 * b @ a, untouched.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits(disturb(mine)), logits(disturb(theirs)), rtol=1e-3, atol=1e-4)


def test_dropout_leaves_pissas_frozen_start_alone() -> None:
    """What is dropped is a share of A's inputs: of its outputs, B A x - B0 A0 x keeps the second term whole."""
    attached: Any = variant("pissa", dropout=0.5).attach(tiny("llama")[0])
    layer = attached.get_submodule(LAYER)
    assert [type(layer.lora_dropout[name]).__name__ for name in ("default", "initial")] == ["Dropout", "Identity"]
    x = torch.randn(4, 32)
    torch.manual_seed(3)
    dropped = layer.lora_dropout["default"].train()(x)
    torch.manual_seed(3)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = layer.base_layer(x) + layer.scaling["default"] * (dropped - x) @ a.T @ b.T
    torch.testing.assert_close(layer.train()(x), wanted, rtol=1e-4, atol=1e-5)


def test_only_one_pissa_adapter_trains_and_a_wrong_rank_is_refused(tmp_path: Path) -> None:
    method = variant("pissa", ranks={"q_proj": 2})
    attached: Any = method.attach(tiny("llama")[0])
    assert {name.split(".")[-2] for name, p in attached.named_parameters() if p.requires_grad} == {"default"}
    method.save(attached, tmp_path)
    with pytest.raises(UserError, match="a PiSSA of rank 3 is saved with rank 6"):
        variant("pissa", rank=3).load(tiny("llama")[0], tmp_path)
    with pytest.raises(UserError, match=r"needs 40 singular values, and model\.layers\.0\.self_attn\.q_proj has 32"):
        variant("pissa", rank=40).attach(tiny("llama")[0])


@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_fused_layers_give_the_outputs_and_gradients_of_pefts(name: str) -> None:
    found = []
    for is_fused in (False, True):
        torch.manual_seed(0)
        model: Any = disturb(variant(name).attach(tiny("llama")[0]))
        if is_fused:
            assert fuse_lora_layers(model) == 7 * model.config.num_hidden_layers
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)


def test_layers_of_the_others_keep_pefts_forward() -> None:
    assert fuse_lora_layers(variant("dora").attach(tiny("llama")[0])) == 0
    assert fuse_lora_layers(variant("pissa", dropout=0.1).attach(tiny("llama")[0])) == 0


@pytest.mark.parametrize("name", ["lora", "dora", "pissa"])
def test_ranks_by_layer_keep_the_scaling(name: str, tmp_path: Path) -> None:
    method = variant(name, ranks={"q_proj": 2, r"layers\.1\.mlp\..*": 8})
    attached: Any = method.attach(tiny("llama")[0])
    layers = {name: m for name, m in attached.named_modules() if hasattr(m, "lora_A")}
    for key, layer in layers.items():
        rank = 2 if key.endswith("q_proj") else 8 if "layers.1.mlp" in key else 4
        assert layer.lora_A["default"].weight.shape[0] == rank, key
        assert layer.scaling["default"] == pytest.approx(32 / 4), key
    method.save(disturb(attached), tmp_path)
    assert torch.equal(logits(method.load(tiny("llama")[0], tmp_path)), logits(attached))


def test_rslora_scales_each_rank_by_its_root() -> None:
    attached: Any = variant("rslora", ranks={"q_proj": 16}).attach(tiny("llama")[0])
    assert attached.get_submodule(LAYER).scaling["default"] == pytest.approx(32 / 4)
    assert attached.get_submodule(LAYER.replace("q_", "k_")).scaling["default"] == pytest.approx(32 / 2)


def test_a_rank_for_no_matrix_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        variant("lora", ranks={"q_prj": 2}).attach(tiny("llama")[0])
    assert caught.value.message == 'the model has no adapted matrix "q_prj" (method.ranks);'
    assert 'did you mean "q_proj"' in caught.value.remedy
    with pytest.raises(UserError, match="is no regular expression"):
        variant("lora", ranks={"q_[": 2}).attach(tiny("llama")[0])


@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_modules_named_in_trained_train_whole_and_are_saved(name: str, tmp_path: Path) -> None:
    untied = {"tie_word_embeddings": False}
    method = variant(name, targets="attention", trained=["model.norm", "lm_head"])
    attached: Any = method.attach(tiny("llama", **untied)[0].bfloat16())
    whole = {n: p for n, p in attached.named_parameters() if p.requires_grad and "lora_" not in n}
    assert sorted(whole) == [
        "base_model.model.lm_head.modules_to_save.default.weight",
        "base_model.model.model.norm.modules_to_save.default.weight",
    ]
    assert {p.dtype for p in whole.values()} == {torch.float32}
    attached = method.attach(tiny("llama", **untied)[0])
    method.save(disturb(attached), tmp_path)
    assert torch.equal(logits(method.load(tiny("llama", **untied)[0], tmp_path)), logits(attached))
    base = logits(tiny("llama", **untied)[0])
    with method.disabled(attached):
        assert torch.equal(logits(attached), base)


def test_a_tied_table_is_not_trained_alone_and_an_unknown_module_is_named() -> None:
    model = tiny("llama", tie_word_embeddings=True)[0]
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(UserError, match="shares between its first and its last layer"):
            variant("lora", trained=[name]).attach(model)
    with pytest.raises(UserError, match='the model has no module "nrm"'):
        variant("lora", trained=["nrm"]).attach(model)


def test_a_matrix_that_trains_whole_has_no_update() -> None:
    attached: Any = variant("lora", trained=["layers.2"]).attach(tiny("llama")[0])
    assert not any("layers.2" in name for name, module in attached.named_modules() if hasattr(module, "lora_A"))


@pytest.mark.parametrize("name", ["lora", *VARIANTS])
def test_training_lowers_the_loss(name: str) -> None:
    from tunesmith.models.fresh import random_model

    torch.manual_seed(1)
    method = variant(name)
    model: Any = method.attach(random_model(tiny_config("llama"), tiny_tokenizer("causal"), "causal", seed=1))
    tensors = {key: p for key, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(tensors, TrainSettings(), method.learning_rate_factor)
    set_learning_rate(optimizer, 2e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_summaries_name_the_variant() -> None:
    assert [variant(name).summary() for name in VARIANTS] == [
        "rsLoRA, rank 4",
        "DoRA, rank 4",
        "PiSSA, rank 4",
        "LoRA+, rank 4",
    ]
    assert LoRA(trained=("norm",)).summary() == "LoRA, rank 16, norm whole"
