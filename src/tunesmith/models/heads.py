"""What a model with a head of classes answers: a class, a set of classes, a number, or a tag for each word.

Legend: B rows, T tokens, C outputs of the head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example, LabelExample, MultiLabelExample, NumberExample, Outcome, TagExample
from tunesmith.data.pack import bucket
from tunesmith.data.tagging import TagPiece, tag_pieces
from tunesmith.models.load import Loaded
from tunesmith.models.memory import Shrinking, padded_tokens
from tunesmith.objectives.base import Problem, padded

TOKENS_AT_ONCE = 4096
"""Tokens of one batch, padding included."""
NO_TAG = "O"
"""The tag of a word that has no token, as a control character alone."""
_KINDS: dict[str, tuple[type[Example], str]] = {
    "single_label_classification": (LabelExample, "one class"),
    "multi_label_classification": (MultiLabelExample, "a set of classes"),
    "regression": (NumberExample, "a number"),
    "tag": (TagExample, "a tag for each word"),
}


def problem_of(loaded: Loaded) -> Problem:
    """What the outputs of a classifier mean; where its configuration does not say, one output is a number."""
    said: Problem | None = getattr(loaded.model.config, "problem_type", None)
    return said or ("regression" if len(loaded.labels) == 1 else "single_label_classification")


@torch.inference_mode()
def classify(
    loaded: Loaded,
    examples: Sequence[Any],
    on_progress: Callable[[int, int], None],
    *,
    max_length: int,
    batches: Shrinking | None = None,
) -> list[Outcome]:
    """One outcome per example, in order; `seconds` is a row's share of its batch's time.

    `batches` remembers how large they may be where memory ran out before.

    Raises:
        UserError: The model has no head of classes, or its head gives something else than the rows have.
    """
    _refuse_unfit(loaded, examples)
    if loaded.task == "tag":
        return _tag(loaded, examples, on_progress, max_length, batches or Shrinking())
    encoded = [_encode(loaded, example, max_length) for example in examples]
    found: dict[int, Outcome] = {}
    lengths = [len(one["input_ids"]) for one in encoded]

    def run(group: list[int]) -> tuple[Tensor, float]:
        return _forward(loaded, [encoded[place] for place in group])

    found_by_group = (batches or Shrinking()).each(bucket(lengths, TOKENS_AT_ONCE), run, cost=padded_tokens(lengths))
    for group, (logits_BC, seconds) in found_by_group:
        for place, row_C in zip(group, logits_BC, strict=True):
            size = len(encoded[place]["input_ids"])
            found[place] = _outcome(loaded, examples[place], row_C, size, seconds / len(group))
        on_progress(len(found), len(examples))
    return [found[place] for place in range(len(examples))]


def set_above_half(labels: Sequence[str], row_C: Tensor) -> tuple[str, ...]:
    """The classes whose probability is above one half, sorted."""
    return tuple(sorted(label for label, value in zip(labels, row_C.tolist(), strict=True) if value > 0))


def tags_of(loaded: Loaded, pieces: Sequence[TagPiece], logits: Sequence[Tensor], num_words: int) -> tuple[str, ...]:
    """The likeliest tag of each word, from the logits [T, C] of its pieces."""
    missing = NO_TAG if NO_TAG in loaded.labels else loaded.labels[0]
    tags = [missing] * num_words
    for piece, logits_TC in zip(pieces, logits, strict=True):
        best_T = logits_TC.argmax(-1).tolist()
        for word, start in enumerate(piece.starts, piece.first_word):
            if start >= 0:
                tags[word] = loaded.labels[best_T[start]]
    return tuple(tags)


def number_text(value: float) -> str:
    """A number of a head as text: nine digits, which an fp32 number survives."""
    return f"{value:.9g}"


def _refuse_unfit(loaded: Loaded, examples: Sequence[Any]) -> None:
    if loaded.task not in ("classify", "tag"):
        raise UserError(
            "the model has no head for classes.",
            code="wrong_task",
            where=loaded.name,
            remedy="Train one (`objective: classification`, `token_classification`, …), or score other metrics.",
        )
    kind, gives = _KINDS["tag" if loaded.task == "tag" else problem_of(loaded)]
    unfit = next((example for example in examples if not isinstance(example, kind)), None)
    if unfit is not None:
        has = next(text for other, text in _KINDS.values() if isinstance(unfit, other))
        raise UserError(
            f"the model gives {gives}, and the row has {has}.",
            code="wrong_task",
            where=str(unfit.origin),
            remedy="Name rows of the kind it was trained on, or set data.format.",
        )


def _encode(loaded: Loaded, example: Any, max_length: int) -> Mapping[str, Sequence[int]]:
    texts = (example.text, example.text_pair or None)
    encoded: Mapping[str, Sequence[int]] = loaded.tokenizer(
        *texts, truncation=True, max_length=max_length, verbose=False
    )
    return encoded


def _forward(loaded: Loaded, encoded: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Tensor, float]:
    """Logits in fp32 of a padded batch, on the processor, and the seconds it took."""
    started = time.perf_counter()
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded[0]]
    fillers = {"input_ids": loaded.tokenizer.pad_token_id}
    inputs = {
        name: padded([one[name] for one in encoded], fillers.get(name, 0)).to(loaded.model.device) for name in names
    }
    logits = loaded.model(**inputs).logits.float().cpu()
    return logits, time.perf_counter() - started


def _outcome(loaded: Loaded, example: Any, row_C: Tensor, num_tokens: int, seconds: float) -> Outcome:
    problem = problem_of(loaded)
    shared: dict[str, Any] = {
        "origin": str(example.origin),
        "prompt": example.text,
        "fields": example.fields,
        "num_prompt_tokens": num_tokens,
        "seconds": seconds,
    }
    if problem == "regression":
        return Outcome(answer=number_text(row_C[0].item()), reference=number_text(example.value), **shared)
    share_C = row_C.sigmoid() if problem == "multi_label_classification" else row_C.softmax(-1)
    by_label = dict(zip(loaded.labels, share_C.tolist(), strict=True))
    if problem == "multi_label_classification":
        given = set_above_half(loaded.labels, row_C)
        return Outcome(
            answer=", ".join(given),
            reference=", ".join(example.labels),
            answer_labels=given,
            reference_labels=example.labels,
            probabilities=by_label,
            **shared,
        )
    best = max(by_label, key=lambda label: by_label[label])
    return Outcome(answer=best, reference=example.label, probabilities=by_label, **shared)


def _tag(
    loaded: Loaded,
    examples: Sequence[TagExample],
    on_progress: Callable[[int, int], None],
    max_length: int,
    batches: Shrinking,
) -> list[Outcome]:
    pieces = [tag_pieces(example.words, loaded.tokenizer, max_length=max_length) for example in examples]
    flat = [(number, piece) for number, own in enumerate(pieces) for piece in own]
    logits: dict[int, Tensor] = {}
    seconds = [0.0] * len(examples)
    lengths = [len(piece.input_ids) for _, piece in flat]

    def run(group: list[int]) -> tuple[Tensor, float]:
        return _forward(loaded, [_inputs(flat[place][1]) for place in group])

    groups = bucket(lengths, TOKENS_AT_ONCE)
    for group, (logits_BTC, taken) in batches.each(groups, run, cost=padded_tokens(lengths)):
        longest = max(lengths[place] for place in group)
        for place, logits_TC in zip(group, logits_BTC[:, -longest:], strict=True):
            logits[place] = logits_TC
            seconds[flat[place][0]] += taken / len(group)
        on_progress(min(len(logits), len(examples)), len(examples))
    rows = _by_example(flat, logits)
    outcomes = []
    for number, example in enumerate(examples):
        given = tags_of(loaded, pieces[number], next(rows), len(example.words))
        outcomes.append(
            Outcome(
                origin=str(example.origin),
                prompt=example.text,
                answer=" ".join(given),
                reference=" ".join(example.tags),
                answer_labels=given,
                reference_labels=example.tags,
                fields=example.fields,
                num_prompt_tokens=sum(len(piece.input_ids) for piece in pieces[number]),
                seconds=seconds[number],
            )
        )
    return outcomes


def _inputs(piece: TagPiece) -> Mapping[str, Sequence[int]]:
    inputs: dict[str, Sequence[int]] = {
        "input_ids": piece.input_ids,
        "attention_mask": (1,) * len(piece.input_ids),
    }
    return {**inputs, "token_type_ids": piece.token_type_ids} if piece.token_type_ids else inputs


def _by_example(flat: Sequence[tuple[int, TagPiece]], logits: Mapping[int, Tensor]) -> Iterator[list[Tensor]]:
    """The logits of each example's pieces, example by example."""
    current: list[Tensor] = []
    for place, (number, _) in enumerate(flat):
        if place and flat[place - 1][0] != number:
            yield current
            current = []
        current.append(logits[place])
    yield current
