"""What a model is given of a row and what it learns of it, as tokens and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    Message,
    MultiLabelExample,
    NumberExample,
    PairExample,
    PreferenceExample,
    RatedExample,
    TagExample,
    TextExample,
)
from tunesmith.data.repeats import answer_of
from tunesmith.data.template import locate_answers, tokenize_spans

Part = Literal["context", "trained", "rejected", "cut"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a row's text."""

    text: str
    part: Part


@dataclass(frozen=True, slots=True)
class Learnt:
    """A row as the model sees it. Counts are of the whole row; `num_cut` and what is lost follow from the limit."""

    pieces: tuple[Piece, ...]
    num_tokens: int
    num_trained: int
    """Tokens learnt within the limit."""
    num_answer: int
    """Tokens that would be learnt without a limit."""
    num_cut: int
    has_end: bool
    """Whether the last learnt token of the row, its end of turn, is within the limit."""


def learn(example: Example, tokenizer: Any, *, max_length: int) -> Learnt:
    """What is learnt of a row of any kind.

    Raises:
        UserError: As `locate_answers`.
    """
    match example:
        case ChatExample():
            return _of_text(
                tokenizer, *locate_answers(tokenizer, example.messages, tools=example.tools), max_length=max_length
            )
        case TextExample():
            return _of_text(tokenizer, example.text, [(0, len(example.text))], max_length=0)
        case LabelExample() | MultiLabelExample() | NumberExample():
            pair = f"\n{example.text_pair}" if example.text_pair else ""
            given = _of_text(tokenizer, example.text + pair, [], max_length=max_length)
            label = (Piece(" → ", "context"), Piece(answer_of(example) or "(none)", "trained"))
            return Learnt((*given.pieces, *label), given.num_tokens, 1, 1, given.num_cut, True)
        case TagExample():
            given = _of_text(tokenizer, example.text, [], max_length=0)
            return Learnt(_tagged(example), given.num_tokens, len(example.words), len(example.words), 0, True)
        case PairExample():
            source = _of_text(tokenizer, example.source, [], max_length=max_length)
            target = _of_text(tokenizer, example.target, [(0, len(example.target))], max_length=max_length)
            pieces = (*source.pieces, Piece("\n→ ", "context"), *target.pieces)
            tokens = source.num_tokens + target.num_tokens
            num_cut = source.num_cut + target.num_cut
            return Learnt(pieces, tokens, target.num_trained, target.num_answer, num_cut, target.has_end)
        case PreferenceExample():
            first = _answered(tokenizer, example.prompt, example.chosen, max_length)
            second = _answered(tokenizer, example.prompt, example.rejected, max_length)
            lost = [Piece(piece.text, "rejected") for piece in second.pieces if piece.part == "trained"]
            pieces = (*first.pieces, Piece("\n✗ ", "context"), *lost)
            longer = max(first, second, key=lambda one: one.num_tokens)
            return Learnt(
                pieces,
                first.num_tokens + second.num_tokens,
                first.num_trained + second.num_trained,
                first.num_answer + second.num_answer,
                longer.num_cut,
                first.has_end and second.has_end,
            )
        case RatedExample():
            return _answered(tokenizer, example.prompt, example.answer, max_length)
    raise AssertionError(type(example))


def _tagged(example: TagExample) -> tuple[Piece, ...]:
    """Words with their tags behind them, but for the commonest (`O`), which would hide the others."""
    pieces: list[Piece] = []
    for word, tag in zip(example.words, example.tags, strict=True):
        pieces.append(Piece(word, "context"))
        if tag != "O":
            pieces.append(Piece(f"/{tag}", "trained"))
        pieces.append(Piece(" ", "context"))
    return tuple(pieces)


def _answered(tokenizer: Any, prompt: Sequence[Message], answer: str, max_length: int) -> Learnt:
    silent = tuple(Message(m.role, m.content, m.name, m.tool_calls, m.tool_call_id, 0.0) for m in prompt)
    return _of_text(
        tokenizer, *locate_answers(tokenizer, (*silent, Message("assistant", answer))), max_length=max_length
    )


def _of_text(
    tokenizer: Any,
    text: str,
    spans: Sequence[tuple[int, int]],
    literals: Sequence[tuple[int, int]] = (),
    *,
    max_length: int,
) -> Learnt:
    """`max_length` 0 means that a long text is continued in further rows, so that nothing is cut."""
    ids, offsets, is_trained = tokenize_spans(tokenizer, text, spans, literals)
    kept = min(len(ids), max_length) if max_length else len(ids)
    edge = offsets[kept - 1][1] if 0 < kept < len(ids) else len(text)
    last = max((i for i, flag in enumerate(is_trained) if flag), default=-1)
    return Learnt(
        pieces=_pieces(text, spans, edge),
        num_tokens=len(ids),
        num_trained=sum(is_trained[:kept]),
        num_answer=sum(is_trained),
        num_cut=len(ids) - kept,
        has_end=0 <= last < kept,
    )


def _pieces(text: str, spans: Sequence[tuple[int, int]], edge: int) -> tuple[Piece, ...]:
    pieces, position = [], 0
    for start, end in spans:
        pieces += [Piece(text[position : min(start, edge)], "context"), Piece(text[start : min(end, edge)], "trained")]
        position = min(end, edge)
        if end > edge:
            break
    pieces += [Piece(text[position:edge], "context"), Piece(text[edge:], "cut")]
    return tuple(piece for piece in pieces if piece.text)
