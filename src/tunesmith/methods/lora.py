"""Train a low-rank update beside each frozen matrix (LoRA, arXiv:2106.09685).

The output is W x + s B A x with s = alpha / rank (eq. 3 and section 4.1); A is random and B zero at first, so the
first output is the base's. The variants, chosen by `variant`:

- rslora (arXiv:2312.03732, theorem 3.2): s = alpha / sqrt(rank), so that a high rank learns as fast as a low one.
- dora (arXiv:2402.09353, eq. 5): m (W + s B A) / |W + s B A|, norms by column of the paper (by output here); the
  magnitudes m train too and begin at |W|. It costs a norm of every matrix at each step.
- pissa (arXiv:2404.02948): A and B begin as the matrix's first singular vectors; see models/pissa.py for how the
  base stays untouched. Saved as an ordinary LoRA of twice the rank.
- lora_plus (arXiv:2402.12354, section 4): B learns `plus_ratio` times as fast as A; `train.lr` is A's.

The learning rate is that of the paper's GPT-2 and GPT-3 (appendix D) and of QLoRA up to 13 B, for all variants; LoRA+'s
authors advise half of LoRA's for A, and PiSSA's take 2e-5 with alpha = rank. An epoch of banking77 on MiniLM (22 M
parameters) ends at a validation loss of 0.94 with 1e-3 and 0.45 with 3e-3: small models want more.
Every block's matrices are adapted by default: the paper adapts attention alone, and later work found that
adapting all of them is what reaches full fine-tuning (QLoRA, arXiv:2305.14314, section 4).
A classifier's head is new, so it trains whole and is saved with the adapter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tunesmith.core.errors import UserError, suggest
from tunesmith.models.peft_method import PeftMethod

if TYPE_CHECKING:
    from torch.nn import Module

TITLES = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "pissa": "PiSSA", "lora_plus": "LoRA+"}


class LoRA(PeftMethod):
    """Low-rank matrices train; the result is an adapter in PEFT's format."""

    learning_rate: ClassVar[float] = 2e-4
    new_head_factor: ClassVar[float] = 10.0

    variant: Literal["lora", "rslora", "dora", "pissa", "lora_plus"] = "lora"
    """How the update is scaled, normed, started or stepped; each is described above."""
    rank: PositiveInt = 16
    """Rank of the update; trainable parameters grow in proportion."""
    alpha: PositiveFloat = 32.0
    """The update is multiplied by alpha / rank (rslora: by alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of the update that are set to 0 while training."""
    targets: Literal["all-linear", "attention", "mlp"] | tuple[str, ...] = "all-linear"
    """Which matrices of the blocks are adapted: all, attention's, the others, or a list of names."""
    ranks: dict[str, PositiveInt] = {}
    """Other ranks by the end of a matrix's name, or a regular expression for it; alpha follows (rslora keeps it)."""
    trained: tuple[str, ...] = ()
    """Modules that train whole and are saved with the adapter, by the end of a name: `[norm, embed_tokens]`."""
    plus_ratio: PositiveFloat = 16.0
    """lora_plus only: the learning rate of B over that of A (16 in the paper)."""

    @model_validator(mode="after")
    def _ratio_needs_its_variant(self) -> LoRA:
        if self.variant != "lora_plus" and "plus_ratio" in self.changed():
            raise UserError(
                f"`method.plus_ratio` has no effect on `variant: {self.variant}`.",
                code="bad_value",
                remedy="Set method.variant=lora_plus, or leave plus_ratio out.",
            )
        return self

    def check_quantized(self, bits: int) -> None:
        """Refuse PiSSA, and DoRA in 8 bits.

        Raises:
            UserError: With the reason.
        """
        if self.variant == "pissa":
            raise UserError(
                "PiSSA takes its start from the base's matrices, and a quantised base no longer has them.",
                code="method_refused",
                remedy="Use `variant: lora` on a quantised base, or `model.quantize: none`.",
            )
        if self.variant == "dora" and bits == 8:
            raise UserError(
                "DoRA needs the base's norms, and PEFT loses the scales of 8-bit weights in computing them.",
                code="method_refused",
                remedy="Set model.quantize=4bit, or method.variant=lora.",
            )

    def peft_config(self, model: Module) -> Any:
        """PEFT's LoraConfig with the targets found by structure.

        Raises:
            UserError: A target, a pattern of `ranks` or a name of `trained` fits nothing of the model.
        """
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        from tunesmith.models.adapters import new_heads, shortest_endings, task_type

        trained = self._trained_names(model)
        names = [name for name in self._target_names(model) if not _is_inside(name, trained)]
        kinds = {isinstance(model.get_submodule(name), Conv1D) for name in names}
        ranks = self._rank_pattern(names)
        is_rescaled = self.variant != "rslora"
        return LoraConfig(
            task_type=task_type(model),
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=shortest_endings(names, model),
            modules_to_save=[*(new_heads(model) or []), *trained] or None,
            fan_in_fan_out=kinds == {True},
            rank_pattern=ranks,
            alpha_pattern={key: self.alpha * rank / self.rank for key, rank in ranks.items()} if is_rescaled else {},
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
        )

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model; only the adapter, `trained` and a classifier's head train, in fp32."""
        from tunesmith.models.quantize import num_bits

        config = self.peft_config(model)
        if bits := num_bits(model):
            self.check_quantized(bits)
        self._trained_in_fp32(model)
        if self.variant == "pissa":
            from tunesmith.models.pissa import new_pissa

            adapted: Module = new_pissa(model, config)
        else:
            from tunesmith.models.adapters import new_adapter

            adapted = new_adapter(model, config)
        return adapted

    def learning_rate_factor(self, parameter: str) -> float:
        """`plus_ratio` for B of LoRA+, otherwise 1."""
        return self.plus_ratio if self.variant == "lora_plus" and ".lora_B." in parameter else 1.0

    def save(self, model: Module, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, as peft reads them."""
        if self.variant == "pissa":
            from tunesmith.models.pissa import save_pissa

            save_pissa(model, folder)
        else:
            super().save(model, folder)

    def load(self, model: Module, folder: Path) -> Module:
        """The base model with the saved adapter on it, ready to train on."""
        self._trained_in_fp32(model)
        if self.variant == "pissa":
            from tunesmith.models.pissa import load_pissa

            loaded: Module = load_pissa(model, folder, self.peft_config(model))
            return loaded
        return super().load(model, folder)

    def summary(self) -> str:
        """`LoRA, rank 16`."""
        targets = (
            ""
            if self.targets == "all-linear"
            else f", {self.targets if isinstance(self.targets, str) else '+'.join(self.targets)}"
        )
        trained = f", {'+'.join(self.trained)} whole" if self.trained else ""
        return f"{TITLES[self.variant]}, rank {self.rank}{targets}{trained}"

    def _target_names(self, model: Module) -> list[str]:
        from tunesmith.models.adapters import ends_with
        from tunesmith.models.anatomy import linears

        if isinstance(self.targets, str):
            found = linears(model, self.targets)
            if not found:
                raise UserError(
                    f"the model has no matrices for `targets: {self.targets}`.",
                    code="bad_value",
                    remedy="Experts of a mixture are no separate matrices; use `targets: attention`.",
                )
            return found
        every = linears(model)
        for target in self.targets:
            if not any(ends_with(name, target) for name in every):
                raise _no_such("matrix", target, every, "in its blocks")
        return [name for name in every if any(ends_with(name, target) for target in self.targets)]

    def _rank_pattern(self, names: list[str]) -> dict[str, int]:
        """`ranks` as PEFT matches them; every pattern must fit a target."""
        for pattern in self.ranks:
            try:
                is_used = any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)
            except re.error as fault:
                raise UserError(
                    f'`method.ranks`: "{pattern}" is no regular expression: {fault}.', code="bad_value"
                ) from None
            if not is_used:
                raise _no_such("adapted matrix", pattern, names, "(method.ranks)")
        return dict(self.ranks)

    def _trained_names(self, model: Module) -> list[str]:
        import torch

        from tunesmith.models.adapters import ends_with
        from tunesmith.models.anatomy import embeddings, head, head_modules, is_classifier, is_tied

        every = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
        tied = (embeddings(model), head(model)) if is_tied(model) else ()
        found = []
        for wanted in self.trained:
            names = [name for name in every if ends_with(name, wanted)]
            if not names:
                raise _no_such("module", wanted, every, "(method.trained)")
            if any(part is one for name in names for part in model.get_submodule(name).modules() for one in tied):
                raise UserError(
                    f'"{wanted}" holds the table of token embeddings, which this model shares between its first '
                    "and its last layer; PEFT would train one copy of it and leave the other.",
                    code="method_refused",
                    remedy="Leave it out of method.trained, or use `method: full`.",
                )
            if any(
                p.dtype in (torch.uint8, torch.int8) for name in names for p in model.get_submodule(name).parameters()
            ):
                raise UserError(
                    f'"{wanted}" is quantised, and what trains whole must not be.',
                    code="method_refused",
                    remedy="Leave it out of method.trained, or set model.quantize=none.",
                )
            found += [name for name in names if name not in found]
        heads = list(head_modules(model)) if is_classifier(model) else []  # they train without being named
        return [name for name in found if not _is_inside(name, [*heads, *(one for one in found if one != name)])]

    def _trained_in_fp32(self, model: Module) -> None:
        for name in self._trained_names(model):
            model.get_submodule(name).float()


def _is_inside(name: str, wholes: list[str]) -> bool:
    return any(name == whole or name.startswith(f"{whole}.") for whole in wholes)


def _no_such(kind: str, wrong: str, names: list[str], place: str) -> UserError:
    short = sorted({name.rpartition(".")[2] for name in names} - {str(number) for number in range(1000)})
    shown = ", ".join(short[:12]) + (" …" if len(short) > 12 else "")
    return UserError(
        f'the model has no {kind} "{wrong}" {place};',
        code="bad_value",
        remedy=suggest(wrong, short).sentence() or f"There are: {shown}.",
    )
