"""All kernels that stand in for single modules, put on a model together.

Each layer is recognised by its structure and proven on itself before it is replaced; what does not match stays as it
is. `instance_forward.plain_forwards` takes everything off again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tunesmith.kernels.fused_lora import fuse_lora_layers, fuse_shared_inputs
from tunesmith.kernels.gated_mlp import fuse_gated_mlps
from tunesmith.kernels.rms_norm import fuse_rms_norms
from tunesmith.kernels.rotary import fuse_rotary


@dataclass(frozen=True)
class Fused:
    """How many of each were replaced."""

    num_lora: int
    num_shared_inputs: int
    num_gated_mlps: int
    num_rms_norms: int
    num_rotary: int


def fuse(model: nn.Module, run: Callable[[], object]) -> Fused:
    """Put the fused forwards on `model`'s layers; `run` calls the model once, with any input.

    Gated MLPs first: within them LoRA layers are no longer called, so none of theirs is seen to share its input.
    """
    num_gated_mlps = fuse_gated_mlps(model)
    num_rms_norms = fuse_rms_norms(model)
    num_rotary = fuse_rotary(model)
    num_lora = fuse_lora_layers(model)
    num_shared = fuse_shared_inputs(model, run) if num_lora else 0
    return Fused(num_lora, num_shared, num_gated_mlps, num_rms_norms, num_rotary)
