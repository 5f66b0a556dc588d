"""Chat: a conversation with a finished model, loaded right here; no server is needed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Progress
from tunesmith.core.home import Home
from tunesmith.core.records import Message
from tunesmith.core.store import Store
from tunesmith.steps.served import Served, find_source, open_model

STEP = "chat"


@dataclass(frozen=True)
class ChatSettings:
    """How answers are drawn; None leaves it to the model's own settings."""

    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int = 1
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stops: tuple[str, ...] = ()
    num_logprobs: int | None = None


@dataclass(frozen=True)
class Turn:
    """A question with its answer."""

    question: str
    answer: str
    finish_reason: str
    """`stop`, `length`, or `interrupted`."""
    num_tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As `--json` gives it."""
        return {
            "question": self.question,
            "answer": self.answer,
            "finish_reason": self.finish_reason,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
        }


class Conversation:
    """A model and what was said so far."""

    def __init__(self, served: Served, settings: ChatSettings = ChatSettings()) -> None:
        self.served = served
        self.settings = settings
        self.last: Turn | None = None
        """The newest turn, also when it was interrupted."""
        self._messages: list[Message] = []
        self.reset()

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything said, the system message included."""
        return tuple(self._messages)

    def reset(self) -> None:
        """Forget what was said."""
        self._messages = [Message("system", self.settings.system)] if self.settings.system else []
        self.last = None

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece. Closing the iterator stops it; what was said by then stays in memory.

        Raises:
            UserError: The conversation no longer fits the model's context.
        """
        asked = [*self._messages, Message("user", question)]
        prompt = self.served.encode_chat(asked) if self.served.can_chat else self.served.encode_text(question)
        room = self.served.room(len(prompt))
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt):,} tokens and the model's context is "
                f"{self.served.context_length:,}, answer included.",
                code="context_full",
                remedy="/reset starts anew.",
            )
        limit = min(self.settings.max_new_tokens or self.served.generate.max_new_tokens, room)
        sampling = self.served.sampling(self.settings, max_new_tokens=limit, seed=self.settings.seed)
        answer, finish, num_tokens, begin = "", "interrupted", 0, time.perf_counter()
        try:
            with closing(self.served.opener(prompt, sampling)()) as pieces:
                for piece in pieces:
                    answer += piece.text
                    num_tokens += len(piece.token_ids)
                    finish = piece.finish_reason or finish
                    if piece.text:
                        yield piece.text
        finally:
            self.last = Turn(question, answer, finish, num_tokens, time.perf_counter() - begin)
            if self.served.can_chat:
                self._messages = [*asked, Message("assistant", answer)]

    def answer(self, question: str) -> Turn:
        """The whole answer."""
        for _ in self.ask(question):
            pass
        assert self.last is not None
        return self.last


def open_conversation(
    home: Home, reference: str, *, settings: ChatSettings = ChatSettings(), emit: Emit
) -> Conversation:
    """A conversation with a run, a registered version, a model folder, a hub name or `tunesmith/base`.

    Raises:
        UserError: There is no such model, it is damaged, or it does not answer as it was trained to.
    """
    from tunesmith.models.sharing import SharedBases

    emit(Progress(STEP, 0, 1, label=f"load and try {reference}"))
    with Store.open(home) as store:
        source = find_source(home, store, reference)
    return Conversation(open_model(source, SharedBases(), emit=emit, step=STEP), settings)
