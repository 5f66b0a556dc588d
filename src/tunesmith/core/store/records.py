"""What the store gives back: frozen records, free of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Value = bool | int | float | str
"""A judgement: thumbs as a bool, "up" or "down"; or any number or word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A number under a name, with where its files are and everything that made it."""

    name: str
    number: int
    content_hash: str
    """SHA-256 over model/, recipe.yaml and data.json: what was trained, from what."""
    folder: Path
    lineage: Mapping[str, Any]
    """base, data_sha256, recipe, fingerprint, code_version, packages, seed, machine, scores, parent, run."""
    who: str
    at: str
    aliases: tuple[str, ...] = ()
    is_new: bool = False
    """Whether this very call registered it; False where the same content was there already."""

    @property
    def reference(self) -> str:
        """`manual:4`, as every command takes it."""
        return f"{self.name}:{self.number}"

    @property
    def model(self) -> Path:
        """The folder that transformers or peft open."""
        return self.folder / "model"

    @property
    def scores(self) -> tuple[Mapping[str, Any], ...]:
        """The held-out scores at training time; the first is the one that decides."""
        return tuple(self.lineage.get("scores") or ())

    def to_dict(self) -> dict[str, Any]:
        """The version as `--json` and the HTTP API give it; no path."""
        return {
            "name": self.name,
            "version": self.number,
            "reference": self.reference,
            "aliases": list(self.aliases),
            "content_hash": self.content_hash,
            "who": self.who,
            "at": self.at,
            "lineage": dict(self.lineage),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """One line of an alias' history. `previous` is None for its first."""

    name: str
    alias: str
    previous: int | None
    number: int
    kind: Literal["promote", "rollback"]
    who: str
    at: str
    gates: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The move as `--json` and the HTTP API give it."""
        return {
            "name": self.name,
            "alias": self.alias,
            "from": self.previous,
            "to": self.number,
            "kind": self.kind,
            "who": self.who,
            "at": self.at,
            "gates": [dict(gate) for gate in self.gates],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One answered request. `messages` and `answers` are None unless the user turned the keeping of text on."""

    id: str
    model: str
    """The registered name, or what else was served."""
    version: int | None = None
    endpoint: str = ""
    status: int = 200
    finish_reason: str = ""
    num_choices: int = 1
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    answers: tuple[str, ...] | None = None
    at: str = ""
    """UTC; filled by the store where empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRow:
    """One rater's judgement of one answer; given again it replaces the former."""

    request: str
    name: str = "thumbs"
    value: Value = True
    choice: int = 0
    comment: str = ""
    correction: str = ""
    rater: str = ""
    at: str = ""
    """UTC, of the latest change; filled by the store."""

    def to_dict(self) -> dict[str, Any]:
        """The judgement as `--json` and the HTTP API give it."""
        return {
            "request_id": self.request,
            "choice": self.choice,
            "name": self.name,
            "value": self.value,
            "comment": self.comment,
            "correction": self.correction,
            "rater": self.rater,
            "at": self.at,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work that outlives a request: a training started over HTTP."""

    id: str
    kind: str
    state: Literal["queued", "running", "finished", "failed", "cancelled"] = "queued"
    progress: float = 0.0
    """From 0 to 1."""
    values: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""
    changed_at: str = ""
