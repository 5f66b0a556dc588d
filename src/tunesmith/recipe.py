"""The recipe: everything that decides a run, in one YAML file.

A recipe needs only `model` and `data.source`. What is left out has a default that the run prints and
records; "auto" is chosen by a stated rule, and the recorded recipe holds what was chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tunesmith.core.errors import UserError
from tunesmith.core.overrides import among_overrides, apply_override
from tunesmith.core.plugins import Plugin, find, names, plugin
from tunesmith.core.settings import Before, Locate, Settings, validate
from tunesmith.core.short_forms import build_at, long_compare_row, long_data
from tunesmith.core.space import SearchSettings, refuse_ranges
from tunesmith.core.yaml_text import locator, parse_yaml
from tunesmith.formats.base import Format
from tunesmith.launchers.base import Launcher
from tunesmith.methods.base import Method
from tunesmith.metrics.base import Metric
from tunesmith.objectives.base import Objective
from tunesmith.optimizers.base import Optimizer
from tunesmith.prompting.base import Prompting

MAX_RECIPE_BYTES = 1_000_000
USUAL_VALIDATION, MOST_VALIDATION = 0.1, 1000
"""Share and number of the rows that validate where the recipe says `auto`: the lesser of the two."""
Share = Annotated[float, Field(ge=0, lt=1)]


class ModelSettings(Settings):
    """The base model."""

    name: str
    """A hub id, a folder, a run folder to go on from, or `tunesmith/base` (built in)."""
    config: dict[str, Any] = {}
    """Start from random weights of this transformers configuration (`model_type` and sizes) with `name`'s tokenizer."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """What products are computed in; `auto` measures this machine."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Hold the base's matrices in 4 bits (NF4, as QLoRA) or 8 (LLM.int8) and train an adapter on them; needs
    `tunesmith[quantized]`."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Leave it off unless you have read that code."""


class SourceSettings(Settings):
    """One of several sources that are mixed, or a task of its own."""

    path: str
    """A file, a compressed file, or a folder of files."""
    name: str = ""
    """What it is called in the log, in the scores and as a folder; the file's name without its ending where empty."""
    weight: PositiveFloat = 1.0
    """How often its rows are drawn, relative to the others, per row, on top of `data.mixing`."""
    objective: Annotated[Objective, *plugin("objectives")] | Literal["auto"] = "auto"
    """`auto`: all sources share the recipe's objective and one head. Named: a task of its own, with its own head."""
    loss_weight: PositiveFloat = 1.0
    """By what a task's mean loss is multiplied before the tasks are added up; for sources with their own objective."""
    format: Annotated[Format, *plugin("formats")] | Literal["auto"] = "auto"
    """The shape of its rows; `auto` takes `data.format`."""
    columns: dict[str, str] = {}
    """Names for its columns; `data.columns` where empty."""
    validation: str = ""
    """A file of its validation rows; otherwise they are split off."""
    test: str = ""
    """A file of its held-out rows; otherwise they are split off."""

    @property
    def title(self) -> str:
        """The name, or what the path makes of it."""
        return self.name or Path(self.path).name.partition(".")[0] or self.path


class Temperature(Settings):
    """Sources drawn by their size to the power of 1/T: T5's temperature-scaled mixing."""

    temperature: Annotated[float, Field(ge=1)] = 2.0
    """1 is proportional; the higher, the nearer to equal."""
    size_limit: NonNegativeInt = 0
    """A source counts as at most so many rows (T5's artificial limit K); 0 sets no limit."""


class SplitSettings(Settings):
    """How rows are held out; rows named by `data.validation` or `data.test` are never split again."""

    validation: Share | Literal["auto"] = "auto"
    """Share of the rows kept for validation while training; `auto`: a tenth (of those that `data.limit` uses), of more
    than 10,000 rows about 1,000, because they are scored again and again."""
    test: Share = 0.0
    """Share of the rows kept for the final scores."""
    group_by: str = ""
    """A column; rows with the same value stay on one side (a customer, a document)."""
    seed: NonNegativeInt | Literal["recipe"] = "recipe"
    """What decides who is held out; `recipe` is the recipe's seed. Runs that differ in their seed alone share this."""


