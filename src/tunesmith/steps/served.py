"""Finished models under the names they are served by: found, verified, loaded, and tried on their probes.

Used by `serve` and `chat`. A model that does not answer its probes as it was trained to is refused.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Warning
from tunesmith.core.home import Home
from tunesmith.core.publish import MANIFEST, verify
from tunesmith.core.records import Message
from tunesmith.core.store import Store, Version, split_reference
from tunesmith.recipe import GenerateSettings

if TYPE_CHECKING:
    from tunesmith.models.load import Loaded
    from tunesmith.models.sample import Piece, Sampling
    from tunesmith.models.sharing import SharedBases

PROBES = "probes.json"
Loading = Callable[[], AbstractContextManager[None]]


class Wish(Protocol):
    """What a caller may say about sampling; None leaves it to the model's own settings."""

    @property
    def temperature(self) -> float | None: ...

    @property
    def top_p(self) -> float | None: ...

    @property
    def presence_penalty(self) -> float | None: ...

    @property
    def frequency_penalty(self) -> float | None: ...

    @property
    def stops(self) -> tuple[str, ...]: ...

    @property
    def num_logprobs(self) -> int | None: ...


@dataclass(frozen=True)
class Source:
    """Where a model to open lies, before anything is loaded."""

    reference: str
    """As the user typed it."""
    name: str
    path: str
    """A folder, or a hub id."""
    version: Version | None = None

    @property
    def key(self) -> str:
        """What two references to the same model share."""
        return self.version.reference if self.version else self.path


@dataclass(frozen=True)
class Served:
    """A model that answers, under its names."""

    name: str
    version: int | None
    loaded: Loaded
    created: int
    aliases: tuple[str, ...] = ()
    has_plain_name: bool = True
    """Whether the name alone, without alias or number, means this one."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def reference(self) -> str:
        """The name that says exactly which one answered."""
        return self.name if self.version is None else f"{self.name}:{self.version}"

    @property
    def names(self) -> tuple[str, ...]:
        """All names that callers may use."""
        plain = (self.name,) if self.has_plain_name else ()
        aliases = tuple(f"{self.name}@{alias}" for alias in self.aliases)
        return tuple(dict.fromkeys((*plain, self.reference, *aliases)))

    @property
    def listed(self) -> tuple[str, ...]:
        """The names that a listing shows: without the aliases."""
        return tuple(name for name in self.names if "@" not in name)

    @property
    def base(self) -> str:
        """The base model's name; of a local folder only its last part."""
        name = str((self.loaded.card.get("base") or {}).get("name") or "")
        return Path(name).name if Path(name).is_dir() or name.startswith((".", "/", "~")) else name

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on a base."""
        return hasattr(self.loaded.model, "peft_config")

    @property
    def can_chat(self) -> bool:
        """Whether it answers conversations (a model from source to target does not)."""
        return self.loaded.task == "causal"

    @cached_property
    def context_length(self) -> int:
        """Prompt and answer together, in tokens."""
        return self.loaded.context

    @cached_property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return int(self.loaded.model.config.get_text_config().vocab_size)

    @cached_property
    def generate(self) -> GenerateSettings:
        """How it answers when the caller does not say: as it was trained to, else as its makers wrote down."""
        if self.loaded.card.get("generate"):
            return GenerateSettings.model_validate(self.loaded.card["generate"])
        config = self.loaded.model.generation_config
        return GenerateSettings(
            max_new_tokens=config.max_new_tokens or self.context_length,
            temperature=(config.temperature or 1.0) if config.do_sample else 0.0,
            top_p=(config.top_p or 1.0) if config.do_sample else 1.0,
        )

    def room(self, num_prompt_tokens: int) -> int:
        """The most tokens that may follow the prompt; below 1 where it does not fit."""
        if self.loaded.task == "seq2seq":  # the answer has positions of its own
            return self.context_length - 1 if num_prompt_tokens <= self.context_length else 0
        return self.context_length - num_prompt_tokens

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The conversation's tokens, with the opening of the answer."""
        from tunesmith.data.template import encode_prompt

        with self._lock:
            return encode_prompt(self.loaded.tokenizer, messages)[1]

    def encode_text(self, text: str) -> list[int]:
        """A plain prompt's tokens; a decoder that was trained here saw texts without special tokens before them."""
        has_special = not (self.loaded.card and self.can_chat)
        with self._lock:
            return list(self.loaded.tokenizer(text, add_special_tokens=has_special, verbose=False)["input_ids"])

    def text_of(self, prompt: str | Sequence[int]) -> str:
        """A prompt as text."""
        return prompt if isinstance(prompt, str) else str(self.loaded.tokenizer.decode(list(prompt)))

    def sampling(self, wish: Wish, *, max_new_tokens: int, seed: int) -> Sampling:
        """The caller's wishes over the model's own settings."""
        from tunesmith.models.sample import Sampling

        own = self.generate
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=own.temperature if wish.temperature is None else wish.temperature,
            top_p=own.top_p if wish.top_p is None else wish.top_p,
            seed=seed % 2**63,
            stop=wish.stops,
            presence_penalty=wish.presence_penalty or 0.0,
            frequency_penalty=wish.frequency_penalty or 0.0,
            top_logprobs=wish.num_logprobs,
        )

    def opener(self, prompt: Sequence[int], sampling: Sampling) -> Callable[[], Generator[Piece, None, None]]:
        """A function that begins an answer; each step of what it returns computes one token."""
        from tunesmith.models.sample import stream

        loaded = self.loaded
        return lambda: stream(loaded.model, loaded.tokenizer, prompt, sampling)


