"""Any other type of PEFT by its name and its own settings (LOHA, LOKR, OFT, BOFT, VERA, HRA, FOURIERFT, LN_TUNING).

The type's paper and settings stand in PEFT's documentation; a wrong type or setting is refused with the nearest right
one, before weights load. Which matrices are adapted is found by structure where the settings do not say it: all of
the blocks' (LN_TUNING: all norms). The types' papers differ widely in their learning rates, so set `train.lr`: the
default belongs to none of them, and is ten times the one that PEFT's own comparison begins from. Refused are types
whose training needs more than a loss of Tunesmith's (ADALORA's calls after every step, CPT's own loss, tasks' ids),
and those that are methods here under their own names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.errors import UserError, suggest, unknown_name
from tunesmith.models.peft_method import PeftMethod

if TYPE_CHECKING:
    from torch.nn import Module

OWN = {
    "LORA": "lora",
    "IA3": "ia3",
    "PROMPT_TUNING": "prompt_tuning",
    "PREFIX_TUNING": "prefix_tuning",
    "P_TUNING": "p_tuning",
    "ADAPTION_PROMPT": "llama_adapter",
    "BOTTLENECK": "bottleneck",
}
_CALLBACK = "PEFT's ranks move only if its own trainer calls it after every step, and its extra loss is not Tunesmith's"
_TASK_IDS = "every row must come with the number of its task"
REFUSED = {
    "ADALORA": (_CALLBACK, "Use `method: lora` with `ranks` for ranks by layer, or {name: peft, type: GLORA}."),
    "POLY": (_TASK_IDS, "Use `method: lora`, one for each task."),
    "MULTITASK_PROMPT_TUNING": (_TASK_IDS, "Use `method: prompt_tuning`, one for each task."),
    "XLORA": ("it mixes LoRA adapters that are trained already", "Train those with `method: lora`."),
    "CPT": ("its loss weighs the prompt's own tokens inside PEFT", "Use `method: prompt_tuning`."),
    "CARTRIDGE": (
        "it begins as the cache of a long text, which PEFT's own script makes",
        "Use `method: prefix_tuning`.",
    ),
    "SHADOW": ("PEFT adds a loss of its own to the model's, which Tunesmith's losses pass by", "Use `method: lora`."),
}
QUANTIZED = ("HIRA", "LN_TUNING", "PVERA", "RANDLORA", "ROAD", "TRAINABLE_TOKENS")  # as PEFT has layers for them
SET_HERE = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}


class Peft(PeftMethod):
    """A type of PEFT trains as PEFT defines it; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 1e-3

    type: str = "VERA"
    """PEFT's name of the type, in any case; the default is VeRA (arXiv:2310.11454)."""
    settings: dict[str, Any] = {}
    """Settings of the type as PEFT names them: `{r: 8, alpha: 16}`. What is left out has PEFT's default."""

    def check_task(self, task: str) -> None:
        """Refuse an unknown type or setting, and a classifier where the type cannot train a head.

        Raises:
            UserError: With the reason, and the nearest right name.
        """
        known = self._known_settings()
        if task in ("classify", "tag") and "modules_to_save" not in known:
            raise UserError(
                f"peft's {self.type.upper()} cannot train a classifier's new head, which would stay random.",
                code="method_refused",
                remedy="Use another type, or `method: lora`.",
            )
        self._config(known)

    def check_model(self, config: Any, task: str) -> None:
        """Refuse a model whose kind of layer the type does not take.

        Raises:
            UserError: With PEFT's reason.
        """
        from tunesmith.models.skeleton import skeleton

        model = skeleton(config)
        if model is None:
            return
        try:
            self._wrap(model, self.peft_config(model))
        except (ValueError, TypeError) as fault:
            if "not supported" in str(fault):
                raise self._misfit(fault) from fault
        except (NotImplementedError, AttributeError, RuntimeError):
            return  # without weights this cannot be tried; `attach` will tell

    def check_quantized(self, bits: int) -> None:
        """Refuse a type that PEFT has no quantised layers for.

        Raises:
            UserError: It is such a type.
        """
        if self.type.upper() not in QUANTIZED:
            raise UserError(
                f"peft's {self.type.upper()} has no layers for a quantised base.",
                code="method_refused",
                remedy=f"Use `method: lora`, one of {', '.join(QUANTIZED)}, or model.quantize=none.",
            )

    def peft_config(self, model: Module) -> Any:
        """PEFT's configuration of the type, with targets found by structure where the settings name none.

        Raises:
            UserError: As `check_task`, or the type has nothing to adapt in this model.
        """
        from tunesmith.models.adapters import new_heads, task_type
        from tunesmith.models.anatomy import is_classifier

        self.check_task("classify" if is_classifier(model) else "causal")
        known = self._known_settings()
        found: dict[str, Any] = {"task_type": task_type(model)}
        if "modules_to_save" in known:
            given = self.settings.get("modules_to_save") or []
            found["modules_to_save"] = [*given, *(new_heads(model) or [])] or None
        if "target_modules" in known and self.type.upper() != "TRAINABLE_TOKENS":
            found["target_modules"] = self.settings.get("target_modules") or self._targets(model)
        return self._config(known, **found)

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model: only the adapter trains (and a classifier's head), in fp32.

        Raises:
            UserError: The type does not fit the model, with PEFT's reason.
        """
        from tunesmith.models.quantize import num_bits

        config = self.peft_config(model)
        if bits := num_bits(model):
            self.check_quantized(bits)
        self._copied_in_fp32(model)
        try:
            return self._wrap(model, config)
        except (ValueError, TypeError, NotImplementedError, AttributeError, RuntimeError) as fault:
            raise self._misfit(fault) from fault

    def load(self, model: Module, folder: Path) -> Module:
        """The base model with the saved adapter on it, ready to train on."""
        self._copied_in_fp32(model)
        return super().load(model, folder)

    def merge(self, model: Module) -> Module:
        """The base with the adapter's change in its weights, in fp32.

        Raises:
            UserError: PEFT cannot merge the type, or not into this model.
        """
        try:
            return super().merge(model)
        except (ValueError, NotImplementedError) as fault:
            raise UserError(
                f"peft's {self.type.upper()} cannot be merged into this model: {_line(fault)}.",
                code="cannot_merge",
                remedy="Serve it as an adapter beside its base.",
            ) from fault

    def summary(self) -> str:
        """`PEFT LOHA, r 4`."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"PEFT {self.type.upper()}" + (f", {settings}" if settings else "")

    def _wrap(self, model: Module, config: Any) -> Module:
        import contextlib
        import io

        from tunesmith.models.adapters import new_adapter

        with contextlib.redirect_stderr(io.StringIO()):  # FRoD draws a bar of its own
            adapted: Module = new_adapter(model, config)
        return adapted

    def _misfit(self, fault: Exception) -> UserError:
        is_kind = "not supported" in str(fault)
        return UserError(
            f"peft's {self.type.upper()} does not fit this model: {_line(fault)}.",
            code="method_refused" if is_kind else "bad_value",
            remedy="Use another type, or `method: lora`." if is_kind else "Change method.settings.",
        )

    def _copied_in_fp32(self, model: Module) -> None:
        """LN_TUNING trains copies of the base's norms, which must have fp32's digits before they are made or filled."""
        if self.type.upper() == "LN_TUNING":
            from tunesmith.models.sublayers import norms

            for name in norms(model):
                model.get_submodule(name).float()

    def _targets(self, model: Module) -> list[str]:
        from tunesmith.models.adapters import shortest_endings
        from tunesmith.models.anatomy import linears
        from tunesmith.models.sublayers import norms

        names = norms(model) if self.type.upper() == "LN_TUNING" else linears(model)
        return shortest_endings(names, model)

    def _known_settings(self) -> set[str]:
        """The type's settings by PEFT's own class; refuses what cannot train here."""
        import dataclasses

        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind = self.type.upper()
        every = {str(one.value) for one in PEFT_TYPE_TO_CONFIG_MAPPING}
        if kind in OWN:
            raise UserError(
                f"peft's {kind} is a method here; its settings are checked and documented there.",
                code="method_refused",
                remedy=f"Use `method: {OWN[kind]}`.",
            )
        if kind not in every:
            raise unknown_name("peft type", kind, every - OWN.keys() - REFUSED.keys())
        if kind in REFUSED:
            reason, remedy = REFUSED[kind]
            raise UserError(f"peft's {kind} cannot train here: {reason}.", code="method_refused", remedy=remedy)
        if self.settings.get("use_asa"):
            raise UserError(
                f"peft's {kind} cannot train here with `use_asa`: {_CALLBACK}.",
                code="method_refused",
                remedy="Leave use_asa out.",
            )
        config_class = next(cls for one, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if one.value == kind)
        known = {field.name for field in dataclasses.fields(config_class)} - SET_HERE - {"inference_mode"}
        for key in self.settings:
            if key not in known:
                raise UserError(
                    f'"{key}" is not a setting of PEFT\'s {kind};',
                    code="unknown_setting",
                    remedy=suggest(key, known).sentence() or "Its settings: " + ", ".join(sorted(known)) + ".",
                )
        return known

    def _config(self, known: set[str], **found: Any) -> Any:
        from peft import get_peft_config

        from tunesmith.models.quiet import quiet

        try:
            with quiet():
                return get_peft_config({"peft_type": self.type.upper(), **self.settings, **found})
        except (ValueError, TypeError, AttributeError) as fault:
            raise UserError(
                f"PEFT refuses these settings of {self.type.upper()}: {_line(fault)}.",
                code="bad_value",
                remedy="Change method.settings. There are: " + ", ".join(sorted(known)) + ".",
            ) from fault


def _line(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")[:300]