class DataSettings(Settings):
    """Where rows come from and what is done to them."""

    source: str | tuple[SourceSettings, ...]
    """A file, a compressed file, a folder, or a list of `{path, name, weight, objective, …}`."""
    mixing: Literal["proportional", "equal"] | Temperature = "proportional"
    """How often each of several sources is drawn: by its rows, all alike, or `{temperature: 2}` in between."""
    validation: str = ""
    """A file of validation rows; otherwise they are split off the source."""
    test: str = ""
    """A file of held-out rows; otherwise they are split off the source."""
    documents: str = ""
    """Markdown or text files that retrieval searches."""
    format: Annotated[Format, *plugin("formats")] | Literal["auto"] = "auto"
    """The shape of the rows; `auto` recognises it."""
    columns: dict[str, str] = {}
    """Names for columns, from the file's to the format's: `{mr: input, ref: output}`."""
    system: str = ""
    """A system message put before every conversation that has none."""
    split: SplitSettings = SplitSettings()
    dedup: Literal["none", "exact", "near"] = "exact"
    """Which repeated rows are left out (counted and shown): equal after normalising, or nearly equal too."""
    on_fault: Literal["stop", "skip"] = "stop"
    """A row that cannot be read stops the run, or is put aside and counted."""
    max_length: PositiveInt | Literal["model"] = "model"
    """Longest example in tokens; `model` is the model's own context."""
    limit: NonNegativeInt = 0
    """Use only the first so many training rows after shuffling; 0 uses all."""
    shots: NonNegativeInt = 0
    """Train on so many rows of each class, drawn by the seed (so many in all where rows have no class); 0 uses all."""

    def validation_share(self, num_rows: int) -> float:
        """The share of so many rows that validates; `auto` counts no more rows than training uses."""
        wished = self.split.validation
        if wished != "auto":
            return wished
        used = min(num_rows, self.limit / (1 - USUAL_VALIDATION)) if self.limit else num_rows
        return min(USUAL_VALIDATION * used, MOST_VALIDATION) / max(1, num_rows)


class TrainSettings(Settings):
    """How the weights are changed."""

    epochs: PositiveFloat = 3.0
    """Passes over the training rows."""
    steps: NonNegativeInt = 0
    """Optimiser steps; overrules `epochs` where not 0."""
    tokens_per_step: PositiveInt = 8192
    """Tokens that one optimiser step sees (the effective batch), whatever fits at once."""
    micro_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens that go through the model at once, halved by itself when memory runs out; `auto`: 2,048 in bf16 and
    1,024 in fp32 on a processor, 8,192 on a GPU."""
    threads: PositiveInt | Literal["auto"] = "auto"
    """Threads of the processor to compute with; `auto`: what `OMP_NUM_THREADS` says, else what was measured to be
    fastest. A run that goes on keeps its number."""
    compile: Annotated[Literal["auto", "on", "off"], Before("off")] = "auto"
    """Compile the repeated block once (`torch.compile`; the result is kept for later runs); `auto`: where there is a
    compiler, one block was measured to gain, and the run is long enough to pay for it."""
    native: Annotated[Literal["auto", "off"], Before("off")] = "auto"
    """On a processor, make norms, rotary positions, gated activations, softmax, losses and attention in one call each,
    by a small library that the machine's C++ compiler makes once in a few seconds; `auto`: where there is a compiler,
    and what it made was proven right and faster."""
    recompute: NonNegativeInt | Literal["auto", "none", "all"] = "auto"
    """Blocks, from the first, that the backward pass computes again to save memory; `auto`: as many as it needs."""
    lr: PositiveFloat | Literal["auto"] = "auto"
    """Peak learning rate; `auto` is the method's own."""
    head_lr: PositiveFloat | Literal["auto"] = "auto"
    """A new head's learning rate as a multiple of `lr`; `auto` is the method's own: 10 with full, last_k, lora and
    bottleneck, otherwise 1."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    final_lr: Share = 0.0
    """Learning rate at the end, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay on matrices; never on norms and biases."""
    optimizer: Annotated[Optimizer, *plugin("optimizers")] = Field(default="adamw", validate_default=True)  # type: ignore[assignment]
    """How gradients change the weights; another takes less memory, or fewer steps."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Put several examples into one row without attention between them; `auto` where the model can."""
    attention: Literal["auto", "flash_attn", "varlen", "flex", "sdpa", "plain"] = "auto"
    """What packed rows go through on a GPU: the package flash_attn, PyTorch's varlen or flex attention, its kernel one
    example at a time, or plain products; `auto`: the first of these that can do all layers and gives what the model
    gives. A CPU has one of its own."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Where frozen blocks' output is kept, so that they run once a row; `auto`: in a quarter of the free memory, else
    in half of the free disk, else not at all. Takes part where a method freezes the first blocks."""
    validations: PositiveInt = 10
    """How often validation rows are scored in a run, evenly spread."""
    patience: NonNegativeInt = 4
    """Stop after so many validations without a better loss; 0 never stops early."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with."""
    checkpoints: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    snapshot: Literal["auto", "on", "off"] = "auto"
    """Copy what trains for a checkpoint and write it beside training, or let training wait; `auto` copies where that
    takes at most half of the free memory."""
    max_bad_steps: NonNegativeInt = 3
    """Steps with a loss or gradient that is not a number, skipped before the run stops."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where else the numbers go. Nothing leaves the machine unless one is named here."""


