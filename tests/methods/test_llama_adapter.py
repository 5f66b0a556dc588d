"""LLaMA-Adapter: the paper's formula, a bf16 base, and what PEFT cannot extend."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.methods.llama_adapter import LlamaAdapter
from tunesmith.models.anatomy import blocks, num_parameters
from tunesmith.models.sample import Sampling, generate
from tunesmith.models.tiny import tiny

IDS = torch.tensor([[20, 21, 22, 23, 24]])


def trained(architecture: str = "llama", **settings: Any) -> Any:
    """A tiny model with prompts whose gates are open."""
    torch.manual_seed(2)
    attached: Any = LlamaAdapter(**settings).attach(tiny(architecture)[0]).eval()
    for module in attached.modules():
        if hasattr(module, "adaption_gate"):
            module.adaption_gate.data.fill_(0.7)
    return attached


@torch.no_grad()
def test_a_layers_attention_gets_the_gated_lookup_of_its_prompts() -> None:
    model = trained()
    attention = blocks(model)[-1].self_attn
    seen: dict[str, Any] = {}

    def keep(module: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        seen.update(inputs, output=output[0])

    attention.register_forward_hook(keep, with_kwargs=True)
    model(IDS)
    base, hidden, (cos, sin) = attention.model, seen["hidden_states"], seen["position_embeddings"]
    plain = base(**{key: value for key, value in seen.items() if key != "output"} | {"past_key_values": None})[0]
    heads, width, groups = 4, base.head_dim, 2

    def by_head(states: torch.Tensor) -> torch.Tensor:
        return states.view(states.shape[1], -1, width).transpose(0, 1)

    query = by_head(base.q_proj(hidden))
    half = width // 2
    turned = torch.cat([-query[..., half:], query[..., :half]], dim=-1)
    query = query * cos + turned * sin
    key = by_head(base.k_proj(attention.adaption_prompt)).repeat_interleave(groups, dim=0)
    value = by_head(base.v_proj(attention.adaption_prompt)).repeat_interleave(groups, dim=0)
    shares = 0.7 * (query @ key.transpose(1, 2) / math.sqrt(width)).softmax(-1)
    looked_up = (shares @ value).transpose(0, 1).reshape(1, -1, heads * width)
    assert torch.allclose(seen["output"], plain + base.o_proj(looked_up), atol=1e-5)


def test_the_upper_layers_have_prompts() -> None:
    model = trained(num_tokens=7, num_plain_layers=1)
    assert [hasattr(block.self_attn, "adaption_gate") for block in blocks(model)] == [False, True, True]  # type: ignore[arg-type]
    assert num_parameters(model)[0] == 2 * (7 * 32 + 1)


def test_prompts_stay_fp32_on_a_bf16_base_and_answer_without_autocast(tmp_path: Path) -> None:
    base, tokenizer = tiny("llama")
    method = LlamaAdapter()
    model: Any = method.attach(base.bfloat16())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.no_grad():
        plain = tiny("llama")[0].bfloat16()(IDS).logits
        assert torch.equal(model(IDS).logits, plain)
    for module in model.modules():
        if hasattr(module, "adaption_gate"):
            module.adaption_gate.data.fill_(0.123456)
    answer = generate(model, tokenizer, [[20, 21, 22]], Sampling(max_new_tokens=4))[0]
    method.save(model, tmp_path)
    again: Any = method.load(tiny("llama")[0].bfloat16(), tmp_path)
    assert generate(again, tokenizer, [[20, 21, 22]], Sampling(max_new_tokens=4))[0].token_ids == answer.token_ids
    model(IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize("architecture", ["qwen2", "gemma", "t5"])
def test_what_peft_cannot_extend_is_refused_by_its_configuration(architecture: str) -> None:
    with pytest.raises(UserError, match="PEFT can that of gpt2, llama, mistral") as caught:
        LlamaAdapter().check_model(tiny(architecture)[0].config, "causal")
    assert caught.value.code == "method_refused"


def test_classes_and_too_few_layers_are_refused() -> None:
    with pytest.raises(UserError, match="cannot train a new head"):
        LlamaAdapter().check_task("classify")
    with pytest.raises(UserError, match="the model has 3 layers"):
        LlamaAdapter(num_plain_layers=3).check_model(tiny("llama")[0].config, "causal")


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_a_batch_answers_as_each_alone(architecture: str) -> None:
    model, tokenizer = trained(architecture), tiny(architecture)[1]
    prompts = [[20, 21, 22], [30] * 9, [41]]
    together = generate(model, tokenizer, prompts, Sampling(max_new_tokens=8))
    for prompt, one in zip(prompts, together, strict=True):
        assert generate(model, tokenizer, [prompt], Sampling(max_new_tokens=8))[0].token_ids == one.token_ids


def test_merging_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="depends on the text"):
        build("methods", "llama_adapter").merge(trained())