def find_source(home: Home, store: Store, reference: str) -> Source:
    """Where the model of a reference lies: a run folder, a model folder, a registered version, or a hub id.

    Raises:
        UserError: There is nothing of that name; the nearest are said.
    """
    path = Path(reference).expanduser()
    if path.is_dir() or "/" in reference or reference.startswith((".", "~")):
        name = path.resolve().name if path.is_dir() else reference
        return Source(reference, name, reference)
    run = home.runs / reference
    name = split_reference(reference)[0]
    if name not in store.names() and run.is_dir():
        return Source(reference, reference, str(run))
    version = store.version(reference)
    return Source(reference, version.name, str(version.model), version)


def open_model(
    source: Source,
    bases: SharedBases,
    *,
    emit: Emit,
    step: str,
    loading: Loading = nullcontext,
) -> Served:
    """Verify, load and try one model; `loading` is held around the loading alone.

    Raises:
        UserError: It is damaged, of the wrong kind, or does not answer as it was trained to.
    """
    folder = _model_folder(source)
    if source.version is not None:
        verify(source.version.folder)
    elif folder is not None and (folder / MANIFEST).is_file():
        verify(folder)
    try:
        with loading():
            loaded = bases.load(source.path)
    except UserError as fault:
        if source.version is None or fault.where == "":
            raise
        raise _at(fault, source.reference) from None
    if loaded.task not in ("causal", "seq2seq"):
        kind = "a masked language model" if loaded.task == "mask" else "a classifier"
        raise UserError(
            f"this is {kind}, which writes no text: it can neither chat nor be served.",
            code="cannot_serve",
            where=source.reference,
            remedy="Score it with `tunesmith evaluate`.",
        )
    loaded = replace(loaded, name=source.reference)
    _replay(source, folder, loaded, emit, step)
    version = source.version
    created = int(datetime.fromisoformat(version.at).timestamp()) if version else int(time.time())
    return Served(
        name=source.name,
        version=version.number if version else None,
        loaded=loaded,
        created=created,
        aliases=version.aliases if version else (),
    )


def name_models(opened: Mapping[str, Served], store: Store) -> tuple[Served, ...]:
    """The models opened under these references, each with its aliases of now; one of them gets the plain name.

    An alias that a reference was written with always stays with what was opened under it.
    """
    served = {one.reference: one for one in opened.values()}
    named = []
    for one in served.values():
        if one.version is None:
            named.append(one)
            continue
        moved = {alias for alias, number in store.aliases(one.name).items() if number == one.version}
        typed = {reference.partition("@")[2] for reference, under in opened.items() if under is one} - {""}
        siblings = [other.version for other in served.values() if other.name == one.name and other.version]
        meant = store.version(one.name).number
        has_plain_name = one.version == (meant if meant in siblings else max(siblings))
        named.append(replace(one, aliases=tuple(sorted(moved | typed)), has_plain_name=has_plain_name))
    return tuple(named)


def _model_folder(source: Source) -> Path | None:
    from tunesmith.models.source import resolve

    folder = resolve(source.path)
    return folder if isinstance(folder, Path) else None


def _replay(source: Source, folder: Path | None, loaded: Loaded, emit: Emit, step: str) -> None:
    probes = _read_probes(folder, source.reference)
    if not probes.get("probes"):
        if source.version is not None:
            raise UserError(
                "the version has no probes, so it cannot be shown to answer as it was trained to.",
                code="no_probes",
                where=source.reference,
                remedy="Train and register it again.",
            )
        emit(Warning(step, "no_probes", f"{source.reference} has no probe answers that it could be checked against"))
        return
    from tunesmith.models.parity import replay

    report = replay(loaded, probes)
    if not report.is_equal:
        raise UserError(
            f"the model does not answer as it was trained to; it differs in the {report.stage}: {report.message}.",
            code="parity",
            where=source.reference,
            remedy="Serve an earlier version, or train again; compare `environment.json` with this machine's packages.",
        )


def _read_probes(folder: Path | None, reference: str) -> dict[str, Any]:
    file = folder / PROBES if folder else None
    if file is None or not file.is_file():
        return {}
    try:
        probes = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        probes = None
    if not isinstance(probes, dict):
        raise UserError(f"its {PROBES} cannot be read.", code="damaged", where=reference, remedy="Make it again.")
    return probes


def _at(fault: UserError, where: str) -> UserError:
    return UserError(fault.message, code=fault.code, where=where, remedy=fault.remedy, frame=fault.frame)