class GenerateSettings(Settings):
    """How answers are generated."""

    max_new_tokens: PositiveInt = 64
    """Longest answer in tokens."""
    temperature: NonNegativeFloat = 0.0
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw only from the likeliest tokens that together have this probability."""


class CompareRow(Settings):
    """One row of a comparison: a way of prompting, and perhaps a method that is trained first."""

    title: str = ""
    """The row's name in tables; otherwise made from its settings."""
    prompting: Annotated[Prompting, *plugin("prompting")] = Field(default="zero_shot", validate_default=True)  # type: ignore[assignment]
    """How the question is put."""
    method: Annotated[Method, *plugin("methods")] | None = None
    """What is trained first; nothing where left out."""
    run: str = ""
    """A finished run of the same data, instead of a method that is trained first."""
    baseline: Literal["", "tfidf", "frozen_features"] = ""
    """A classical classifier instead: logistic regression on TF-IDF or on the frozen model's states."""
    model: ModelSettings | None = None
    """Another base model for this row; the recipe's where left out."""
    lr: tuple[PositiveFloat, ...] = ()
    """Learning rates to try with the first seed; the one with the lowest validation loss is used."""
    train: dict[str, Any] = {}
    """Settings of `train` for this row, over the recipe's."""
    against: str = ""
    """The row that its difference is told to, by name; full fine-tuning (or the first row) where left out."""


class CompareSettings(Settings):
    """The rows of `tunesmith compare`."""

    rows: tuple[CompareRow, ...] = ()
    """Left out: zero-shot, few-shot, retrieval (with `data.documents`), and the recipe's method."""
    limit: NonNegativeInt = 0
    """Score only so many held-out rows, evenly spread over them; 0 scores all."""
    seeds: PositiveInt = 1
    """Train every method with so many seeds, counted from the recipe's, on the same split of the rows."""
    tries: dict[str, Any] = {}
    """Settings of `train` while the learning rates of a row are tried, over the row's: `{epochs: 1}`."""


class Recipe(Settings):
    """Everything that decides a run."""

    name: str = ""
    """The run folder's stem; the recipe file's name where left out."""
    model: ModelSettings
    data: DataSettings
    method: Annotated[Method, *plugin("methods")] = Field(default="lora", validate_default=True)  # type: ignore[assignment]
    """Which parameters train."""
    objective: Annotated[Objective, *plugin("objectives")] | Literal["auto"] = "auto"
    """What is optimised; `auto` follows the rows: text → clm, chat → sft, pair → seq2seq, label → classification, …"""
    train: TrainSettings = TrainSettings()
    evaluate: tuple[Annotated[Metric, *plugin("metrics")], ...] | Literal["auto"] = "auto"
    """Metrics of the held-out rows; `auto` follows the objective."""
    generate: GenerateSettings = GenerateSettings()
    compare: CompareSettings = CompareSettings()
    search: SearchSettings = SearchSettings()
    launcher: Annotated[Launcher, *plugin("launchers")] = Field(default="local", validate_default=True)  # type: ignore[assignment]
    """Where it runs."""
    seed: NonNegativeInt = 1
    """Seeds data order, initial weights of what is new, dropout and sampling."""

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def fingerprint(self) -> str:
        """SHA-256 over the resolved settings: equal recipes have equal fingerprints."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file with `key=value` overrides applied.

    Paths in `data` are taken from the working directory, as the shell would.

    Raises:
        UserError: The file is missing, is no YAML, or holds an unknown key or a bad value.
    """
    values, locate = read_values(path, overrides)
    refuse_ranges(values, locate)
    return make_recipe(values, locate=locate)


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Locate]:
    """The plain values of a YAML file with `key=value` overrides applied, and the places of its keys.

    Raises:
        UserError: The file is missing, or is no YAML of settings.
    """
    path = Path(path)
    text = _read(path)
    node, values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise UserError("a recipe is a mapping of settings.", code="bad_recipe", where=str(path), remedy=_MINIMAL)
    for override in overrides:
        apply_override(values, override)
    values.setdefault("name", path.stem)
    return values, among_overrides(locator(node, text, path), overrides)


