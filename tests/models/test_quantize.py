"""Bases in 4 and 8 bits: adapters train, are saved and opened on them, and merge into plain models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.kernels.fuse import fuse
from tunesmith.models.adapters import attach_adapter
from tunesmith.models.anatomy import head_modules, linears
from tunesmith.models.load import Loaded, load_base
from tunesmith.models.quantize import check_quantize, dequantized, is_quantized
from tunesmith.models.tiny import task_of, write_tiny
from tunesmith.recipe import ModelSettings

IDS = torch.tensor([[20, 21, 22, 23, 1], [30, 31, 32, 33, 1]])
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights, one scale each
KINDS = ("4bit", "8bit")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = IDS
    found: torch.Tensor = model.eval()(**given).logits.float().clone()
    return found


def base(folder: Path, kind: Any, architecture: str = "llama", method: Any = "lora", precision: Any = "fp32") -> Loaded:
    pytest.importorskip("bitsandbytes")
    if not (folder / "base").is_dir():
        write_tiny(folder / "base", architecture, **(WIDE if architecture in ("llama", "bert") else {}))
    return load_base(
        ModelSettings(name=str(folder / "base"), quantize=kind),
        task_of(architecture),
        labels=("no", "yes", "maybe") if task_of(architecture) == "classify" else (),
        trains_base_weights=False,
        precision=precision,
        seed=1,
        method=build("methods", method),
    )


def disturb(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5"])
def test_the_blocks_matrices_are_quantised_and_the_head_is_not(kind: str, architecture: str, tmp_path: Path) -> None:
    model = base(tmp_path, kind, architecture).model
    assert is_quantized(model)
    for name in linears(model):
        weight = model.get_submodule(name).weight
        if architecture == "t5" and name.endswith("wo"):
            assert weight.dtype == torch.float32  # transformers keeps T5's last matrices: they overflow otherwise
            continue
        assert weight.dtype == (torch.uint8 if kind == "4bit" else torch.int8), name
    for name, module in head_modules(model).items():
        assert all(parameter.is_floating_point() for parameter in module.parameters()), name
    output = model.get_output_embeddings()
    assert output is None or output.weight.is_floating_point()


def test_four_bits_are_normal_floats_with_doubly_quantised_scales(tmp_path: Path) -> None:
    """Each block of 64 weights is its largest magnitude times one of the 16 values of the paper's appendix E."""
    model = base(tmp_path, "4bit").model
    weight = model.model.layers[0].mlp.down_proj.weight
    assert weight.quant_state.quant_type == "nf4"
    assert weight.quant_state.nested
    values = weight.quant_state.code.tolist()
    wanted = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    assert values[:8] == pytest.approx(wanted, abs=1e-6)
    plain = dequantized(model).model.layers[0].mlp.down_proj.weight.flatten().view(-1, 64)
    shares = plain / plain.abs().amax(dim=1, keepdim=True)
    assert (shares.flatten()[:, None] - torch.tensor(values)).abs().min(dim=1).values.max() < 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5"])
