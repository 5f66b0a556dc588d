"""Probes: a model answers as recorded, and what changed is said: prompt, logits or text."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from tunesmith.core.records import ChatExample, LabelExample, Message, Origin, PairExample, TextExample
from tunesmith.models.load import Loaded
from tunesmith.models.parity import TOLERANCE, record, replay
from tunesmith.models.tiny import tiny

AT = Origin("rows.jsonl", 1)


def chat(question: str) -> ChatExample:
    return ChatExample(messages=(Message("user", question), Message("assistant", "Yes.")), origin=AT)


CHATS = [chat(f"What is part {number}?") for number in range(15)]
KINDS: dict[str, tuple[str, Any, list[Any]]] = {
    "chat": ("llama", "causal", CHATS),
    "text": ("gpt2", "causal", [TextExample(text="the machine " * n, origin=AT) for n in (1, 3, 999)]),
    "pair": ("t5", "seq2seq", [PairExample(source="the machine", target="x", origin=AT)]),
    "label": ("bert", "classify", [LabelExample(text="the machine", label="yes", text_pair="b", origin=AT)]),
}


def loaded(architecture: str = "llama", task: Any = "causal") -> Loaded:
    model, tokenizer = tiny(architecture, task)
    labels = ("no", "yes", "maybe") if task == "classify" else ()
    return Loaded(model, tokenizer, task, labels, architecture)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_model_answers_as_recorded(kind: str) -> None:
    architecture, task, rows = KINDS[kind]
    probes = json.loads(json.dumps(record(loaded(architecture, task), rows), allow_nan=False))
    assert len(probes["probes"]) == min(12, len(rows))
    assert replay(loaded(architecture, task), probes).is_equal


def test_another_template_is_told_by_its_first_byte() -> None:
    probes = record(loaded(), CHATS)
    changed = loaded()
    changed.tokenizer.chat_template = changed.tokenizer.chat_template.replace("assistant", "Assistant")
    report = replay(changed, probes)
    assert (report.is_equal, report.stage) == (False, "prompt")
    assert "is 'Assistant" in report.message


def test_other_tokens_of_the_same_text_are_a_prompt_fault() -> None:
    probes = record(loaded(), CHATS)
    probes["probes"][0]["token_ids"][0] += 1
    assert replay(loaded(), probes).stage == "prompt"


def test_other_weights_are_told_by_how_much() -> None:
    probes = record(loaded(), CHATS)
    changed = loaded()
    with torch.no_grad():
        changed.model.lm_head.weight.mul_(1.5)
    report = replay(changed, probes)
    assert (report.is_equal, report.stage) == (False, "logits")
    assert "is allowed" in report.message


def test_rounding_is_allowed_up_to_the_tolerance() -> None:
    probes = record(loaded(), CHATS[:1])
    for share, is_equal in ((0.9, True), (1.1, False)):
        shifted = copy.deepcopy(probes)
        logits = shifted["probes"][0]["logits"]
        scale = max(1.0, *(abs(value) for value in logits.values()))
        token = next(iter(logits))
        logits[token] += share * TOLERANCE["fp32"] * scale
        assert replay(loaded(), shifted).is_equal is is_equal


def test_a_logit_that_is_not_a_number_is_a_mismatch() -> None:
    probes = record(loaded(), CHATS)
    changed = loaded()
    with torch.no_grad():
        changed.model.lm_head.weight.fill_(float("nan"))
    assert replay(changed, probes).stage == "logits"


def test_other_words_are_a_text_fault() -> None:
    probes = record(loaded(), CHATS)
    probes["probes"][3]["answer"] += "!"
    report = replay(loaded(), probes)
    assert (report.is_equal, report.stage) == (False, "text")
    assert report.message.startswith("probe 4: it answers")


def test_an_example_without_room_for_an_answer_is_passed_over() -> None:
    probes = record(loaded(), [chat("long " * 300), *CHATS], count=3)
    assert [probe["question"]["messages"][0]["content"] for probe in probes["probes"]] == [
        f"What is part {number}?" for number in range(3)
    ]


def test_probes_say_their_precision() -> None:
    assert record(replace(loaded(), precision="bf16"), CHATS[:1])["precision"] == "bf16"
