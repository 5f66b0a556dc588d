"""What a micro-batch keeps for its backward pass, told from shapes alone, is what a real one keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.made_training import make_features
from torch.profiler import ProfilerActivity, profile

from tunesmith.core.plugins import build
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import tiny
from tunesmith.objectives.base import Features
from tunesmith.training.learner import Learner
from tunesmith.training.trace import Trace, trace

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
CASES: list[tuple[str, str, Any, str, dict[str, Any]]] = [
    ("llama", "sft", "lora", "bf16", WIDE),
    ("llama", "sft", "prompt_tuning", "bf16", WIDE),
    ("mistral", "sft", {"name": "lora", "dropout": 0.1}, "fp32", WIDE),
    ("qwen2", "clm", "full", "bf16", WIDE),
    ("gemma", "sft", {"name": "last_k", "k": 2}, "fp32", WIDE | {"head_dim": 32}),
    ("gpt2", "sft", "full", "fp32", {"n_embd": 128, "n_layer": 4}),
    ("bert", "classification", "full", "bf16", WIDE),
    ("bert", "mlm", "full", "fp32", WIDE),
    ("roberta", "token_classification", "lora", "fp32", WIDE),
    ("distilbert", "classification", "bottleneck", "bf16", {"dim": 128, "hidden_dim": 256, "n_layers": 4}),
    ("t5", "seq2seq", "full", "bf16", {"d_model": 128, "d_ff": 256, "num_layers": 3, "num_decoder_layers": 3}),
    ("bart", "seq2seq", "lora", "fp32", {"d_model": 128, "encoder_layers": 3, "decoder_layers": 3}),
]


@pytest.mark.parametrize(("architecture", "objective", "method", "precision", "sizes"), CASES, ids=str)
def test_the_bytes_kept_are_those_of_a_real_forward_pass(
    architecture: str, objective: str, method: Any, precision: Any, sizes: dict[str, Any]
) -> None:
    learner = learner_of(architecture, objective, method, precision, sizes)
    kept = bytes_kept(learner)
    told = trace(learner, rows_of(learner)).whole
    assert told.kept_bytes == pytest.approx(kept, rel=0.05)
    assert told.matrix_flops > told.forward_flops > 0
    assert told.transient_bytes > 0


def test_blocks_that_are_alike_are_counted_by_multiplication() -> None:
    few, many = (traced("llama", "sft", "lora", "bf16", WIDE | {"num_hidden_layers": depth}) for depth in (3, 7))
    assert [kind.number for kind in few.kinds] == [1, 2]  # the first one's input needs no gradient
    assert many.whole.kept_bytes - few.whole.kept_bytes == pytest.approx(4 * few.kinds[1].each.kept_bytes)
    assert many.whole.matrix_flops - few.whole.matrix_flops == pytest.approx(4 * few.kinds[1].each.matrix_flops)


def test_products_are_counted_as_the_textbook_does() -> None:
    told = traced("llama", "clm", "full", "fp32", WIDE, packing="off").whole
    model, _ = tiny("llama", "causal", **WIDE)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    tokens = 4 * 60
    assert told.matrix_flops == pytest.approx(6 * tokens * matrices, rel=0.25)  # 6 N T, and attention on top
    assert told.matrix_flops > 6 * tokens * matrices * 0.98


def test_a_trace_leaves_nothing_fake_behind() -> None:
    model, _ = tiny("llama", "causal", **WIDE)
    ids = torch.arange(2, 40)[None]
    before = model(input_ids=ids).logits
    traced("llama", "sft", "lora", "bf16", WIDE)
    assert torch.equal(model(input_ids=ids).logits, before)


def traced(*wishes: Any, **others: Any) -> Trace:
    """The trace of such a learner."""
    learner = learner_of(*wishes, **others)
    return trace(learner, rows_of(learner))


def learner_of(
    architecture: str, objective: str, method: Any, precision: Any, sizes: dict[str, Any], *, packing: Any = "auto"
) -> Learner:
    """A learner of a random model on the processor, as a training has it."""
    made, trainer = build("objectives", objective), build("methods", method)
    base, tokenizer = tiny(architecture, made.task, **sizes)
    is_small = precision == "bf16" and not trainer.trains_base_weights
    base = base.to(torch.bfloat16 if is_small else torch.float32)
    loaded = Loaded(base, tokenizer, made.task, ("no", "yes", "maybe"), "tiny")
    model = trainer.attach(base)
    learner = Learner.make(loaded, model, method=trainer, objective=made, precision=precision, packing=packing)
    trainer.set_training(model)
    return learner


def rows_of(learner: Learner) -> list[Features]:
    """Four rows of sixty tokens."""
    return make_features(learner.objective, 4, 60)


def bytes_kept(learner: Learner) -> float:
    """What is allocated in a real forward pass and not given back at its end, by torch's own account."""
    batch = learner.batch(rows_of(learner))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        loss, _ = learner.loss(batch)
    assert loss.requires_grad
    return float(sum(event.self_cpu_memory_usage for event in taken.events()))