def test_an_adapter_trains_is_saved_opens_and_merges(kind: str, spec: str, architecture: str, tmp_path: Path) -> None:
    method = build("methods", {"name": "lora", "variant": "dora", "rank": 4} if spec == "dora" else spec)
    if (spec, kind) == ("dora", "8bit"):
        with pytest.raises(UserError, match="PEFT loses the scales of 8-bit weights"):
            method.attach(base(tmp_path, kind, architecture).model)
        return
    quantised = logits(base(tmp_path, kind, architecture).model)
    attached: Any = method.attach(base(tmp_path, kind, architecture).model)
    assert {p.dtype for p in attached.parameters() if p.requires_grad} == {torch.float32}
    assert torch.allclose(logits(attached), quantised, atol=1e-2)
    given = {"input_ids": IDS, "labels": torch.tensor([0, 2]) if architecture == "bert" else IDS}
    disturb(attached).train()(**given).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in attached.parameters())
    trained = logits(attached)
    with method.disabled(attached):
        assert torch.equal(logits(attached), quantised)
    method.save(attached, tmp_path / "adapter")
    loaded = method.load(base(tmp_path, kind, architecture).model, tmp_path / "adapter")
    assert torch.equal(logits(loaded), trained)
    merged = method.merge(attached)
    assert not is_quantized(merged)
    assert {type(merged.get_submodule(name)).__name__ for name in linears(merged)} <= {"Linear", "Conv1D"}
    # 4 bits: the products' own values. 8 bits: the inputs are rounded too, which merging ends.
    assert (logits(merged) - trained).abs().max() < (1e-2 if kind == "4bit" else 0.1) * max(1, trained.abs().max())
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again), logits(merged))


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_bf16_lowers_the_loss(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = build("methods", "lora").attach(base(tmp_path, kind, precision="bf16").model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "ia3", "bottleneck"])
def test_in_bf16_it_answers_without_autocast_as_it_is_published(kind: str, name: str, tmp_path: Path) -> None:
    """Probes and serving use no autocast; PEFT's (IA)^3 then gave fp32 keys beside bf16 queries, and it broke."""
    method = build("methods", name)
    attached: Any = disturb(method.attach(base(tmp_path, kind, method=name, precision="bf16").model)).eval()
    fuse(attached, lambda: attached(input_ids=IDS))
    fused = attached(input_ids=IDS).logits
    assert fused.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(attached(input_ids=IDS).logits.float(), fused.float(), atol=0.1)
    method.save(attached, tmp_path / "adapter")
    opened = method.load(base(tmp_path, kind, method=name, precision="bf16").model, tmp_path / "adapter")
    assert torch.allclose(opened(input_ids=IDS).logits.float(), fused.float(), atol=0.1)
    answered = opened.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)
    assert answered.shape == (2, IDS.shape[1] + 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_of_pefts_answers_in_bf16_without_autocast(kind: str, tmp_path: Path) -> None:
    method = build("methods", {"name": "peft", "type": "PVERA", "settings": {"r": 8}})
    attached: Any = method.attach(base(tmp_path, kind, precision="bf16", method=method.spec()).model).eval()
    assert attached(input_ids=IDS).logits.dtype == torch.bfloat16


def test_the_adapter_opens_on_the_plain_base_too(tmp_path: Path) -> None:
    method = build("methods", "lora")
    attached: Any = disturb(method.attach(base(tmp_path, "4bit").model))
    method.save(attached, tmp_path / "adapter")
    opened = attach_adapter(base(tmp_path, "none").model, tmp_path / "adapter", is_trainable=False)
    assert (logits(opened) - logits(attached)).abs().max() < 0.2


@pytest.mark.parametrize("name", ["full", "last_k", "bitfit", "feature_extraction"])
def test_only_adapters_train_on_a_quantised_base(name: str) -> None:
    method = build("methods", name)
    with pytest.raises(UserError, match=f"{name} trains or saves the base's own weights") as caught:
        check_quantize("4bit", method, trains_base_weights=method.trains_base_weights)
    assert caught.value.code == "quantized_base"
    assert "method: lora" in caught.value.remedy


def test_a_missing_library_is_said_before_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs bitsandbytes") as caught:
        check_quantize("8bit", build("methods", "lora"), trains_base_weights=False)
    assert caught.value.remedy == "Run: pip install 'tunesmith[quantized]'"
    check_quantize("none", None, trains_base_weights=True)


@pytest.mark.parametrize(
    ("kind", "spec", "reason"),
    [
        ("4bit", {"name": "lora", "variant": "pissa"}, "a quantised base no longer has them"),
        ("8bit", {"name": "lora", "variant": "dora"}, "loses the scales of 8-bit weights"),
        ("8bit", {"name": "peft", "type": "LOHA"}, "has no layers for a quantised base"),
    ],
)
def test_what_needs_the_matrices_is_refused_before_weights_load(kind: Any, spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        check_quantize(kind, build("methods", spec), trains_base_weights=False)
    assert caught.value.code == "method_refused"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"name": "lora", "variant": "pissa", "rank": 4}, "a quantised base no longer has them"),
        ({"name": "lora", "trained": ["layers.1"]}, '"layers.1" is quantised'),
        ({"name": "peft", "type": "LOHA"}, "has no layers for a quantised base"),
    ],
)
def test_what_needs_the_matrices_themselves_is_refused(spec: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        build("methods", spec).attach(base(tmp_path, "4bit").model)
    assert caught.value.code == "method_refused"
