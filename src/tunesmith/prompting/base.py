"""What prompting is: from an example to the messages that are sent to a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import ChatExample, Message, Passage

Ask = Callable[[ChatExample], tuple[Message, ...]]
"""From an example to the conversation that ends with the user's turn."""
Fits = Callable[[Sequence[Message]], bool]
"""Whether a conversation, with room for the answer, fits into the model's context."""


class Prompting(Plugin):
    """How a question is put."""

    needs_documents: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, train: Sequence[ChatExample], documents: Sequence[Passage], *, fits: Fits) -> Ask:
        """Index what is needed once; the result turns each example into a prompt.

        It never looks at the example's answer, and gives nothing that `fits` refuses but the bare prompt.
        """

    def summary(self) -> str:
        """The way of prompting in a few words for tables."""
        return self.name.replace("_", "-")


def question(example: ChatExample) -> str:
    """The last user turn before the answer: what is asked, and searched for."""
    return next((message.content for message in reversed(example.prompt) if message.role == "user"), "")
