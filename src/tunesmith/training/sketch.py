"""A learner whose model has shapes and no weights: what a plan is told from, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from tunesmith.core.errors import UserError
from tunesmith.kernels.fuse import fuse
from tunesmith.kernels.fused_lora import fuse_lora_layers
from tunesmith.kernels.gated_mlp import fuse_gated_mlps
from tunesmith.kernels.packed_attention import BEHIND_VIRTUAL_TOKENS, NAME, has_virtual_tokens
from tunesmith.kernels.rms_norm import fuse_rms_norms
from tunesmith.methods.base import Method
from tunesmith.models.configuration import LABELLED, NUMBER, check_task, set_labels
from tunesmith.models.fresh import seeded
from tunesmith.models.logprobs import Likelihood
from tunesmith.models.opened import auto_class
from tunesmith.models.probe import probe
from tunesmith.models.quantize import Quantize, check_quantize
from tunesmith.models.quiet import quiet
from tunesmith.objectives.base import Objective
from tunesmith.training.learner import NOT_WRITING, PACKING_IS_OFF, Learner, layout_of

MOST_BUILT = 300_000_000
"""Parameters up to which random weights are really made for a method that begins from the weights themselves."""


def sketch(  # noqa: PLR0913 - everything that decides what a learner costs
    config: Any,
    tokenizer: Any,
    *,
    name: str,
    method: Method,
    objective: Objective,
    labels: Sequence[str],
    precision: Literal["bf16", "fp32"],
    packing: Literal["auto", "on", "off"] = "auto",
    quantize: Quantize = "none",
    is_cuda: bool = False,
    is_real: bool = False,
) -> Learner:
    """The learner that a training of this configuration would have, with the method attached.

    Its model is on torch's meta device; with `is_real` it has random weights.

    Raises:
        UserError: The task, the method or the base's bits do not go together, as the training would say it.
    """
    task = objective.task
    method.check_task(task)
    check_quantize(quantize, method, trains_base_weights=method.trains_base_weights, needs_library=False)
    check_task(config, task, name)
    method.check_model(config, task)
    if task in LABELLED:
        names = (NUMBER,) if objective.problem == "regression" else tuple(labels)
        set_labels(config, names, tokenizer, objective.problem, task)
    dtype = torch.bfloat16 if precision == "bf16" and not method.trains_base_weights else torch.float32
    model = _attached(config, method, task, dtype, name, is_real=is_real)
    method.set_training(model)
    if quantize == "none":
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), seeded(1):
            if is_real:
                fuse(model, lambda: probe(model))
            else:  # the rest is proven with values, and saves little
                fuse_gated_mlps(model)
                fuse_rms_norms(model)
                fuse_lora_layers(model)
    reason = _why_padded(model, objective, packing)
    if not is_cuda and (not reason or _has_own_attention(model)):
        model.config._attn_implementation = NAME
    layout = layout_of(tokenizer, config, is_packed=not reason)
    likelihood = None if task in LABELLED else _Told(model, is_causal=task == "causal")
    cpu = torch.device("cpu")
    return Learner(model, method, objective, layout, cpu, precision, likelihood, padded_because=reason)


class _Told(Likelihood):
    """The likelihood of a model without weights, whose logits cannot be compared: its head is believed."""

    def _is_head_last(self) -> bool:
        return True


def _attached(config: Any, method: Method, task: Any, dtype: torch.dtype, name: str, *, is_real: bool) -> Any:
    with quiet(), torch.device("meta"):
        model = auto_class(task).from_config(config, dtype=dtype)
        model.name_or_path = name
    number = sum(parameter.numel() for parameter in model.parameters())
    try:
        if not is_real:
            return method.attach(model)
    except (NotImplementedError, RuntimeError) as fault:
        if number > MOST_BUILT:
            raise UserError(
                f"{method.name} begins from the weights themselves, which are not read for a plan.",
                code="needs_weights",
                where=name,
                remedy="Plan another start of the method, or another method of its size.",
            ) from fault
    with quiet(), seeded(1):
        model = auto_class(task).from_config(config, dtype=dtype)
        model.name_or_path = name
    return method.attach(model)


def _why_padded(model: nn.Module, objective: Objective, packing: str) -> str:
    """As the learner would say it; whether the architecture takes borders is told by transformers here, not tried."""
    if objective.task != "causal":
        return NOT_WRITING
    if packing == "off":
        return PACKING_IS_OFF
    if has_virtual_tokens(model):
        return BEHIND_VIRTUAL_TOKENS
    return "" if _has_own_attention(model) else "the model's attention takes no borders between examples"


def _has_own_attention(model: Any) -> bool:
    """Whether the model's attention can be replaced at all."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(getattr(whole, "_supports_attention_backend", False))
