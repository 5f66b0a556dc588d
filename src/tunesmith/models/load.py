"""Load models and tokenizers: strictly, offline where the name is a folder, and without running foreign code.

A layer that the checkpoint lacks would be random; that is an error, except for the fresh head of a classifier.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto import modeling_auto

from tunesmith.core.errors import UserError, unknown_name
from tunesmith.models.adapters import attach_adapter
from tunesmith.models.anatomy import head_modules
from tunesmith.models.machine import Precision, Wish, device, preferred_precision
from tunesmith.models.quiet import quiet
from tunesmith.models.source import ADAPTER_CONFIG, base_record, read_card, resolve
from tunesmith.models.weights import own_memory
from tunesmith.objectives.base import Task
from tunesmith.recipe import ModelSettings

__all__ = [
    "Loaded",
    "base_record",
    "check_task",
    "context_length",
    "family",
    "load_base",
    "load_tokenizer",
    "load_trained",
    "random_model",
    "resolve",
]

Family = Literal["encoder", "decoder", "encoder-decoder"]
NO_POSITIONS = 512
"""Context of models with relative positions only (T5), which were trained on rows of 512 tokens."""
_AUTO = {"causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}
_CLASSIFY = "AutoModelForSequenceClassification"
_OFFSET = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm", "xmod"}
"""These begin counting positions after the padding token's index, so that many positions are never used."""
_PADS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
_LOADING_FAULTS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


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

    @property
    def context(self) -> int:
        """The longest row in tokens."""
        return context_length(self.model.config)


def load_base(
    settings: ModelSettings,
    task: Task,
    *,
    labels: Sequence[str] = (),
    trains_base_weights: bool,
    precision: Precision,
    seed: int,
) -> Loaded:
    """The model to train, on the processor, in evaluation mode.

    Weights are fp32 where they train or where `precision` says so, otherwise (frozen) bf16. A finished adapter
    run as base is merged first. `seed` decides every weight that no checkpoint gives.

    Raises:
        UserError: No such model, the wrong kind for the task (said before weights are read), a checkpoint with
            holes, or a vocabulary smaller than the tokenizer's.
    """
    tokenizer = load_tokenizer(settings)
    if settings.config:
        if not trains_base_weights:
            raise UserError(
                "this method leaves the base's weights as they are, and `model.config` makes them random.",
                code="random_base",
                remedy="Use `method: full`, or drop `model.config`.",
            )
        model = random_model(settings.config, tokenizer, task, labels=labels, seed=seed)
        return Loaded(model, tokenizer, task, tuple(labels), settings.name, precision=precision)
    source = resolve(settings.name)
    dtype = torch.bfloat16 if precision == "bf16" and not trains_base_weights else torch.float32
    if isinstance(source, Path) and (source / ADAPTER_CONFIG).is_file():
        trained = load_trained(source, precision="fp32")
        _require_task(trained, task, labels, settings.name)
        with quiet():
            model = trained.model.merge_and_unload(safe_merge=True).to(device="cpu", dtype=dtype)
        model.name_or_path = settings.name
        return Loaded(model, tokenizer, task, trained.labels, settings.name, precision=precision)
    opened = _Opened(source, settings.name, settings.revision, settings.trust_remote_code)
    config = opened.config()
    check_task(config, task, settings.name)
    check_vocabulary(config, tokenizer, settings.name)
    known = _labels_of(config)
    names = tuple(labels) or (known if task == "classify" else ())
    if task == "classify":
        _set_labels(config, names, tokenizer)
    with _seeded(seed):
        model, missing = opened.model(config, task, dtype, may_lack_head=task == "classify")
        if task == "classify" and not missing and names != known:
            _renew_head(model)
    return Loaded(model, tokenizer, task, names, settings.name, precision=precision)


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
    opened = _Opened(source, name)
    config = opened.config()
    task = card.get("task") or infer_task(config, name)
    check_task(config, task, name)
    tokenizer = opened.tokenizer()
    check_vocabulary(config, tokenizer, name)
    model, _ = opened.model(config, task, _dtype(precision), is_strict=bool(card))
    labels = tuple(card.get("labels") or ()) or (_labels_of(config) if task == "classify" else ())
    return Loaded(model.to(device()), tokenizer, task, labels, name, card, precision)


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of a base model, with a padding token set.

    Raises:
        UserError: No such model, or the folder has no tokenizer.
    """
    source = resolve(settings.name)
    return _Opened(source, settings.name, settings.revision, settings.trust_remote_code).tokenizer()


def random_model(
    values: Mapping[str, Any], tokenizer: Any, task: Task, *, labels: Sequence[str] = (), seed: int
) -> Any:
    """A model with random fp32 weights from a transformers configuration.

    What `values` leaves out about tokens (vocabulary size, padding, end) comes from the tokenizer.

    Raises:
        UserError: `model_type` is missing or unknown, a key has no effect, or the sizes do not fit together.
    """
    config = _make_config(values, tokenizer)
    place = f"model.config ({values['model_type']})"
    check_task(config, task, place)
    check_vocabulary(config, tokenizer, place)
    if task == "classify":
        _set_labels(config, tuple(labels), tokenizer)
    try:
        with _seeded(seed), quiet():
            return _auto(task).from_config(config, dtype=torch.float32).eval()
    except _LOADING_FAULTS as fault:
        raise UserError(
            f"the sizes do not fit together: {_first_line(fault)}.", code="bad_config", where=place
        ) from None


def context_length(config: Any) -> int:
    """The longest row in tokens that the model has positions for."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or NO_POSITIONS
    if text.model_type in _OFFSET:
        longest -= (text.pad_token_id or 0) + 1
    return int(longest)


