"""Repetitions, near repetitions and leaks."""

from __future__ import annotations

import random

import pytest

from tunesmith.core.records import Example, LabelExample, Origin, TextExample
from tunesmith.data.findings import Findings
from tunesmith.data.repeats import NEAR, content_key, near_repeats, normalise, note_leaks, without_repeats


def texts(*words: str, file: str = "a") -> list[Example]:
    return [TextExample(origin=Origin(file, i), text=text) for i, text in enumerate(words, 1)]


@pytest.mark.parametrize(
    "other",
    [
        "the  water TANK",
        "The\u00a0water\ttank ",
        "Ｔｈｅ water tank",
        "The wa\u200bter tank",
        "The wate\u00adr tank\ufeff",
    ],
)
def test_case_spacing_and_unicode_forms_make_no_difference(other: str) -> None:
    assert normalise(other) == normalise("The water tank")


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert normalise("Cafe\u0301 STRASSE") == normalise("café Straße")


def test_later_repetitions_are_left_out_and_counted() -> None:
    found = Findings()
    examples = texts("One two", "one  two", "three", "ONE TWO")
    kept, _ = without_repeats(examples, [content_key(e) for e in examples], found, near=False)
    assert [e.origin.line for e in kept] == [1, 3]
    (finding,) = found.all()
    assert (finding.code, finding.where, finding.message, finding.num_rows) == ("duplicate", "a:2", "of line 1", 2)


def test_near_repetitions_are_exactly_those_of_a_full_comparison() -> None:
    generator = random.Random(3)
    words = [f"w{i}" for i in range(30)]
    rows: list[str] = []
    for _ in range(300):
        if rows and generator.random() < 0.5:
            edited = generator.choice(rows).split()
            edited[generator.randrange(len(edited))] = generator.choice(words)
            rows.append(" ".join(edited))
        else:
            rows.append(" ".join(generator.choices(words, k=generator.randint(1, 40))))
    found = near_repeats(texts(*rows), rows)
    assert found == brute_force(rows)
    assert len(found) > 30


def brute_force(rows: list[str]) -> dict[int, tuple[int, float]]:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        words += [""] * (3 - len(words))
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    kept: list[int] = []
    found: dict[int, tuple[int, float]] = {}
    for i, row in enumerate(rows):
        mine = shingles(row)
        scores = {j: len(mine & shingles(rows[j])) / len(mine | shingles(rows[j])) for j in kept}
        best = max(scores, key=lambda j: scores[j], default=None)
        if best is not None and scores[best] >= NEAR:
            found[i] = (best, scores[best])
        else:
            kept.append(i)
    return found


def test_a_worked_similarity() -> None:
    first, second = "a b c d e f g h i j k l", "a b c d e f g h i j k x"
    ((i, (j, similarity)),) = near_repeats(texts(first, second), [first, second]).items()
    assert (i, j) == (1, 0)
    assert similarity == pytest.approx(9 / 11)  # ten shingles each, nine of them shared


def test_rows_with_different_labels_are_no_near_repetitions() -> None:
    words = "a b c d e f g h i j k l m n o p q r s t"
    rows: list[Example] = [LabelExample(origin=Origin("a", i), text=words, label=str(i)) for i in (1, 2)]
    assert near_repeats(rows, [content_key(row) for row in rows]) == {}


def test_held_out_rows_under_another_form_are_found_in_training_rows() -> None:
    found = Findings()
    note_leaks(texts("Fill the TANK", "other", "Ｆill the tank"), texts("x", "Fill the tank", file="test"), found)
    (finding,) = found.all()
    assert (finding.code, finding.where, finding.num_rows) == ("leak", "a:1", 2)
    assert finding.message == "is test:2 but for case, spacing or Unicode form"


def test_the_same_question_with_another_answer_is_told_apart() -> None:
    found = Findings()
    train: list[Example] = [LabelExample(origin=Origin("a", 1), text="Is it on?", label="yes")]
    held: list[Example] = [LabelExample(origin=Origin("t", 1), text="is it ON?", label="no")]
    note_leaks(train, held, found)
    assert [finding.code for finding in found.all()] == ["leak_question"]
