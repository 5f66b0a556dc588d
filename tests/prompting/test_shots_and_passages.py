"""Which shots and passages are chosen, in which order, and what is an error."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.core.records import ChatExample, Message, Origin, Passage


def chat(question: str, answer: str, line: int) -> ChatExample:
    return ChatExample(
        messages=(Message("user", question), Message("assistant", answer)), origin=Origin("train.jsonl", line)
    )


TRAIN = [
    chat("When is the water filter changed?", "Every three months.", 1),
    chat("What does error E07 mean?", "The tank is empty.", 2),
    chat("How long is the warranty?", "Two years.", 3),
    chat("How do I clean the water filter housing?", "Rinse it.", 4),
]
PAGES = [
    Passage(text="Change the water filter every three months.", title="Water filter", origin=Origin("10.md", 3)),
    Passage(text="The warranty lasts two years.", title="Warranty", origin=Origin("15.md", 1)),
    Passage(text="E07 means that the tank is empty.", title="", origin=Origin("12.md", 9)),
]
ASKED = chat("How often is the water filter changed?", "?", 99)


def test_the_most_similar_shot_stands_last() -> None:
    ask = build("prompting", {"name": "few_shot", "k": 2}).prepare(TRAIN, (), fits=lambda messages: True)
    assert [message.content for message in ask(ASKED)] == [
        "How do I clean the water filter housing?",
        "Rinse it.",
        "When is the water filter changed?",
        "Every three months.",
        "How often is the water filter changed?",
    ]


def test_the_least_similar_shots_are_left_out_first() -> None:
    ask = build("prompting", {"name": "few_shot", "k": 4}).prepare(TRAIN, (), fits=lambda messages: len(messages) <= 3)
    assert [message.content for message in ask(ASKED)][:2] == [
        "When is the water filter changed?",
        "Every three months.",
    ]


def test_k_shots_remain_when_the_example_is_one_of_the_training_rows() -> None:
    ask = build("prompting", {"name": "few_shot", "k": 3}).prepare(TRAIN, (), fits=lambda messages: True)
    asked = ask(TRAIN[0])
    assert len(asked) == 7
    assert [m.content for m in asked].count("When is the water filter changed?") == 1


def test_passages_stand_before_the_question_best_first() -> None:
    ask = build("prompting", {"name": "rag", "k": 1}).prepare((), PAGES, fits=lambda messages: True)
    assert ask(ASKED) == (
        Message(
            "user",
            "Context:\nWater filter: Change the water filter every three months."
            "\n\nQuestion: How often is the water filter changed?",
        ),
    )


def test_a_passage_without_title_stands_alone() -> None:
    ask = build("prompting", {"name": "rag", "k": 1}).prepare((), PAGES, fits=lambda messages: True)
    assert ask(chat("E07?", "?", 99))[-1].content.startswith("Context:\nE07 means")


def test_the_template_of_passages_can_be_changed() -> None:
    rag = build("prompting", {"name": "rag", "k": 1, "before": "", "between": "\n"})
    asked = rag.prepare((), PAGES, fits=lambda messages: True)(ASKED)
    assert asked[-1].content == (
        "Water filter: Change the water filter every three months.\nHow often is the water filter changed?"
    )


def test_only_the_last_turn_gets_passages() -> None:
    turns = (Message("user", "Hello"), Message("assistant", "Hi."), Message("user", "warranty?"))
    example = ChatExample(messages=(*turns, Message("assistant", "x")), origin=Origin("h", 1))
    asked = build("prompting", "rag").prepare((), PAGES, fits=lambda messages: True)(example)
    assert asked[:2] == turns[:2]
    assert asked[2].content.startswith("Context:\nWarranty: ")


def test_retrieval_without_documents_says_what_to_set() -> None:
    with pytest.raises(UserError, match="rag has no documents to search") as fault:
        build("prompting", "rag").prepare(TRAIN, (), fits=lambda messages: True)
    assert "data.documents" in fault.value.remedy


def test_shots_without_training_rows_are_an_error() -> None:
    with pytest.raises(UserError, match="few_shot has no training examples to show"):
        build("prompting", "few_shot").prepare((), (), fits=lambda messages: True)


def test_names_in_tables() -> None:
    assert build("prompting", "zero_shot").summary() == "zero-shot"
    assert build("prompting", {"name": "few_shot", "k": 8}).summary() == "few-shot, 8"
    assert build("prompting", "rag").summary() == "retrieval, 3"
