"""Tiny trainings of any method, architecture and objective, for tests that go over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.events import Emit, silent
from tunesmith.core.plugins import build
from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    Message,
    MultiLabelExample,
    NumberExample,
    Origin,
    PairExample,
    TagExample,
    TextExample,
)
from tunesmith.core.run import RunFolder
from tunesmith.methods.base import Method
from tunesmith.models.configuration import LABELLED, NUMBER
from tunesmith.models.load import Loaded
from tunesmith.models.tiny import tiny
from tunesmith.objectives.base import Features, Objective
from tunesmith.recipe import TrainSettings
from tunesmith.training.encode import Rows, encode_rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop
from tunesmith.training.mixture import Mixture

LABELS = ("no", "yes", "maybe")
WORDS = (
    ("the light is on", "yes"),
    ("wait for the machine", "no"),
    ("empty the water tank and clean it", "maybe"),
    ("press the green button", "no"),
)


def examples(objective: Objective) -> list[Example]:
    """Four rows that the objective trains on."""
    kind = objective.accepts[0]
    origins = [Origin("rows.jsonl", line) for line in range(1, len(WORDS) + 1)]
    return [_MAKERS[kind](origin, *words) for origin, words in zip(origins, WORDS, strict=True)]


def _chat(origin: Origin, text: str, answer: str) -> ChatExample:
    return ChatExample(origin=origin, messages=(Message("user", text), Message("assistant", answer)))


_MAKERS: dict[type[Example], Any] = {
    TextExample: lambda origin, text, answer: TextExample(origin=origin, text=f"{text}: {answer}"),
    ChatExample: _chat,
    LabelExample: lambda origin, text, answer: LabelExample(origin=origin, text=text, label=answer),
    PairExample: lambda origin, text, answer: PairExample(origin=origin, source=text, target=answer),
    MultiLabelExample: lambda origin, text, answer: MultiLabelExample(origin=origin, text=text, labels=(answer,)),
    NumberExample: lambda origin, text, answer: NumberExample(origin=origin, text=text, value=len(answer) / 2),
    TagExample: lambda origin, text, answer: TagExample(
        origin=origin, words=tuple(text.split()), tags=tuple(answer if len(w) > 4 else "no" for w in text.split())
    ),
}


def labels_of(objective: Objective) -> tuple[str, ...]:
    """The class names of the four rows, where there are any."""
    if objective.problem == "regression":
        return (NUMBER,)
    return LABELS if objective.task in LABELLED else ()


def make_learner(method: Method, architecture: str, objective: Objective, *, packing: Any = "auto") -> Learner:
    """A tiny random model with the method attached, as a training has it.

    Raises:
        UserError: The method or the objective refuses the model.
    """
    method.check_task(objective.task)
    model, tokenizer = tiny(architecture, objective.task, labels=labels_of(objective), problem=objective.problem)
    method.check_model(model.config, objective.task)
    loaded = Loaded(model, tokenizer, objective.task, labels_of(objective), "tiny")
    torch.manual_seed(0)
    attached = method.attach(model)
    return Learner.make(loaded, attached, method=method, objective=objective, precision="fp32", packing=packing)


def make_rows(objective: Objective, tokenizer: Any, given: Sequence[Example] | None = None) -> Rows:
    """The four rows, or the given ones, encoded."""
    rows = given or examples(objective)
    return encode_rows(rows, objective, tokenizer, max_length=64, labels=labels_of(objective))[0]


def make_loop(folder: Path, method: Method, architecture: str, objective: str, **settings: Any) -> Loop:
    """A training of the four rows in `folder`; one that began there is gone on with by `restore`."""
    built: Objective = build("objectives", objective)
    learner = make_learner(method, architecture, built)
    rows = make_rows(built, tiny(architecture, built.task)[1])
    wanted = {"steps": 6, "tokens_per_step": 16, "lr": 1e-2, "validations": 3, "patience": 0, "keep": "last"}
    return loop_in(folder, learner, rows, rows, {**wanted, **settings})


def loop_in(
    folder: Path,
    learner: Learner,
    rows: Rows,
    validation: Rows,
    settings: dict[str, Any],
    emit: Emit = silent,
    mixture: Mixture = Mixture(),
) -> Loop:
    """A training in `folder`, which is made with its checkpoints' where it is not there."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return Loop(
        learner,
        rows,
        validation,
        settings=TrainSettings(**settings),
        run=RunFolder(folder),
        seed=5,
        fingerprint="f",
        emit=emit,
        mixture=mixture,
    )


def make_features(objective: Objective, number: int, length: int) -> list[Features]:
    """Rows of so many tokens each, a third of them learnt."""
    ids = tuple(2 + place % 60 for place in range(length))
    if objective.task == "seq2seq":
        target = ids[: length // 3]
        return [Features(ids, target, float(len(target)), target_ids=target) for _ in range(number)]
    if objective.task == "classify":
        return [Features(ids, (0,), 1.0) for _ in range(number)]
    learnt = length // 3
    tag = objective.task == "tag"
    labels = (-100,) * (length - learnt) + ((0,) * learnt if tag else ids[:learnt])
    return [Features(ids, labels, float(learnt)) for _ in range(number)]
