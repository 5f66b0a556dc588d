"""Show the most similar training examples first, as earlier turns of the conversation.

Similar is by BM25 over the questions; the most similar stands last, next to the question. Where the model's
context is too short, the least similar are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt

from tunesmith.core.errors import UserError
from tunesmith.core.records import ChatExample, Message, Passage
from tunesmith.prompting.base import Ask, Fits, Prompting, question


class FewShot(Prompting):
    """The k nearest training examples with their answers, then the question."""

    k: PositiveInt = 8
    """How many examples are shown, at most."""

    def prepare(self, train: Sequence[ChatExample], documents: Sequence[Passage], *, fits: Fits) -> Ask:
        from tunesmith.data.search import Index

        shots = [example for example in train if example.answer and question(example)]
        if not shots:
            raise UserError(
                "few_shot has no training examples to show.",
                code="no_shots",
                remedy="Name training rows in `data.source`, or leave few_shot out of `compare.rows`.",
            )
        index = Index([question(shot) for shot in shots])

        def ask(example: ChatExample) -> tuple[Message, ...]:
            nearest = [shots[i] for i in index.nearest(question(example), self.k + 1)]
            chosen = [shot for shot in nearest if shot.origin != example.origin][: self.k]
            for count in range(len(chosen), 0, -1):
                asked = _conversation(chosen[:count], example)
                if fits(asked):
                    return asked
            return example.prompt

        return ask

    def summary(self) -> str:
        return f"few-shot, {self.k}"


def _conversation(shots: Sequence[ChatExample], example: ChatExample) -> tuple[Message, ...]:
    system = tuple(message for message in example.prompt if message.role == "system")
    rest = tuple(message for message in example.prompt if message.role != "system")
    turns: list[Message] = []
    for shot in reversed(shots):
        turns += [Message("user", question(shot)), Message("assistant", shot.answer)]
    return (*system, *turns, *rest)
