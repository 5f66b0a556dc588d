"""What can be seen in rows without a model: turns that lead nowhere, repetition, personal data, labels, duplicates.

A row that cannot be trained on is an error; a row that can, and perhaps should not, is a warning.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    Message,
    NumberExample,
    PreferenceExample,
    RatedExample,
)
from tunesmith.data.findings import Findings
from tunesmith.data.repeats import (
    answer_of,
    content_key,
    near_repeats,
    normalise,
    note_duplicate,
    note_near_duplicate,
    question_of,
)

REPETITIVE_CHARACTERS = 400
"""Shorter answers may repeat themselves."""
REPETITIVE_RATIO = 15
"""Prose packs 2 to 4 times; an answer that packs so well says one thing over and over."""
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")


def check_rows(examples: Sequence[Example], findings: Findings) -> None:
    """Note every fault and warning of the rows."""
    for example in examples:
        if isinstance(example, ChatExample):
            _check_turns(example, findings)
        _check_words(example, findings)
    _check_system(examples, findings)
    _check_labels([example for example in examples if isinstance(example, LabelExample)], findings)
    _check_numbers([example for example in examples if isinstance(example, NumberExample)], findings)
    _check_repeats(examples, findings)


def _check_turns(example: ChatExample, findings: Findings) -> None:
    messages, origin = example.messages, example.origin
    if messages[-1].role != "assistant":
        message = f'last message is "{messages[-1].role}": nothing follows it'
        findings.add("warning", "trailing_turn", origin, message, "delete the message or add the answer")
    if not any(message.role == "user" for message in messages):
        findings.add("warning", "no_user", origin, 'no "user" message: the answer has no question', "add the question")
    if all(message.weight == 0 for message in messages if message.role == "assistant"):
        findings.add("error", "nothing_trained", origin, "every answer has weight 0", "delete the row or its weights")
    for number, (first, second) in enumerate(pairwise(messages), 1):
        if first.role == second.role and first.role in ("user", "system"):
            message = f'messages {number} and {number + 1} are both "{first.role}"'
            findings.add("warning", "role_order", origin, message, "join them")
            break


def _check_words(example: Example, findings: Findings) -> None:
    text = answer_of(example)
    size = len(text)
    if size >= REPETITIVE_CHARACTERS:
        packed = len(zlib.compress(text.encode("utf-8", "replace"), 1))
        if size > REPETITIVE_RATIO * packed:
            message = f"the answer says the same over and over (packs {size // packed} to 1)"
            findings.add("warning", "repetitive", example.origin, message, "shorten it or delete the row")
    whole = question_of(example) + "\n" + text
    emails = len(_EMAIL.findall(whole)) if "@" in whole else 0
    ibans = sum(_is_iban(match) for match in _IBAN.findall(whole))
    if emails or ibans:
        parts = [_number(emails, "e-mail address", "es"), _number(ibans, "IBAN", "s")]
        message = ", ".join(part for part in parts if part)
        findings.add("warning", "personal_data", example.origin, message, "mask it or delete the row")


def _number(value: int, noun: str, plural: str) -> str:
    return f"{value} {noun}{plural if value > 1 else ''}" if value else ""


def _is_iban(text: str) -> bool:
    """Whether the check digits are right (ISO 13616: the rearranged number is 1 modulo 97)."""
    compact = text.replace(" ", "")
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _check_system(examples: Sequence[Example], findings: Findings) -> None:
    chats = [(example, _prompt(example)) for example in examples]
    with_system = sum(any(message.role == "system" for message in prompt) for _, prompt in chats)
    if with_system * 2 <= len(chats):
        return
    for example, prompt in chats:
        if not any(message.role == "system" for message in prompt):
            message = f'no "system" message, which {with_system:,} of {len(chats):,} rows have'
            findings.add("warning", "missing_system", example.origin, message, 'data.system="..."')


def _prompt(example: Example) -> Sequence[Message]:
    if isinstance(example, ChatExample):
        return example.messages
    return example.prompt if isinstance(example, PreferenceExample | RatedExample) else ()


def _check_labels(examples: Sequence[LabelExample], findings: Findings) -> None:
    counts = Counter(example.label for example in examples)
    labels_of: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        labels_of[normalise(question_of(example))].add(example.label)
    for example in examples:
        if counts[example.label] == 1:
            message = f'the label "{example.label}" occurs once'
            findings.add("error", "rare_label", example.origin, message, "add rows with it or delete the row")
        others = labels_of[normalise(question_of(example))]
        if len(others) > 1:
            message = "the same text has the labels " + " and ".join(f'"{label}"' for label in sorted(others))
            findings.add("warning", "label_conflict", example.origin, message, "keep one")


def _check_numbers(examples: Sequence[NumberExample], findings: Findings) -> None:
    if len(examples) < 2:
        return
    values = [example.value for example in examples]
    if min(values) == max(values):
        message = f"every row has the number {values[0]:g}: there is nothing to tell apart"
        findings.add("warning", "same_number", examples[0].origin, message, "add rows with other numbers")


def _check_repeats(examples: Sequence[Example], findings: Findings) -> None:
    first: dict[str, Example] = {}
    kept, keys = [], []
    for example in examples:
        key = content_key(example)
        earlier = first.setdefault(key, example)
        if earlier is example:
            kept.append(example)
            keys.append(key)
        else:
            note_duplicate(findings, example.origin, earlier.origin)
    for i, (j, similarity) in near_repeats(kept, keys).items():
        note_near_duplicate(findings, kept[i].origin, kept[j].origin, similarity)
