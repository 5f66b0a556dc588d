"""Put the most relevant passages of the documents before the question (retrieval).

Relevant is by BM25 over title and text. The last user turn becomes:

    Context:
    <title>: <text of the best passage>

    <title>: <text of the next>

    Question: <the question>

Where the model's context is too short, the least relevant passages are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import PositiveInt

from tunesmith.core.errors import UserError
from tunesmith.core.records import ChatExample, Message, Passage
from tunesmith.prompting.base import Ask, Fits, Prompting, question


class Rag(Prompting):
    """The k best passages by BM25, then the question."""

    needs_documents: ClassVar[bool] = True

    k: PositiveInt = 3
    """How many passages are given, at most."""
    before: str = "Context:\n"
    """What stands before the passages."""
    between: str = "\n\nQuestion: "
    """What stands between the passages and the question."""

    def prepare(self, train: Sequence[ChatExample], documents: Sequence[Passage], *, fits: Fits) -> Ask:
        from tunesmith.data.search import Index

        if not documents:
            raise UserError(
                "rag has no documents to search.",
                code="no_documents",
                remedy="Set `data.documents` to a folder of Markdown or text files.",
            )
        texts = [_text(passage) for passage in documents]
        index = Index(texts)

        def ask(example: ChatExample) -> tuple[Message, ...]:
            found = [texts[i] for i in index.nearest(question(example), self.k)]
            for count in range(len(found), 0, -1):
                asked = self._with_context(example, found[:count])
                if fits(asked):
                    return asked
            return example.prompt

        return ask

    def summary(self) -> str:
        return f"retrieval, {self.k}"

    def _with_context(self, example: ChatExample, passages: Sequence[str]) -> tuple[Message, ...]:
        prompt = list(example.prompt)
        last = max((i for i, message in enumerate(prompt) if message.role == "user"), default=-1)
        if last < 0:
            return example.prompt
        content = self.before + "\n\n".join(passages) + self.between + prompt[last].content
        prompt[last] = replace(prompt[last], content=content)
        return tuple(prompt)


def _text(passage: Passage) -> str:
    return f"{passage.title}: {passage.text}" if passage.title else passage.text
