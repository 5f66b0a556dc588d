"""What a training takes in memory, part by part, from shapes alone.

Weights, gradients and the optimiser's state are exact counts. Activations are traced (trace.py). A process on a
processor has more: Python, torch and transformers themselves, and the room that the allocator loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tunesmith.models.anatomy import blocks, encoder_blocks, linears, plain
from tunesmith.models.quantize import Quantize
from tunesmith.recipe import TrainSettings
from tunesmith.training.learner import Learner
from tunesmith.training.optim import optimizer_bytes
from tunesmith.training.trace import Trace

BITS_4, BITS_8 = (4 + 8 / 64 + 32 / (64 * 256)) / 8, 1.0
"""Bytes a weight in NF4 with doubly quantised scales (arXiv:2305.14314, section 3), and in LLM.int8()."""
SLACK = 1.04
"""By how much tensors that stay take more room on a processor than they hold."""
GAPS = 1.4
"""The same for what comes and goes in a step: gradients, activations and workspace. oneDNN keeps some eighty small
pieces for each of its last products; they come to lie among these tensors, and what is freed around them no longer
fits the next shape (docs/log.md: 1.45 to 1.68 in four trainings, walked; less since PyTorch keeps 32)."""


@dataclass(frozen=True)
class Sizes:
    """Exact counts of a model with its method attached, in parameters and bytes."""

    trainable: int
    total: int
    weight_bytes: int
    trained_bytes: int
    """Those of the weights that train; their gradients are as large."""
    optimizer_bytes: int

    @staticmethod
    def of(learner: Learner, settings: TrainSettings, quantize: Quantize = "none") -> Sizes:
        """The sizes of a learner, whose weights may be on torch's meta device."""
        model = learner.model
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        hidden = {
            id(one) for block in (*encoder_blocks(model), *blocks(model)) for one in block.parameters() if one.ndim >= 2
        }
        weights = sum(one.numel() * one.element_size() for one in model.parameters())
        return Sizes(
            trainable=sum(one.numel() for one in trained.values()),
            total=sum(one.numel() for one in model.parameters()),
            weight_bytes=weights - _saved_by_quantizing(model, quantize),
            trained_bytes=sum(one.numel() * one.element_size() for one in trained.values()),
            optimizer_bytes=optimizer_bytes(trained, settings, lambda one: id(one) in hidden),
        )


@dataclass(frozen=True)
class Memory:
    """What is held at the peak of a training, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass."""
    workspace: int
    """What comes and goes beside it: chunks of logits, gradients of activations, copies of weights in bf16."""
    states: int
    """Output of frozen blocks kept in memory."""
    process: int
    """Python, torch, transformers and the run's other possessions; on a GPU what CUDA takes."""
    snapshot: int
    """The copy that a checkpoint is written from, where training goes on beside it."""
    saving: int
    """The whole peak while the last checkpoint is written, when activations are gone."""
    publishing: int
    """The whole peak after training, when the model that was written is loaded beside the one that trained."""
    files: int
    """Pages of the files that are read then; they count as resident, but the system takes them back at need."""

    @property
    def training_bytes(self) -> int:
        """The peak while training."""
        tensors = self.weights + self.gradients + self.optimizer + self.activations + self.workspace + self.states
        return self.process + tensors + self.snapshot

    @property
    def peak_bytes(self) -> int:
        """What the whole run needs at its peak."""
        return max(self.training_bytes, self.saving, self.publishing)

    @property
    def resident_bytes(self) -> int:
        """The peak as the system counts it, with pages of files."""
        return max(self.peak_bytes, self.publishing + self.files)

    def parts(self) -> dict[str, int]:
        """The parts that add up to the peak while training, by name."""
        names = ("weights", "gradients", "optimizer", "activations", "workspace", "states", "snapshot", "process")
        return {name: getattr(self, name) for name in names}


def memory_of(  # noqa: PLR0913 - everything that decides what a run holds
    sizes: Sizes,
    trace: Trace,
    *,
    accumulates: bool,
    recomputed: int = 0,
    states_bytes: int = 0,
    snapshot_bytes: int = 0,
    has_early_snapshot: bool = True,
    file_bytes: int = 0,
    process_bytes: int = 0,
    answer_bytes: int = 0,
    slack: float = SLACK,
    gaps: float = GAPS,
) -> Memory:
    """The memory of a run whose largest micro-batch is traced.

    `accumulates` says whether a step has several micro-batches, so that gradients are there beside activations;
    otherwise they come as activations go. `recomputed` blocks, from the first, keep their input alone.
    `has_early_snapshot` says whether a checkpoint is written before the last step, whose copy then stays.
    `answer_bytes` are those of the weights in the type in which the finished model answers.
    """
    whole = trace.whole
    kept = whole.kept_bytes - saved_by_recomputing(trace, recomputed)
    again = max((kind.each.kept_bytes for kind in trace.kinds), default=0.0) if recomputed else 0.0
    transient = whole.transient_bytes + again
    turning = (sizes.trained_bytes if accumulates else 0, kept, transient)  # the backward pass begins
    bottom = (sizes.trained_bytes, 0.0, whole.below_bytes)  # it ends, in the table of embeddings
    gradients, activations, workspace = max(turning, bottom, key=sum)
    resting = process_bytes + sizes.weight_bytes * slack
    saving = resting + (sizes.trained_bytes + sizes.optimizer_bytes + snapshot_bytes) * slack
    return Memory(
        weights=round(sizes.weight_bytes * slack),
        gradients=round(gradients * gaps),
        optimizer=round(sizes.optimizer_bytes * slack),
        activations=round(activations * gaps),
        workspace=round(workspace * gaps),
        states=states_bytes,
        process=process_bytes,
        snapshot=round(snapshot_bytes * slack) if has_early_snapshot else 0,
        saving=round(saving),
        publishing=round(resting + answer_bytes * slack),
        files=file_bytes,
    )


def saved_by_recomputing(trace: Trace, number: int) -> float:
    """What is not kept when so many blocks, from the first that trains, are computed again in the backward pass."""
    saved, left = 0.0, number
    depth = sum(kind.number for kind in trace.kinds) or 1
    entering = trace.whole.block_input_bytes / depth
    for kind in trace.kinds:
        if not kind.each.kept_bytes:
            continue
        many = min(left, kind.number)
        saved += many * max(0.0, kind.each.kept_bytes - entering)
        left -= many
    return saved


def _saved_by_quantizing(model: nn.Module, quantize: Quantize) -> int:
    if quantize == "none":
        return 0
    rate = BITS_4 if quantize == "4bit" else BITS_8
    whole: Any = plain(model)
    names = [name for name in linears(model) if "lora" not in name and "ia3" not in name]
    matrices = [whole.get_submodule(name).weight for name in names]
    frozen = [one for one in matrices if not one.requires_grad]
    return int(sum(one.numel() * (one.element_size() - rate) for one in frozen))
