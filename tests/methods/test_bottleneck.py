"""Bottleneck adapters: their places in every architecture, their formulas by hand, and PEFT's handling of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.methods.bottleneck import Bottleneck
from tunesmith.models.anatomy import num_parameters
from tunesmith.models.bottleneck import BottleneckConfig, BottleneckLayer
from tunesmith.models.sample import Sampling, generate
from tunesmith.models.sublayers import sublayers
from tunesmith.models.tiny import ARCHITECTURES, tiny

STYLES = ("houlsby", "pfeiffer", "parallel")
IDS = torch.tensor([[20, 21, 22, 23, 1], [30, 31, 32, 33, 1]])


def attached(architecture: str, style: Any, **settings: Any) -> Any:
    model, _ = tiny(architecture)
    return Bottleneck(style=style, **settings).attach(model).eval()


def disturb(model: Any, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "bottleneck_" in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.1)


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    given = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    found: Tensor = model(input_ids=IDS, **given).logits
    return found.clone()


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def adapter(layer: Any, x: Tensor, style: str, name: str = "default") -> Tensor:
    activation = nn.functional.gelu if style == "houlsby" else nn.functional.relu  # as published
    down, up = layer.bottleneck_down[name], layer.bottleneck_up[name]
    hidden = activation(x @ down.weight.T + down.bias)
    out: Tensor = hidden @ up.weight.T + up.bias
    return out


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_begins_as_the_base_everywhere_and_is_switched_off_to_it(architecture: str, style: Any) -> None:
    base = outputs(tiny(architecture)[0])
    model = attached(architecture, style)
    assert torch.allclose(outputs(model), base, atol=1e-6)
    disturb(model)
    changed = outputs(model)
    assert (changed - base).abs().max() > 1e-4
    with Bottleneck(style=style).disabled(model):
        assert torch.equal(outputs(model), base)
    assert torch.equal(outputs(model), changed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_sublayer_has_its_adapter(architecture: str) -> None:
    parts = sublayers(tiny(architecture)[0])
    num_mlps = sum(part.kind == "mlp" for part in parts)
    counts = {}
    for style in STYLES:
        model = attached(architecture, style, norms="freeze")
        found = [layer for layer in layers(model) if layer.bottleneck_down]
        assert len(found) == len(layers(model))
        counts[style] = len(found)
    assert counts == {"houlsby": len(parts), "pfeiffer": num_mlps, "parallel": num_mlps}
    attentions = {"t5": 2 + 2 * 3, "bart": 2 + 2 * 3}.get(architecture, 3)
    assert (len(parts) - num_mlps, num_mlps) == (attentions, 5 if architecture in ("t5", "bart") else 3)


def test_the_parameters_are_those_of_the_paper() -> None:
    """Houlsby et al., section 2.1: 2 m d + d + m per adapter, and 2 d per norm."""
    model, _ = tiny("gpt2")
    trained = Bottleneck(reduction=4).attach(model)
    width, size = 32, 8
    num_norms = 1 + 2 * 3
    assert num_parameters(trained)[0] == 3 * 2 * (2 * size * width + width + size) + num_norms * 2 * width


def test_houlsby_is_added_to_the_output_of_the_sublayer() -> None:
    model = attached("bert", "houlsby", reduction=4)
    disturb(model)
    layer = next(layer for layer in layers(model) if isinstance(layer.base_layer, nn.Linear))
    x = torch.randn(2, 5, layer.base_layer.in_features)
    y = layer.base_layer(x)
    assert torch.allclose(layer(x), y + adapter(layer, y, "houlsby"), atol=1e-6)


def test_pfeiffer_on_a_post_norm_block_reads_behind_the_norm_and_adds_before_it() -> None:
    model = attached("bert", "pfeiffer", reduction=4)
    disturb(model)
    layer = layers(model)[0]
    norm, z = layer.base_layer, torch.randn(2, 5, 32)
    assert isinstance(norm, nn.LayerNorm)
    assert torch.allclose(layer(z), norm(z + adapter(layer, norm(z), "pfeiffer")), atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi", "mixtral", "modernbert", "t5"])
def test_pfeiffer_on_a_pre_norm_block_is_added_to_the_blocks_output(architecture: str) -> None:
    model = attached(architecture, "pfeiffer", reduction=4)
    disturb(model)
    plain, _ = tiny(architecture)
    first = sublayers(plain)[0].block
    kept: dict[str, Any] = {}
    for name, whole in (("plain", plain), ("adapted", model.get_base_model())):
        whole.get_submodule(first).register_forward_hook(
            lambda _, __, output, name=name: kept.__setitem__(
                name, (output[0] if isinstance(output, tuple) else output).detach()
            )
        )
        outputs(whole)
    added = adapter(layers(model)[0], kept["plain"], "pfeiffer")
    assert torch.allclose(kept["adapted"], kept["plain"] + added, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama", "mixtral", "t5"])
def test_parallel_reads_what_the_mlp_reads(architecture: str) -> None:
    model = attached(architecture, "parallel", reduction=4, scaling=2.5)
    disturb(model)
    part = next(part for part in sublayers(model) if part.kind == "mlp")
    layer = model.get_base_model().get_submodule(part.output)
    kept: dict[str, Tensor] = {}
    model.get_base_model().get_submodule(part.reader).register_forward_pre_hook(
        lambda _, args: kept.__setitem__("x", args[0].detach())
    )
    layer.base_layer.register_forward_hook(lambda _, __, y: kept.__setitem__("h", y.detach()))
    layer.register_forward_hook(lambda _, __, y: kept.__setitem__("sum", y.detach()))
    outputs(model)
    assert torch.allclose(kept["sum"], kept["h"] + 2.5 * adapter(layer, kept["x"], "parallel"), atol=1e-6)


def test_norms_train_as_published_and_are_given_back() -> None:
    trains = {style: [bool(layer.bottleneck_norm) for layer in layers(attached("bert", style))] for style in STYLES}
    assert sum(trains["houlsby"]) == 7
    assert not any(trains["pfeiffer"])
    assert not any(trains["parallel"])
    model = attached("bert", "pfeiffer", norms="train", reduction=4)
    base = outputs(tiny("bert")[0])
    assert torch.allclose(outputs(model), base, atol=1e-6)
    with torch.no_grad():
        for layer in layers(model):
            layer.bottleneck_norm["default"].bias.add_(1.0)
    assert not torch.allclose(outputs(model), base, atol=1e-3)
    with Bottleneck().disabled(model):
        assert torch.equal(outputs(model), base)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_saves_and_opens_it(architecture: str, style: Any, tmp_path: Path) -> None:
    model = attached(architecture, style)
    disturb(model)
    Bottleneck().save(model, tmp_path / "one")
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"
    opened: Any = PeftModel.from_pretrained(tiny(architecture)[0], str(tmp_path / "one")).eval()
    assert torch.equal(outputs(opened), outputs(model))


def test_peft_alone_can_put_it_on() -> None:
    model: Any = get_peft_model(tiny("llama")[0], BottleneckConfig(style="parallel", reduction=4, trains_norms=False))
    assert len(layers(model)) == 3
    assert model.get_model_status().peft_types == {"default": "BOTTLENECK"}


def test_adapters_of_different_styles_stand_on_one_base(tmp_path: Path) -> None:
    alone: dict[str, Tensor] = {}
    for seed, style in enumerate(STYLES):
        one = attached("bert", style)
        disturb(one, seed)
        Bottleneck().save(one, tmp_path / style)
        alone[style] = outputs(one)
    model: Any = PeftModel.from_pretrained(tiny("bert")[0], str(tmp_path / "houlsby"), adapter_name="houlsby")
    for style in ("pfeiffer", "parallel"):
        model.load_adapter(str(tmp_path / style), adapter_name=style)
    model.eval()
    for style in (*STYLES, *reversed(STYLES)):
        model.set_adapter(style)
        assert torch.equal(outputs(model), alone[style]), style
    model.delete_adapter("pfeiffer")
    model.set_adapter("parallel")
    assert torch.equal(outputs(model), alone["parallel"])
    assert torch.equal(outputs(model.unload()), outputs(tiny("bert")[0]))


@pytest.mark.parametrize("style", STYLES)
def test_it_trains_with_fp32_on_a_bf16_base_and_checkpointing_changes_no_gradient(style: Any) -> None:
    gradients = []
    for checkpoints in (False, True):
        torch.manual_seed(1)
        model: Any = Bottleneck(style=style).attach(tiny("llama")[0].bfloat16())
        disturb(model)
        if checkpoints:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=IDS, labels=IDS).loss.backward()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {p.dtype for p in named.values()} == {torch.float32}
        assert all(p.grad is not None for p in named.values())
        gradients.append({name: p.grad for name, p in named.items()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("architecture", ["llama", "t5", "mixtral"])
def test_generation_with_a_cache_is_that_without(architecture: str, style: Any) -> None:
    model, tokenizer = tiny(architecture, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model = Bottleneck(style=style).attach(model).eval()
    disturb(model)
    prompt = [20, 21, 22, 23, 30, 31]
    (found,) = generate(model, tokenizer, [prompt], Sampling(max_new_tokens=8))
    is_seq2seq = architecture == "t5"
    tokens = [0] if is_seq2seq else list(prompt)
    for token in found.token_ids:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            inputs = (
                {"input_ids": torch.tensor([prompt]), "decoder_input_ids": ids} if is_seq2seq else {"input_ids": ids}
            )
            assert model(**inputs, use_cache=False).logits[0, -1].argmax().item() == token
        tokens.append(token)


def test_a_copy_of_the_model_watches_its_own_modules() -> None:
    model = attached("bert", "parallel")
    disturb(model)
    expected = outputs(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(outputs(twin), expected)


def test_it_cannot_be_merged_and_says_why() -> None:
    model = attached("llama", "houlsby")
    with pytest.raises(UserError, match="non-linear function") as caught:
        Bottleneck().merge(model)
    assert caught.value.code == "cannot_merge"
    with pytest.raises(ValueError, match="non-linear function"):
        model.merge_and_unload()


@pytest.mark.parametrize(
    ("style", "published"), [("houlsby", (16, "gelu")), ("pfeiffer", (16, "relu")), ("parallel", (2, "relu"))]
)
def test_reduction_and_activation_are_those_of_the_styles_paper_unless_set(style: Any, published: Any) -> None:
    model = tiny("bert")[0]
    config = Bottleneck(style=style).peft_config(model)
    assert (config.reduction, config.activation) == published
    config = Bottleneck(style=style, reduction=4, activation="tanh").peft_config(model)
    assert (config.reduction, config.activation) == (4, "tanh")


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match="`scaling` belongs to `style: parallel`"):
        build("methods", {"name": "bottleneck", "style": "houlsby", "scaling": 2.0})
    with pytest.raises(UserError, match="leaves less than 1 of the model's 32 features"):
        Bottleneck(reduction=64).attach(tiny("llama")[0])


def test_a_folder_of_another_style_is_refused(tmp_path: Path) -> None:
    model = attached("bert", "pfeiffer")
    Bottleneck().save(model, tmp_path / "one")
    file = tmp_path / "one" / "adapter_config.json"
    file.write_text(file.read_text().replace('"pfeiffer"', '"parallel"'))
    with pytest.raises(UserError) as caught:
        Bottleneck().load(tiny("bert")[0], tmp_path / "one")
    assert caught.value.code == "bad_adapter"
    assert "has nothing to put on" in caught.value.message
