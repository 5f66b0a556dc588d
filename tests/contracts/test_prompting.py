"""What holds for every way of prompting in the folder."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunesmith.core.plugins import build, names, summary
from tunesmith.core.records import ChatExample, Message, Origin, Passage
from tunesmith.prompting.base import Prompting

TOPICS = ["tank", "filter", "steam wand", "pump", "grinder", "drip tray", "menu", "warranty", "cord", "cup warmer"]
ANSWER = "SECRET-ANSWER"


def chat(question: str, answer: str, line: int, system: str = "") -> ChatExample:
    head = (Message("system", system),) if system else ()
    return ChatExample(
        messages=(*head, Message("user", question), Message("assistant", answer)), origin=Origin("train.jsonl", line)
    )


TRAIN = [chat(f"How do I clean the {topic}?", f"Wipe the {topic} dry.", i) for i, topic in enumerate(TOPICS, 1)]
PAGES = [Passage(text=f"The {topic} is made of steel.", title=topic, origin=Origin("p.md", 1)) for topic in TOPICS]


@pytest.fixture(params=names("prompting"))
def prompting(request: pytest.FixtureRequest) -> Prompting:
    built: Prompting = build("prompting", request.param)
    return built


def test_it_is_documented(prompting: Prompting) -> None:
    assert len(summary("prompting", prompting.name)) > 10
    assert prompting.summary()
    for name, field in type(prompting).model_fields.items():
        assert field.description, f"{prompting.name}.{name} has no string below it"


def test_the_question_comes_last_and_the_answer_never(prompting: Prompting) -> None:
    ask = prompting.prepare(TRAIN, PAGES, fits=lambda messages: True)
    asked = ask(chat("Where is the steam wand?", ANSWER, 77, system="Be brief."))
    assert asked[-1].role == "user"
    assert asked[-1].content.endswith("Where is the steam wand?")
    assert asked[0] == Message("system", "Be brief.")
    assert all(ANSWER not in message.content for message in asked)


def test_the_answer_changes_nothing(prompting: Prompting) -> None:
    ask = prompting.prepare(TRAIN, PAGES, fits=lambda messages: True)
    assert ask(chat("Where is the pump?", "here", 77)) == ask(chat("Where is the pump?", "there", 77))


def test_an_example_is_never_shown_to_itself(prompting: Prompting) -> None:
    own = replace(TRAIN[2], messages=(TRAIN[2].messages[0], Message("assistant", ANSWER)))
    ask = prompting.prepare([*TRAIN[:2], own, *TRAIN[3:]], PAGES, fits=lambda messages: True)
    assert all(ANSWER not in message.content for message in ask(own))


def test_nothing_longer_than_the_context_is_asked(prompting: Prompting) -> None:
    def size(messages: object) -> int:
        return sum(len(message.content) for message in messages)  # type: ignore[attr-defined]

    example = chat("Where is the grinder?", "x", 77)
    sizes = []
    for most in (10_000, 200, 120, 60, 21):
        asked = prompting.prepare(TRAIN, PAGES, fits=lambda messages, most=most: size(messages) <= most)(example)
        assert size(asked) <= most
        assert asked[-1].content.endswith("Where is the grinder?")
        sizes.append(size(asked))
    assert sizes == sorted(sizes, reverse=True)


def test_where_nothing_fits_the_bare_prompt_is_asked(prompting: Prompting) -> None:
    example = chat("Where is the grinder?", "x", 77)
    assert prompting.prepare(TRAIN, PAGES, fits=lambda messages: False)(example) == example.prompt


def test_the_same_question_is_put_the_same_way_again(prompting: Prompting) -> None:
    ask = prompting.prepare(TRAIN, PAGES, fits=lambda messages: True)
    example = chat("Is there a cord?", "x", 77)
    assert ask(example) == ask(example)
