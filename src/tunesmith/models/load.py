"""Load models and tokenizers: strictly, offline where the name is a folder, and without running foreign code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import UserError
from tunesmith.methods.base import Method
from tunesmith.models.adapters import attach_adapter
from tunesmith.models.configuration import (
    HEADED,
    LABELLED,
    NUMBER,
    check_mask,
    check_task,
    check_vocabulary,
    context_length,
    infer_task,
    labels_of,
    set_labels,
)
from tunesmith.models.continuing import as_plain, goes_on, is_adapter, root_of
from tunesmith.models.fresh import random_model, renew_head, seeded
from tunesmith.models.machine import Precision, Wish, device, preferred_precision
from tunesmith.models.opened import LOADING_FAULTS, Opened, first_line
from tunesmith.models.quantize import Quantize, check_quantize
from tunesmith.models.source import ADAPTER_CONFIG, base_record, read_card, resolve
from tunesmith.models.virtual_tokens import num_virtual_tokens
from tunesmith.objectives.base import Problem, Task
from tunesmith.recipe import ModelSettings


@dataclass(frozen=True)
class Loaded:
    """A model ready to train or to answer, with everything that says what it is."""

    model: Any
    tokenizer: Any
    task: Task
    labels: tuple[str, ...]
    name: str
    """As the user typed it."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """The contents of tunesmith.json; empty for a model from elsewhere."""
    precision: Precision = "fp32"
    """What products are computed in."""
    has_new_head: bool = False
    """Whether the head is random: the checkpoint had none, or one for other labels."""
    adapter: Path | None = None
    """A finished adapter that training goes on with (`attach`); `model` is its base."""

    def attach(self, method: Method) -> Any:
        """The model as the method trains it, with the run's own adapter where that goes on."""
        return method.load(self.model, self.adapter) if self.adapter else method.attach(self.model)

    @property
    def context(self) -> int:
        """The longest row in tokens; virtual tokens before it take their share."""
        return context_length(self.model.config) - num_virtual_tokens(self.model)


def load_base(  # noqa: PLR0913 - everything that decides what is loaded
    settings: ModelSettings,
    task: Task,
    *,
    labels: Sequence[str] = (),
    problem: Problem = "single_label_classification",
    trains_base_weights: bool,
    precision: Precision,
    seed: int,
    check: Callable[[Any, Task], None] | None = None,
    method: Method | None = None,
) -> Loaded:
    """The model to train, on the processor, in evaluation mode.

    Weights are fp32 where they train or where `precision` says so, otherwise (frozen) bf16. A finished adapter run
    as base is merged first; where `method`, task and labels are its own, that very adapter goes on (`attach`).
    `seed` decides every weight that no checkpoint gives. `check` may refuse the model by its configuration
    and the task, before weights are read.

    Raises:
        UserError: No such model, the wrong kind for the task (said before weights are read), a checkpoint with
            holes, or a vocabulary smaller than the tokenizer's.
    """
    check_quantize(settings.quantize, method, trains_base_weights=trains_base_weights)
    tokenizer = load_tokenizer(settings)
    if task == "mask":
        check_mask(tokenizer, settings.name)
    labels = (NUMBER,) if problem == "regression" else tuple(labels)
    if settings.config:
        if not trains_base_weights:
            raise UserError(
                "this method leaves the base's weights as they are, and `model.config` makes them random.",
                code="random_base",
                remedy="Use `method: full`, or drop `model.config`.",
            )
        model = random_model(settings.config, tokenizer, task, labels=labels, problem=problem, seed=seed)
        return Loaded(model, tokenizer, task, labels, settings.name, precision=precision)
    source = resolve(settings.name)
    dtype = torch.bfloat16 if precision == "bf16" and not trains_base_weights else torch.float32
    if is_adapter(source):
        root, root_name, revision = root_of(source, settings.name)
        config = Opened(root, root_name, revision).config()
        check_task(config, task, settings.name)
        if check is not None:
            check(config, task)
        if isinstance(source, Path) and goes_on(read_card(source), method, task, labels, problem):
            return _to_go_on(source, settings, task, labels, problem, precision, seed)
    with as_plain(source, settings.name) as folder:
        opened = Opened(folder, settings.name, settings.revision, settings.trust_remote_code)
        config = opened.config()
        check_task(config, task, settings.name)
        check_vocabulary(config, tokenizer, settings.name)
        if check is not None:
            check(config, task)
        known, known_problem = labels_of(config), config.problem_type
        names = labels or (known if task in LABELLED else ())
        if task in LABELLED:
            set_labels(config, names, tokenizer, problem, task)
        if problem == "regression" and len(known) == 1:
            known = names  # one output is a number, whatever it is called elsewhere
        is_other = task in LABELLED and (names != known or known_problem not in (None, config.problem_type))
        with seeded(seed):
            model, missing = opened.model(config, task, dtype, may_lack_head=task in HEADED, quantize=settings.quantize)
            if is_other and not missing:
                renew_head(model)
        if task == "mask" and missing and not trains_base_weights:
            raise UserError(
                "the checkpoint has no head for hidden words, and this method would leave a random one as it is.",
                code="untrained_head",
                where=settings.name,
                remedy="Use `method: full`, which trains a new head, or a checkpoint that has one.",
            )
        has_new_head = bool(missing) or is_other
        return Loaded(model, tokenizer, task, names, settings.name, precision=precision, has_new_head=has_new_head)


