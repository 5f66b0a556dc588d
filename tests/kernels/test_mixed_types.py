"""Fused layers take what the model's own take: adapters in fp32 or bf16 on bases of either, in and out of autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from tunesmith.kernels.fuse import fuse
from tunesmith.kernels.packed_attention import attending
from tunesmith.models.tiny import tiny

IDS = torch.arange(12).view(2, 6) + 5
ADAPTERS: dict[str, Any] = {
    "ia3": lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "lora": lambda: LoraConfig(target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False),
}


def adapted(kind: str, base: torch.dtype, adapter: torch.dtype) -> Any:
    torch.manual_seed(0)
    model: Any = get_peft_model(tiny("llama")[0].to(base), ADAPTERS[kind]()).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(adapter)
    return model


def outcome(model: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Logits, all gradients one after the other, and an answer out of the cache of keys and values."""
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    logits.float().sin().sum().backward()
    gradients = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
    answer = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)
    return logits.detach(), gradients, answer[:, -2:].flatten().tolist()


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("is_autocast", [False, True])
def test_types_values_and_gradients_stay(kind: str, base: torch.dtype, adapter: torch.dtype, is_autocast: bool) -> None:
    model = adapted(kind, base, adapter)
    is_exact = base == adapter == torch.float32 and not is_autocast
    tolerance = 1e-4 if is_exact else 5e-2
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        logits, gradients, answer = outcome(model)
        fuse(model, lambda: model(input_ids=IDS))
        for name in ("sdpa", "tunesmith"):
            with attending(model, name):
                found = outcome(model)
            assert found[0].dtype == logits.dtype
            torch.testing.assert_close(found[0], logits, rtol=tolerance, atol=tolerance)
            assert (found[1] - gradients).norm() <= tolerance * gradients.norm()
            assert not is_exact or found[2] == answer
