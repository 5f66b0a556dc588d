"""Rows that are the same, or nearly, and held-out rows that are hidden among the training rows.

Equal means equal after Unicode NFKC, case folding, and with white space and invisible characters evened out. Nearly
equal means a Jaccard similarity of their word 3-shingles of at least 0.8, found exactly by prefix filtering
(Chaudhuri et al., ICDE 2006): two such sets share one of their rarest shingles, so few pairs are ever compared.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    Message,
    MultiLabelExample,
    NumberExample,
    Origin,
    PairExample,
    PreferenceExample,
    RatedExample,
    TagExample,
    TextExample,
)
from tunesmith.data.findings import Findings
from tunesmith.data.labels import labels_in

NEAR = 0.8
_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
_FIELD = "\x1f"


def normalise(text: str) -> str:
    """The text without differences of case, spacing, Unicode form and invisible characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
        text = unicodedata.normalize("NFKC", text.casefold())
        return " ".join(text.split())
    return " ".join(text.lower().split())


def question_of(example: Example) -> str:
    """What is given to the model, as text."""
    match example:
        case ChatExample():
            return _words(example.prompt)
        case LabelExample() | MultiLabelExample() | NumberExample():
            return f"{example.text}{_FIELD}{example.text_pair}"
        case TagExample():
            return example.text
        case PairExample():
            return example.source
        case PreferenceExample() | RatedExample():
            return _words(example.prompt)
        case TextExample():
            return example.text
    raise AssertionError(type(example))


def answer_of(example: Example) -> str:
    """What the model shall make of it, as text."""
    match example:
        case ChatExample():
            last = max((i for i, m in enumerate(example.messages) if m.role == "assistant"), default=0)
            return _words(example.messages[last:])
        case LabelExample():
            return example.label
        case MultiLabelExample():
            return ", ".join(example.labels)
        case NumberExample():
            return f"{example.value:g}"
        case TagExample():
            return " ".join(example.tags)
        case PairExample():
            return example.target
        case PreferenceExample():
            return f"{example.chosen}{_FIELD}{example.rejected}"
        case RatedExample():
            return f"{example.answer}{_FIELD}{example.is_good}"
    return ""


def content_key(example: Example) -> str:
    """Equal for rows that are repetitions of each other."""
    return joined_key(normalise(question_of(example)), normalise(answer_of(example)))


def joined_key(question: str, answer: str) -> str:
    """The content key of a row with this question and answer, both normalised."""
    return f"{question}{_FIELD}{answer}"


def without_repeats(
    examples: Sequence[Example], keys: Sequence[str], findings: Findings, *, near: bool
) -> tuple[list[Example], list[str]]:
    """The examples and keys without later repetitions of an earlier row, which are noted as findings."""
    first: dict[str, Example] = {}
    kept, kept_keys = [], []
    for example, key in zip(examples, keys, strict=True):
        earlier = first.setdefault(key, example)
        if earlier is example:
            kept.append(example)
            kept_keys.append(key)
        else:
            note_duplicate(findings, example.origin, earlier.origin)
    if not near:
        return kept, kept_keys
    repeats = near_repeats(kept, kept_keys)
    for i, (j, similarity) in repeats.items():
        note_near_duplicate(findings, kept[i].origin, kept[j].origin, similarity)
    rest = [i for i in range(len(kept)) if i not in repeats]
    return [kept[i] for i in rest], [kept_keys[i] for i in rest]


def note_duplicate(findings: Findings, origin: Origin, earlier: Origin) -> None:
    """One row that says what an earlier one says."""
    findings.add("warning", "duplicate", origin, f"of {_place(earlier, origin)}", "data.dedup=exact")


def note_near_duplicate(findings: Findings, origin: Origin, earlier: Origin, similarity: float) -> None:
    """One row that says nearly what an earlier one says."""
    message = f"of {_place(earlier, origin)}, Jaccard {similarity:.2f}"
    findings.add("warning", "near_duplicate", origin, message, "data.dedup=near")


def class_of(example: Example) -> object:
    """Equal for rows with the same classes, number or thumb; others are never near repetitions of each other."""
    match example:
        case NumberExample():
            return example.value + 0.0  # -0.0 is 0.0
        case RatedExample():
            return example.is_good
    return labels_in(example)


def shingles_of(key: str) -> set[tuple[str, str, str]]:
    """All three words that stand side by side in a content key; of fewer than three words one."""
    words = key.split()
    words += [""] * (3 - len(words))
    return set(zip(words, words[1:], words[2:], strict=False))


