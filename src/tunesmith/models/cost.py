"""What a method costs on a model: parameters, optimiser memory and disk, told without reading any weights.

A small model is built with random weights; a large one on torch's meta device, where no weight takes memory (a method
that computes its start from the weights, as PiSSA does, is then not told).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import Module

from tunesmith.core.errors import UserError
from tunesmith.core.quantities import gib, millions
from tunesmith.methods.base import Method
from tunesmith.models.anatomy import hidden_matrices, num_parameters
from tunesmith.models.configuration import check_task, family, set_labels
from tunesmith.models.fresh import seeded
from tunesmith.models.opened import Opened, auto_class
from tunesmith.models.quiet import quiet
from tunesmith.models.source import resolve
from tunesmith.objectives.base import Task
from tunesmith.optimizers.base import Optimizer, Trained
from tunesmith.recipe import ModelSettings

BYTES_OF_MOMENTS = 8
"""AdamW keeps two fp32 moments of each trained weight. Trained weights are fp32 themselves: there is no master copy."""
MOST_BUILT = 300_000_000
"""Parameters up to which random weights are really made."""
_USUAL: dict[str, Task] = {"encoder": "classify", "decoder": "causal", "encoder-decoder": "seq2seq"}


@dataclass(frozen=True)
class Cost:
    """Sizes of one method on one model."""

    trainable: int
    total: int
    optimizer_bytes: int
    """What the optimiser remembers."""
    disk_bytes: int
    """The weights that answering needs: PEFT's adapter file, or the whole model in fp32."""

    @property
    def share(self) -> float:
        return self.trainable / self.total

    def line(self) -> str:
        """`294,912 trainable (4.8 %) · optimiser 2.3 MiB · on disk 1.2 MiB`."""
        return (
            f"{millions(self.trainable)} trainable ({100 * self.share:.3g} %) · "
            f"optimiser {gib(self.optimizer_bytes)} · on disk {gib(self.disk_bytes)}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def cost_of(model: Module, method: Method, optimizer: Optimizer | None = None) -> Cost:
    """The cost of a method that is attached to a model; with AdamW where no optimiser is named."""
    trainable, total = num_parameters(model)
    saved = _adapter_bytes(model) if method.is_adapter else 4 * total
    if optimizer is None:
        return Cost(trainable, total, BYTES_OF_MOMENTS * trainable, saved)
    hidden = hidden_matrices(model)
    trained = [Trained(one, is_hidden=id(one) in hidden) for one in model.parameters() if one.requires_grad]
    return Cost(trainable, total, optimizer.state_bytes(trained), saved)


def method_cost(method: Method, settings: ModelSettings, task: Task | None = None) -> Cost:
    """The cost of a method on a model by its configuration; `task` is the model's usual one where left out.

    A classifier is taken to have two classes.

    Raises:
        UserError: No such model, or the method refuses it, with the reason.
    """
    opened = Opened(resolve(settings.name), settings.name, settings.revision, settings.trust_remote_code)
    config = opened.config()
    task = task or _USUAL[family(config)]
    method.check_task(task)
    check_task(config, task, settings.name)
    if task == "classify":
        set_labels(config, ("no", "yes"), opened.tokenizer())
    method.check_model(config, task)
    with quiet(), torch.device("meta"):
        model = auto_class(task).from_config(config)
    if num_parameters(model)[1] <= MOST_BUILT:
        with quiet(), seeded(1):
            model = auto_class(task).from_config(config)
    model.name_or_path = settings.name
    try:
        return cost_of(method.attach(model), method)
    except (NotImplementedError, RuntimeError) as fault:
        if next(model.parameters()).device.type != "meta":
            raise
        raise UserError(
            f"{method.name} begins from the weights themselves, which are not read for this.",
            code="needs_weights",
            where=settings.name,
            remedy="A run prints its cost.",
        ) from fault


def _adapter_bytes(model: Any) -> int:
    """The bytes of the tensors that are saved, those of a second adapter too (PiSSA's start)."""
    from peft import get_peft_model_state_dict

    with quiet(), torch.no_grad():
        saved = [
            get_peft_model_state_dict(model, None, name, save_embedding_layers=False) for name in model.peft_config
        ]
    return sum(tensor.numel() * tensor.element_size() for part in saved for tensor in part.values())