def load_trained(folder: str | Path, *, precision: Wish = "auto") -> Loaded:
    """A finished model, ready to answer: a plain transformers folder, or a PEFT adapter with its base.

    `auto` takes the precision the card names, so that answers equal those the run recorded; without a card the
    one this machine is good at. `folder` may also be a run folder, `tunesmith/base` or a hub id.

    Raises:
        UserError: No such model, a damaged one, or an adapter whose base is not the one it was trained on.
    """
    name = str(folder)
    source = resolve(name)
    card = read_card(source) if isinstance(source, Path) else {}
    if precision == "auto":
        precision = card.get("precision") or preferred_precision("auto")[0]
    if isinstance(source, Path) and (source / ADAPTER_CONFIG).is_file():
        return _load_adapter_folder(source, name, card, precision)
    opened = Opened(source, name)
    config = opened.config()
    task = card.get("task") or infer_task(config, name)
    check_task(config, task, name)
    tokenizer = opened.tokenizer()
    check_vocabulary(config, tokenizer, name)
    model, _ = opened.model(config, task, _dtype(precision), is_strict=bool(card))
    labels = tuple(card.get("labels") or ()) or (labels_of(config) if task in LABELLED else ())
    return Loaded(model.to(device()), tokenizer, task, labels, name, card, precision)


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of a base model, or of the base under an adapter that has none; with a padding token set.

    Raises:
        UserError: No such model, or the folder has no tokenizer.
    """
    source, name, revision = resolve(settings.name), settings.name, settings.revision
    if isinstance(source, Path) and is_adapter(source) and not any(source.glob("*token*")):
        source, name, revision = root_of(source, name)  # as peft alone saves it
    return Opened(source, name, revision, settings.trust_remote_code).tokenizer()


def _to_go_on(
    folder: Path,
    settings: ModelSettings,
    task: Task,
    labels: Sequence[str],
    problem: Problem,
    precision: Precision,
    seed: int,
) -> Loaded:
    """The base under a finished adapter, which `Loaded.attach` puts on it to train on."""
    card = read_card(folder)
    recorded = card["base"]
    _base_of(recorded["name"], recorded, settings.name)
    below = settings.model_copy(update={"name": recorded["name"], "revision": recorded.get("revision") or "main"})
    base = load_base(
        below,
        task,
        labels=labels or tuple(card.get("labels") or ()),
        problem=problem,
        trains_base_weights=False,
        precision=precision,
        seed=seed,
    )
    tokenizer = load_tokenizer(settings) if any(folder.glob("*token*")) else base.tokenizer
    return replace(base, tokenizer=tokenizer, has_new_head=False, adapter=folder)


def _load_adapter_folder(folder: Path, name: str, card: Mapping[str, Any], precision: Precision) -> Loaded:
    from peft import PeftConfig

    from tunesmith.models.bottleneck import register

    register()
    try:
        peft_config = PeftConfig.from_pretrained(str(folder))
    except (*LOADING_FAULTS, TypeError) as fault:
        raise UserError(f"the adapter cannot be read: {first_line(fault)}.", code="bad_adapter", where=name) from None
    recorded = card.get("base") or {}
    base_name = str(recorded.get("name") or peft_config.base_model_name_or_path or "")
    if not base_name:
        raise UserError("the adapter does not say which base it belongs to.", code="no_base", where=name)
    base_source = _base_of(base_name, recorded, name)
    tasks: dict[str, Task] = {"SEQ_2_SEQ_LM": "seq2seq", "SEQ_CLS": "classify", "TOKEN_CLS": "tag"}
    task: Task = card.get("task") or tasks.get(str(peft_config.task_type), "causal")
    with as_plain(base_source, base_name) as plain:
        opened = Opened(plain, base_name, recorded.get("revision") or "main")
        config = opened.config()
        check_task(config, task, base_name)
        has_tokenizer = any(folder.glob("*token*"))
        tokenizer = (Opened(folder, name) if has_tokenizer else opened).tokenizer()
        check_vocabulary(config, tokenizer, base_name)
        labels = tuple(card.get("labels") or ()) or (labels_of(config) if task in LABELLED else ())
        if task in LABELLED:
            set_labels(config, labels, tokenizer, card.get("problem") or "single_label_classification", task)
        kind: Quantize = card.get("quantize") or "none"
        check_quantize(kind, None, trains_base_weights=False)
        model, _ = opened.model(config, task, _dtype(precision), may_lack_head=task in LABELLED, quantize=kind)
    model = attach_adapter(model.to(device()), folder, is_trainable=False)
    return Loaded(model, tokenizer, task, labels, name, card, precision)


def _base_of(base_name: str, recorded: Mapping[str, str], name: str) -> str | Path:
    try:
        source = resolve(base_name)
    except UserError as fault:
        raise UserError(
            f'its base model "{base_name}" was not found: {fault.message}',
            code="no_base",
            where=name,
            remedy="Start where the run was started, or put the base back in its place.",
        ) from None
    expected = recorded.get("sha256", "")
    if expected and isinstance(source, str):
        raise UserError(
            f'its base "{base_name}" was a folder and is not there now.',
            code="no_base",
            where=name,
            remedy="Start where the run was started, or put the base back in its place.",
        )
    found = base_record(base_name)["sha256"] if expected else ""
    if expected != found:
        raise UserError(
            f'the adapter was trained on "{base_name}" with SHA-256 {expected[:12]}…, but "{base_name}" here has '
            f"{found[:12]}….",
            code="wrong_base",
            where=name,
            remedy="Put back the base it was trained on, or train again.",
        )
    return source


def _dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