def near_repeats(examples: Sequence[Example], keys: Sequence[str]) -> dict[int, tuple[int, float]]:
    """For each row that is nearly an earlier kept one: that row's index and their similarity.

    Rows with different labels or thumbs are never repetitions of each other.
    """
    found: dict[int, tuple[int, float]] = {}
    index: dict[int, list[int]] = defaultdict(list)
    sets: dict[int, tuple[frozenset[int], int]] = {}
    for i, ranks, size in _candidates(keys):
        prefix = ranks[: size - math.ceil(NEAR * size) + 1 - (size - len(ranks))]
        mine = frozenset(ranks)
        best = _nearest(i, mine, size, prefix, index, sets, examples)
        if best is not None:
            found[i] = best
            continue
        sets[i] = (mine, size)
        for rank in prefix:
            index[rank].append(i)
    return found


def note_leaks(train: Sequence[Example], held_out: Sequence[Example], findings: Findings) -> None:
    """Training rows that are held-out rows under another case, spacing or Unicode form."""
    exact = {(question_of(e), answer_of(e)): e for e in reversed(held_out)}
    whole = {content_key(e): e for e in reversed(held_out)}
    questions = {normalise(question_of(e)): e for e in reversed(held_out)}
    for example in train:
        question = normalise(question_of(example))
        if question not in questions:
            continue
        hidden = whole.get(content_key(example))
        remedy = "delete one of them, or use data.split.group_by"
        if hidden is None:
            place = questions[question].origin
            message = f"asks what {place} asks, with another answer"
            findings.add("warning", "leak_question", example.origin, message, remedy)
        else:
            same = (question_of(example), answer_of(example)) in exact
            message = f"is {hidden.origin}" + ("" if same else " but for case, spacing or Unicode form")
            findings.add("warning", "leak", example.origin, message, remedy)


def _words(messages: Sequence[Message]) -> str:
    parts = []
    for message in messages:
        calls = "".join(f"{_FIELD}{call['function']}" for call in message.tool_calls) if message.tool_calls else ""
        parts.append(f"{message.role}: {message.content}{calls}")
    return _FIELD.join(parts)


def _place(earlier: Origin, origin: Origin) -> str:
    return f"line {earlier.line}" if earlier.file == origin.file else str(earlier)


def _candidates(keys: Sequence[str]) -> Iterator[tuple[int, list[int], int]]:
    """Rows that share enough shingles with others: index, those shingles as ranks (rarest first), number of all.

    A shingle that occurs once cannot be shared; a row of which more than a fifth are such has no near repetition.
    """
    vocabulary: dict[str, int] = {"": 0}
    lengths, flat = [], []
    for key in keys:
        words = key.split()
        words += [""] * (3 - len(words))
        lengths.append(len(words) - 2)
        flat.extend([vocabulary.setdefault(word, len(vocabulary)) for word in words])
    if not flat:
        return
    words_of = np.asarray(flat, dtype=np.int64)
    starts = np.cumsum([0, *(length + 2 for length in lengths)])[:-1]
    rows = np.repeat(np.arange(len(keys)), lengths)
    first = np.arange(len(rows)) - np.repeat(np.cumsum([0, *lengths])[:-1], lengths) + np.repeat(starts, lengths)
    base = len(vocabulary)
    pairs = np.unique(words_of[first] * base + words_of[first + 1], return_inverse=True)[1]
    shingles = np.unique(pairs * base + words_of[first + 2], return_inverse=True)[1]
    number = int(shingles.max()) + 1
    both = np.sort(rows * number + shingles)
    both = both[np.concatenate(([True], both[1:] != both[:-1]))]  # np.unique without its slow hash table
    rows, shingles = both // number, both % number
    counts = np.bincount(shingles)
    ranks = np.empty(number, dtype=np.int64)
    ranks[np.lexsort((np.arange(number), counts))] = np.arange(number)
    sizes = np.bincount(rows, minlength=len(keys))
    is_shared = counts[shingles] > 1
    shared = np.bincount(rows[is_shared], minlength=len(keys))
    ends = np.cumsum(sizes)
    for i in np.flatnonzero(shared >= np.maximum(1, np.ceil(NEAR * sizes))).tolist():
        span = slice(int(ends[i] - sizes[i]), int(ends[i]))
        mine = ranks[shingles[span][is_shared[span]]]
        yield i, sorted(mine.tolist()), int(sizes[i])


def _nearest(
    i: int,
    mine: frozenset[int],
    size: int,
    prefix: Sequence[int],
    index: dict[int, list[int]],
    sets: dict[int, tuple[frozenset[int], int]],
    examples: Sequence[Example],
) -> tuple[int, float] | None:
    best: tuple[int, float] | None = None
    tried: set[int] = set()
    for rank in prefix:
        for j in index.get(rank, ()):
            if j in tried:
                continue
            tried.add(j)
            theirs, their_size = sets[j]
            if min(size, their_size) < NEAR * max(size, their_size):
                continue
            common = len(mine & theirs)
            similarity = common / (size + their_size - common)
            is_better = best is None or (similarity, -j) > (best[1], -best[0])
            if similarity >= NEAR and is_better and class_of(examples[i]) == class_of(examples[j]):
                best = (j, similarity)
    return best