def make_recipe(values: Mapping[str, Any], *, locate: Locate | None = None) -> Recipe:
    """A recipe from plain values (YAML, REST, Python); short forms such as `model: NAME` are expanded."""
    full = dict(values)
    if isinstance(full.get("model"), str):
        full["model"] = {"name": full["model"]}
    if isinstance(full.get("evaluate"), str) and full["evaluate"] != "auto":
        full["evaluate"] = [full["evaluate"]]
    if isinstance(full.get("evaluate"), list | tuple):
        specs = full["evaluate"]
        full["evaluate"] = [build_at("metrics", spec, ("evaluate", i), locate) for i, spec in enumerate(specs)]
    compare = full.get("compare")
    if isinstance(compare, Mapping) and isinstance(compare.get("rows"), list | tuple):
        rows = [long_compare_row(row, i, locate) for i, row in enumerate(compare["rows"])]
        full["compare"] = {**compare, "rows": rows}
    data = full.get("data")
    if isinstance(data, Mapping):
        full["data"] = long_data(data, locate)
    train = full.get("train")
    if isinstance(train, Mapping) and "optimizer" in train:
        built = build_at("optimizers", train["optimizer"], ("train", "optimizer"), locate)
        full["train"] = {**train, "optimizer": built}
    for key, folder in (("method", "methods"), ("objective", "objectives"), ("launcher", "launchers")):
        if key in full and full[key] != "auto":
            full[key] = build_at(folder, full[key], (key,), locate)
    return validate(Recipe, full, locate=locate, elsewhere=_keys_by_place(full))


def override_recipe(recipe: Recipe, **sections: Any) -> Recipe:
    """A copy with some sections changed: `override_recipe(r, train={"epochs": 1}, seed=2)`."""
    values = recipe.model_dump(mode="json")
    for key, value in sections.items():
        values[key] = {**values[key], **value} if isinstance(value, Mapping) and key in ("train", "data") else value
    return make_recipe(values)


_MINIMAL = "The smallest is:\nmodel: tunesmith/base\ndata: {source: rows.jsonl}"


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UserError("a recipe is at most 1 MB.", code="bad_recipe", where=str(path))
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml"))[:3] if path.parent.is_dir() else []
        remedy = "There are: " + ", ".join(near) + "." if near else "Write one, or start with `tunesmith demo`."
        raise UserError("there is no such recipe.", code="no_file", where=str(path), remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"the recipe cannot be read: {fault}.", code="bad_recipe", where=str(path)) from None


def _keys_by_place(values: Mapping[str, Any]) -> dict[str, list[str]]:
    places = {
        "model": list(ModelSettings.model_fields),
        "data": list(DataSettings.model_fields),
        "data.split": list(SplitSettings.model_fields),
        "train": list(TrainSettings.model_fields),
        "train.optimizer": list(find("optimizers", "adamw").model_fields),
        "generate": list(GenerateSettings.model_fields),
        "compare": list(CompareSettings.model_fields),
        "search": list(SearchSettings.model_fields),
    }
    method = values.get("method", "lora")
    name = method.name if isinstance(method, Plugin) else method if isinstance(method, str) else ""
    if name in names("methods"):
        places["method"] = list(find("methods", name).model_fields)
    return places