def family(config: Any) -> Family:
    """What kind of model a configuration makes, told from transformers' own tables."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    is_masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "decoder" if is_causal and not (is_masked and not getattr(config, "is_decoder", False)) else "encoder"


def infer_task(config: Any, name: str) -> Task:
    """The task a checkpoint was saved for.

    Raises:
        UserError: It is a bare encoder, which answers nothing.
    """
    saved = (getattr(config, "architectures", None) or [""])[0]
    if saved.endswith("ForSequenceClassification"):
        return "classify"
    kind = family(config)
    if kind == "encoder":
        raise UserError(
            f"{saved or config.model_type} is an encoder without a trained head; it cannot answer.",
            code="wrong_task",
            where=name,
            remedy="Train it first, with `objective: classification`.",
        )
    return "seq2seq" if kind == "encoder-decoder" else "causal"


def check_task(config: Any, task: Task, name: str) -> None:
    """Refuse a model that cannot do the task, from its configuration alone.

    Raises:
        UserError: The model is of another kind.
    """
    kind = family(config)
    needed = {"causal": "decoder", "seq2seq": "encoder-decoder"}.get(task)
    fitting = {"encoder": "classification", "decoder": "sft or clm", "encoder-decoder": "seq2seq"}[kind]
    if needed and kind != needed:
        raise UserError(
            f"the task needs {_a(needed)}, and this model ({config.model_type}) is {_a(kind)}.",
            code="wrong_task",
            where=name,
            remedy=f"Choose another model, or an objective for it: {fitting}.",
        )
    if task == "classify" and config.model_type not in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"transformers has no classifier for {config.model_type}.",
            code="wrong_task",
            where=name,
            remedy=f"Choose another model, or an objective for it: {fitting}.",
        )


def check_vocabulary(config: Any, tokenizer: Any, name: str) -> None:
    """Refuse a model whose table of embeddings is smaller than the tokenizer's highest token.

    Raises:
        UserError: It is.
    """
    size = getattr(config.get_text_config(), "vocab_size", None)
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size is not None and needed > size:
        raise UserError(
            f"the tokenizer has {needed:,} tokens and the model only {size:,} embeddings.",
            code="vocabulary_mismatch",
            where=name,
            remedy="Use the tokenizer that belongs to the model.",
        )


@dataclass(frozen=True)
class _Opened:
    """One place to read from, with the faults of transformers turned into ours."""

    source: str | Path
    name: str
    revision: str = "main"
    trust_remote_code: bool = False

    def config(self) -> Any:
        return self._call(AutoConfig.from_pretrained)

    def tokenizer(self) -> Any:
        source = self.source
        if isinstance(source, Path) and not list(source.glob("*token*")) and not list(source.glob("vocab*")):
            remedy = "Save the tokenizer into the folder too (`tokenizer.save_pretrained`)."
            raise UserError("the folder has no tokenizer.", code="no_tokenizer", where=self.name, remedy=remedy)
        tokenizer = self._call(AutoTokenizer.from_pretrained)
        if tokenizer.pad_token is None:
            vocabulary = tokenizer.get_vocab()
            tokenizer.pad_token = next((token for token in _PADS if token in vocabulary), tokenizer.eos_token)
        if tokenizer.pad_token is None:
            remedy = "Set `pad_token` in its tokenizer_config.json to a token that text never holds."
            raise UserError(
                "the tokenizer has no token for padding and none for the end.",
                code="no_pad_token",
                where=self.name,
                remedy=remedy,
            )
        return tokenizer

    def model(
        self, config: Any, task: Task, dtype: torch.dtype, *, may_lack_head: bool = False, is_strict: bool = False
    ) -> tuple[Any, set[str]]:
        """The model and the keys of its fresh head; only `may_lack_head` allows any, or a head of another shape."""
        model, info = self._call(
            _auto(task).from_pretrained,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        wrong_shape = {key for key, *_ in info["mismatched_keys"]}
        missing = set(info["missing_keys"]) | wrong_shape
        heads = tuple(f"{name}." for name in head_modules(model)) if may_lack_head else ()
        holes = sorted(key for key in missing if not (heads and key.startswith(heads)))
        if holes:
            shown = ", ".join(holes[:3]) + (f" and {len(holes) - 3} more" if len(holes) > 3 else "")
            raise UserError(
                f"the checkpoint lacks {shown}, which would be random.",
                code="incomplete_model",
                where=self.name,
                remedy="The weights are not of this architecture, or are damaged; fetch the model again.",
            )
        if is_strict and info["unexpected_keys"]:
            shown = ", ".join(sorted(info["unexpected_keys"])[:3])
            raise UserError(
                f"the checkpoint holds weights that the model has no place for: {shown}.",
                code="unexpected_weights",
                where=self.name,
                remedy="The folder was changed after training; use the run's own model folder.",
            )
        own_memory(model)
        model.name_or_path = self.name  # peft writes it into adapter_config.json: what was typed, never a local path
        return model.eval(), missing

    def _call(self, function: Any, **settings: Any) -> Any:
        try:
            with quiet():
                return function(
                    self.source, revision=self.revision, trust_remote_code=self.trust_remote_code, **settings
                )
        except _LOADING_FAULTS as fault:
            raise self._fault(fault) from fault

    def _fault(self, fault: Exception) -> UserError:
        reason = _first_line(fault)
        if "trust_remote_code" in str(fault):
            return UserError(
                "the model needs code that comes with it.",
                code="remote_code",
                where=self.name,
                remedy="Read that code; if you trust it set `model.trust_remote_code: true`.",
            )
        if isinstance(self.source, str):
            return UserError(
                f"the model cannot be fetched from the hub: {reason}.",
                code="unknown_model",
                where=self.name,
                remedy="Check the name and the network. Offline, name a folder, or the built-in `tunesmith/base`.",
            )
        return UserError(
            f"the model cannot be read: {reason}.",
            code="bad_model",
            where=self.name,
            remedy="Fetch or save the model again.",
        )


def _load_adapter_folder(folder: Path, name: str, card: Mapping[str, Any], precision: Precision) -> Loaded:
    from peft import PeftConfig

    try:
        peft_config = PeftConfig.from_pretrained(str(folder))
    except (*_LOADING_FAULTS, TypeError) as fault:
        raise UserError(f"the adapter cannot be read: {_first_line(fault)}.", code="bad_adapter", where=name) from None
    recorded = card.get("base") or {}
    base_name = str(recorded.get("name") or peft_config.base_model_name_or_path or "")
    if not base_name:
        raise UserError("the adapter does not say which base it belongs to.", code="no_base", where=name)
    base_source = _base_of(base_name, recorded, name)
    tasks: dict[str, Task] = {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq", "SEQ_CLS": "classify"}
    task: Task = card.get("task") or tasks.get(str(peft_config.task_type), "causal")
    if isinstance(base_source, Path) and (base_source / ADAPTER_CONFIG).is_file():
        below = load_trained(base_source, precision="fp32")
        model, tokenizer = below.model.merge_and_unload(safe_merge=True).to(_dtype(precision)), below.tokenizer
        labels = below.labels
    else:
        opened = _Opened(base_source, base_name, recorded.get("revision") or "main")
        config = opened.config()
        check_task(config, task, base_name)
        has_tokenizer = any(folder.glob("*token*"))
        tokenizer = (_Opened(folder, name) if has_tokenizer else opened).tokenizer()
        check_vocabulary(config, tokenizer, base_name)
        labels = tuple(card.get("labels") or ()) or (_labels_of(config) if task == "classify" else ())
        if task == "classify":
            _set_labels(config, labels, tokenizer)
        model, _ = opened.model(config, task, _dtype(precision), may_lack_head=task == "classify")
    with quiet():
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


def _require_task(trained: Loaded, task: Task, labels: Sequence[str], name: str) -> None:
    if trained.task != task or (labels and tuple(labels) != trained.labels):
        raise UserError(
            "the run was trained for another task or other labels; its adapter cannot be continued for this one.",
            code="wrong_task",
            where=name,
            remedy="Start from the base model itself.",
        )


def _a(noun: str) -> str:
    return f"{'an' if noun[0] == 'e' else 'a'} {noun}"


def _auto(task: Task) -> Any:
    return getattr(transformers, _AUTO.get(task, _CLASSIFY))


def _dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _labels_of(config: Any) -> tuple[str, ...]:
    return tuple(config.id2label[index] for index in sorted(config.id2label)) if config.id2label else ()


def _set_labels(config: Any, labels: tuple[str, ...], tokenizer: Any) -> None:
    if len(labels) < 2:
        raise UserError(
            f"a classifier needs at least two labels, not {len(labels)}.",
            code="too_few_labels",
            remedy="Check the label column of your rows.",
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id  # decoders read the class off the last token that is no padding


def _renew_head(model: Any) -> None:
    """Forget a head that was trained for other labels: equal shapes would hide the change."""
    for module in head_modules(model).values():
        for part in module.modules():
            if hasattr(part, "_is_hf_initialized"):
                del part._is_hf_initialized
            for parameter in part.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            model._init_weights(part)


def _make_config(values: Mapping[str, Any], tokenizer: Any) -> Any:
    kind = values.get("model_type")
    if not isinstance(kind, str):
        remedy = "Set it, for example: {model_type: llama, hidden_size: 256, …}."
        raise UserError("`model.config.model_type` is missing.", code="bad_config", remedy=remedy)
    known_kinds = transformers.CONFIG_MAPPING
    if kind not in known_kinds:
        raise unknown_name("model type", kind, known_kinds.keys())
    default = known_kinds[kind]()
    known = {*default.to_dict(), *default.attribute_map, "vocab_size"}
    for key in values:
        if key not in known:
            raise unknown_name("setting of model.config", key, known)
    tokens = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if getattr(default, "is_encoder_decoder", False):
        tokens |= {"decoder_start_token_id": tokenizer.pad_token_id}
        tokens |= {key: None for key in ("forced_bos_token_id", "forced_eos_token_id") if hasattr(default, key)}
    settings = {**tokens, **{key: value for key, value in values.items() if key != "model_type"}}
    try:
        with quiet():
            return known_kinds[kind](**settings)
    except (*_LOADING_FAULTS, TypeError) as fault:
        raise UserError(f"`model.config` does not hold: {_first_line(fault)}.", code="bad_config") from None


def _first_line(fault: Exception) -> str:
    text = str(fault).strip() or type(fault).__name__
    return text.splitlines()[0].rstrip(".")[:300]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
