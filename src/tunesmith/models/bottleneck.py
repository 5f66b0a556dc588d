"""Bottleneck adapters as a type of PEFT's: importing this module makes `peft_type: BOTTLENECK` known.

    import tunesmith.models.bottleneck  # then peft opens such a folder like any other
    model = PeftModel.from_pretrained(base, folder)

An adapter is f(x) = W_up act(W_down x + b_down) + b_up with W_up and b_up zero at first, so it begins as the base.
Where it reads and where it is added is its place, which follows from the style (see methods/bottleneck.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from tunesmith.models.sublayers import norms, sublayers, width

Style = Literal["houlsby", "pfeiffer", "parallel"]
Place = Literal["after", "beside", "around norm", "after block", "none"]
"""Of the module the adapter sits on: h + f(h) on its output h; h + s f(x) with the MLP's input x;
norm(z + f(norm(z))); z + f(z) on the output of the whole block; or no adapter, only a norm that trains."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
}


class OwnPeftType(str, Enum):  # noqa: UP042 - PEFT cuts str() of it at the dot, which StrEnum leaves out
    """What PEFT's own `PeftType` has no name for; equal to the text in adapter_config.json, as PEFT's are."""

    BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """adapter_config.json of bottleneck adapters. Without `target_modules` the places are found by structure."""

    style: Style = "houlsby"
    reduction: float = 16.0
    """Width of the model over that of the bottleneck."""
    activation: str = "gelu"
    dropout: float = 0.0
    scaling: float = 4.0
    """Multiplies the output of a parallel adapter; the other styles add theirs as it is."""
    trains_norms: bool = True
    target_modules: Any = None
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = OwnPeftType.BOTTLENECK  # type: ignore[assignment]
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"no activation {self.activation!r}; there are {', '.join(ACTIVATIONS)}")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


@dataclass(frozen=True)
class Site:
    """What an adapter does at one module."""

    place: Place
    watched: str = ""
    """The module whose input (beside) or output (after block) is read; empty for the module itself."""
    trains_norm: bool = False


