"""The verdict says no more than the intervals do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tunesmith.core.intervals import Difference, score
from tunesmith.core.plugins import build
from tunesmith.core.records import Outcome
from tunesmith.steps.verdict import Candidate, changes, judge, signed_interval

METRIC = build("metrics", "exact_match")


def candidate(name: str, is_tuned: bool, right: Sequence[bool]) -> Candidate:
    rows = tuple(
        Outcome(origin=f"h.jsonl:{i}", reference="yes", answer="yes" if hit else "no") for i, hit in enumerate(right, 1)
    )
    return Candidate(name, is_tuned, score(METRIC, rows, 1), rows)


def first(hits: int, of: int = 96) -> list[bool]:
    return [i < hits for i in range(of)]


def test_a_clear_gain_is_worth_it() -> None:
    rows = [candidate("zero-shot", False, first(2)), candidate("retrieval, 3", False, first(30))]
    verdict = judge(METRIC, [*rows, candidate("lora", True, first(75))], seed=1, noun="questions")
    assert verdict.sentence == (
        "Worth it: lora answers 78 % of 96 held-out questions, the best prompt row (retrieval, 3) 31 % "
        f"(difference {signed_interval(verdict.difference)})."
    )
    assert (verdict.is_worth_it, verdict.best, verdict.rival) == (True, "lora", "retrieval, 3")
    assert verdict.difference.value == pytest.approx(45 / 96)


def test_a_clear_loss_is_not_worth_it() -> None:
    rows = [candidate("retrieval, 3", False, first(70)), candidate("lora", True, first(10))]
    verdict = judge(METRIC, rows, seed=1, noun="questions")
    assert verdict.sentence.startswith("Not worth it: lora answers 10 % of 96 held-out questions, the best prompt row")
    assert verdict.is_worth_it is False


def test_a_small_gain_cannot_be_told() -> None:
    rows = [candidate("few-shot, 8", False, first(30)), candidate("lora", True, first(31))]
    verdict = judge(METRIC, rows, seed=1, noun="questions")
    assert verdict.sentence.startswith("Cannot be told: lora answers 32 %")
    assert verdict.sentence.endswith("; 96 questions are too few to tell them apart.")
    assert verdict.is_worth_it is None


def test_fine_tuned_rows_too_close_to_tell_apart_are_named() -> None:
    rows = [
        candidate("zero-shot", False, first(0)),
        candidate("lora", True, first(75)),
        candidate("full", True, first(77)),
    ]
    verdict = judge(METRIC, rows, seed=1, noun="questions")
    assert verdict.best == "full"
    assert verdict.notes == ("lora and full cannot be told apart with 96 questions.",)


def test_fine_tuned_rows_far_apart_need_no_note() -> None:
    rows = [
        candidate("zero-shot", False, first(0)),
        candidate("lora", True, first(20)),
        candidate("full", True, first(77)),
    ]
    assert judge(METRIC, rows, seed=1).notes == ()


def test_without_a_fine_tuned_row_there_is_no_verdict() -> None:
    verdict = judge(METRIC, [candidate("a", False, first(3)), candidate("b", False, first(9))], seed=1)
    assert verdict.sentence == "Best: b answers 9 % of 96 held-out rows; nothing was fine-tuned."
    assert verdict.is_worth_it is None


def test_rows_of_one_kind_too_close_to_tell_apart_are_named() -> None:
    rows = [candidate("a", True, first(50)), candidate("b", True, first(51)), candidate("c", True, first(3))]
    assert judge(METRIC, rows, seed=1).notes == ("a and b cannot be told apart with 96 rows.",)


def test_without_a_prompt_row_there_is_no_verdict() -> None:
    verdict = judge(METRIC, [candidate("lora", True, first(96))], seed=1)
    assert verdict.sentence == "Best: lora answers 100 % of 96 held-out rows; no prompt row to compare with."


def test_lower_is_better_where_the_metric_says_so() -> None:
    metric = build("metrics", "perplexity")

    def likely(name: str, is_tuned: bool, nats: float) -> Candidate:
        rows = tuple(
            Outcome(origin=f"h:{i}", nll_nats=nats * (5 + i % 3), num_scored_tokens=5 + i % 4) for i in range(60)
        )
        return Candidate(name, is_tuned, score(metric, rows, 1), rows)

    verdict = judge(metric, [likely("base", False, 3.0), likely("full", True, 1.0)], seed=1)
    assert verdict.is_worth_it is True
    assert verdict.sentence.startswith("Worth it: full reaches perplexity ")
    assert "(difference −" in verdict.sentence


def test_fixed_and_broken_rows_are_named_by_origin() -> None:
    before = candidate("p", False, [True, False, False, True]).outcomes
    after = candidate("t", True, [True, True, False, False]).outcomes
    found = changes(METRIC, after, before)
    assert (found.fixed, found.broken) == (("h.jsonl:2",), ("h.jsonl:4",))


def test_a_signed_interval_has_one_sign_per_number() -> None:
    assert signed_interval(Difference("m", 0.534, 0.41, 0.64, 96)) == "+0.53 [0.41, 0.64]"
    assert signed_interval(Difference("m", -0.14, -0.29, -0.02, 14)) == "−0.14 [−0.29, −0.02]"
    assert signed_interval(Difference("m", 28.94, 21.3, 35.0, 14)) == "+28.9 [21.3, 35.0]"
