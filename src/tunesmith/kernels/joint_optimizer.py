"""Several optimisers as one, each over tensors of its own: Muon beside AdamW, 8 bits beside 32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer


class JointOptimizer(Optimizer):
    """One list of groups and one state, shared with the parts; tensors of a loaded state keep their types."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = tuple(parts)
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Each part's step."""
        assert closure is None, "gradients are there already"
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Take a state back as it was; torch's own method would turn bytes into the weights' type."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.state.clear()
        for number, entry in state_dict["state"].items():
            where = parameters[number]
            self.state[where] = {key: value.to(where.device, copy=True) for key, value in entry.items()}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