def sites(model: nn.Module, style: Style, *, trains_norms: bool) -> dict[str, Site]:
    """The modules that carry something of an adapter of this style, by full name.

    Raises:
        UserError: A block of the model has no MLP to be found.
    """
    found: dict[str, Site] = {}
    for layer in sublayers(model):
        if style == "houlsby":
            found[layer.output] = Site("after")
        elif layer.kind == "attention":
            continue
        elif style == "parallel":
            found[layer.output] = Site("beside", layer.reader if layer.reader != layer.output else "")
        elif layer.last_norm:
            found[layer.last_norm] = Site("around norm", trains_norm=trains_norms)
        else:
            found[layer.output] = Site("after block", layer.block)
    if trains_norms:
        found |= {name: Site("none", trains_norm=True) for name in norms(model) if name not in found}
    return found


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module of the base with the adapters that sit on it.

    "beside" and "after block" also watch another module by a hook, so that the tree of the base stays as it is.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_norm")
    other_param_names = ("settings", "site")

    def __init__(self, base_layer: nn.Module, features: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.features = features
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_norm = nn.ModuleDict()
        self.settings: dict[str, BottleneckConfig] = {}
        self.site: dict[str, Site] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter = []
        self._input: Tensor | None = None
        self._hooks: dict[str, Any] = {}

    def update_layer(self, name: str, config: BottleneckConfig, site: Site, model: nn.Module) -> None:
        """Put an adapter on; `model` holds the module that the site watches."""
        self.settings[name], self.site[name] = config, site
        if site.place != "none":
            size = max(1, round(self.features / config.reduction))
            down, up = nn.Linear(self.features, size), nn.Linear(size, self.features)
            for zero in (down.bias, up.weight, up.bias):
                nn.init.zeros_(zero)
            self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        if site.trains_norm:
            self.bottleneck_norm[name] = copy.deepcopy(self.get_base_layer())
        if site.watched and site.place not in self._hooks:
            watched = model.get_submodule(site.watched)
            if site.place == "beside":
                self._hooks[site.place] = watched.register_forward_pre_hook(self._mlp_input, with_kwargs=True)
            else:
                self._hooks[site.place] = watched.register_forward_hook(self._block_output)
        self._move_adapter_to_device_of_base_layer(name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The base's output with what the active adapters add to it; [..., features] like the base's."""
        given, self._input = self._input, None
        names = self._at_work("after", "beside", "around norm")
        y: Any = self._base(x, *args, **kwargs)
        for name in names:
            place = self.site[name].place
            if place == "after":
                y = y + self._adapter(name, y)
            elif place == "beside":
                source = x if not self.site[name].watched else given
                assert source is not None, "the MLP's output was asked for before its input was seen"
                y = y + self.settings[name].scaling * self._adapter(name, source)
            else:
                x = x + self._adapter(name, y)
                y = self._base(x)
        return y

    def unhook(self) -> None:
        """Stop watching other modules."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing to merge into.

        Raises:
            ValueError: Always.
        """
        raise ValueError(NOT_LINEAR)

    def _at_work(self, *places: Place) -> list[str]:
        if self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in self.site and self.site[name].place in places]

    def _adapter(self, name: str, x: Tensor) -> Tensor:
        """W_up act(W_down x + b_down) + b_up, in the adapter's precision, given back in x's."""
        config = self.settings[name]
        down: Any = self.bottleneck_down[name]
        up: Any = self.bottleneck_up[name]
        low = ACTIVATIONS[config.activation](down(x.to(down.weight.dtype)))
        out: Tensor = nn.functional.dropout(up(low), config.dropout, self.training)
        return out.to(x.dtype)

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The base's own module, or the norm that the last active adapter trained in its place."""
        if not self.disable_adapters:
            for name in reversed(self.active_adapters):
                if name in self.bottleneck_norm:
                    norm: Any = self.bottleneck_norm[name]
                    return norm(x.to(norm.weight.dtype), *args, **kwargs).to(x.dtype)
        return self.base_layer(x, *args, **kwargs)

    def _mlp_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._at_work("beside"):
            self._input = args[0] if args else next(iter(kwargs.values()))

    def _block_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        z = output[0] if isinstance(output, tuple) else output
        for name in self._at_work("after block"):
            z = z + self._adapter(name, z)
        return (z, *output[1:]) if isinstance(output, tuple) else z

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, Any]:
        first = next(base_layer.parameters())  # a mixture of experts has no `weight` of its own
        return first.device, first.dtype


class BottleneckModel(BaseTuner):
    """PEFT's tuner for bottleneck adapters: as for LoRA it saves, loads, switches and switches off."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        self.sites = sites(self.model, peft_config.style, trains_norms=peft_config.trains_norms)
        if peft_config.target_modules is None:
            peft_config.target_modules = set(self.sites)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if current_key not in self.sites:
            raise ValueError(f'style {peft_config.style} has nothing to put on "{current_key}"')
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target, width(self.model))
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config, self.sites[current_key], self.model)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        setattr(parent, child_name, new_module)  # PEFT's own takes for granted that what it puts back has a weight

    def _unload_and_optionally_merge(self, merge: bool = True, **settings: Any) -> Any:  # type: ignore[override]
        if merge:
            raise ValueError(NOT_LINEAR)
        for module in list(self.model.modules()):
            if isinstance(module, BottleneckLayer):
                module.unhook()
        return super()._unload_and_optionally_merge(merge=False, **settings)


NOT_LINEAR = "a bottleneck adapter has a non-linear function in it, so no weights of the base do the same"


def register() -> None:
    """Make the type known to PEFT, whose own function takes only names of its own list."""
    kind: Any = OwnPeftType.BOTTLENECK
    PEFT_TYPE_TO_CONFIG_MAPPING[kind] = BottleneckConfig
    PEFT_TYPE_TO_TUNER_MAPPING[kind] = BottleneckModel
    PEFT_TYPE_TO_PREFIX_MAPPING[kind] = BottleneckModel.prefix


register()
