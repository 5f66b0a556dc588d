"""Adapters that peft alone has trained open in Tunesmith, answer as with peft, and are held to every key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tunesmith.core.errors import UserError
from tunesmith.core.events import silent
from tunesmith.models.load import load_base, load_trained
from tunesmith.models.sample import Sampling, generate
from tunesmith.models.sharing import SharedBases
from tunesmith.models.tiny import tiny, write_tiny
from tunesmith.recipe import ModelSettings
from tunesmith.steps.evaluate import evaluate

IDS = torch.tensor([[20, 21, 22, 23, 24], [30, 31, 32, 33, 34]])
CONFIGS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "IA3Config": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LoHaConfig": {"r": 4, "target_modules": ["q_proj"]},
    "LoKrConfig": {"r": 4, "target_modules": ["q_proj"]},
    "VeraConfig": {"r": 4, "target_modules": ["q_proj"]},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "PromptTuningConfig": {"num_virtual_tokens": 4},
    "PrefixTuningConfig": {"num_virtual_tokens": 4},
    "PromptEncoderConfig": {"num_virtual_tokens": 4},
}


def trained(base: Path, folder: Path, name: str, task: str = "causal") -> Path:
    """Three steps of training with nothing but peft and torch."""
    torch.manual_seed(1)
    auto, kind = (
        ("AutoModelForCausalLM", "CAUSAL_LM") if task == "causal" else ("AutoModelForSequenceClassification", "SEQ_CLS")
    )
    import transformers

    labels = IDS if task == "causal" else torch.tensor([0, 1])
    model = getattr(transformers, auto).from_pretrained(base)
    adapted: Any = get_peft_model(model, getattr(peft, name)(task_type=kind, **CONFIGS[name]))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=labels).loss.backward()
        optimizer.step()
    adapted.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_it_opens_and_answers_as_with_peft(name: str, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    folder = trained(base, tmp_path / "adapter", name)
    alone: Any = PeftModel.from_pretrained(tiny("llama")[0], str(folder))
    loaded = load_trained(folder, precision="fp32")
    assert torch.allclose(logits(loaded.model), logits(alone), atol=1e-5)
    assert not torch.allclose(logits(loaded.model)[:, -5:], logits(tiny("llama")[0]), atol=1e-3)
    shared = SharedBases().load(folder)
    (answer,) = generate(shared.model, shared.tokenizer, [[20, 21, 22]], Sampling(max_new_tokens=4))
    assert len(answer.token_ids) <= 4


@pytest.mark.parametrize("name", CONFIGS)
def test_a_key_too_few_or_too_many_is_an_error(name: str, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    file = trained(base, tmp_path / "adapter", name) / "adapter_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    for changed in ({k: v for k, v in weights.items() if k != first}, {**weights, f"{first}.more": torch.zeros(2)}):
        save_file(changed, file)
        with pytest.raises(UserError) as caught:
            load_trained(tmp_path / "adapter", precision="fp32")
        assert caught.value.code == "bad_adapter"


def test_it_is_evaluated_and_trained_on(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    folder = trained(base, tmp_path / "adapter", "LoraConfig")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"the light is on, {n} times"}) + "\n" for n in range(4)))
    scores = evaluate(str(folder), data=str(rows), metrics=["perplexity"], emit=silent).scores
    assert scores[0].value > 1
    merged = load_base(ModelSettings(name=str(folder)), "causal", trains_base_weights=True, precision="fp32", seed=1)
    assert torch.allclose(logits(merged.model), logits(load_trained(folder, precision="fp32").model), atol=1e-5)


def test_a_classifier_of_peft_keeps_its_head(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama", "classify")
    folder = trained(base, tmp_path / "adapter", "LoraConfig", "classify")
    alone: Any = PeftModel.from_pretrained(tiny("llama", "classify")[0], str(folder))
    loaded = load_trained(folder, precision="fp32")
    assert loaded.labels == ("no", "yes", "maybe")
    assert torch.allclose(logits(loaded.model), logits(alone), atol=1e-5)
