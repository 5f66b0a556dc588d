"""Was it worth it? One sentence from paired intervals, and which rows were mended or broken.

The best prompt row is the rival: fine-tuning has to beat what costs nothing, not the bare base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.core.intervals import Difference
from tunesmith.core.quantities import count, number, signed
from tunesmith.core.records import Outcome, Score
from tunesmith.core.seeds import seeds_difference
from tunesmith.metrics.base import Metric


@dataclass(frozen=True)
class Candidate:
    """One row of a comparison, as far as the verdict needs it."""

    name: str
    is_tuned: bool
    score: Score
    outcomes: tuple[Outcome, ...]
    runs: tuple[tuple[Outcome, ...], ...] = ()
    """The answers of every seed; `outcomes` alone where empty."""
    noun: str = "prompt row"
    """What it is called where it is the best of those that are not tuned."""

    @property
    def seeds(self) -> tuple[tuple[Outcome, ...], ...]:
        return self.runs or (self.outcomes,)


@dataclass(frozen=True)
class Verdict:
    """What the numbers say, no more."""

    sentence: str
    notes: tuple[str, ...] = ()
    is_worth_it: bool | None = None
    """None where it cannot be told, or where there is nothing to compare."""
    best: str = ""
    rival: str = ""
    difference: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "notes": list(self.notes),
            "is_worth_it": self.is_worth_it,
            "best": self.best,
            "rival": self.rival,
            "difference": self.difference.to_dict() if self.difference else None,
        }


@dataclass(frozen=True)
class Changes:
    """Origins of the rows that a fine-tuned model answers better or worse than the best prompt row."""

    fixed: tuple[str, ...]
    broken: tuple[str, ...]


def judge(metric: Metric, candidates: Sequence[Candidate], *, seed: int, noun: str = "rows") -> Verdict:
    """The verdict over all rows: best fine-tuned against best prompt row, on the same questions."""
    tuned = [candidate for candidate in candidates if candidate.is_tuned]
    prompted = [candidate for candidate in candidates if not candidate.is_tuned]
    if not tuned or not prompted:
        return _only_one_kind(metric, candidates, seed, noun)
    best, rival = best_of(metric, tuned), best_of(metric, prompted)
    found = seeds_difference(metric, best.seeds, rival.seeds, seed)
    between = f"(difference {signed_interval(found)})"
    reached = f"{best.name} {reaches(metric, best.score, noun)}, the best {rival.noun} ({rival.name})"
    if found.is_better:
        sentence, is_worth_it = f"Worth it: {reached} {short(metric, rival.score)} {between}.", True
    elif found.is_worse:
        sentence, is_worth_it = f"Not worth it: {reached} {short(metric, rival.score)} {between}.", False
    else:
        few = f"{count(found.num_rows)} {noun} are too few to tell them apart"
        sentence, is_worth_it = f"Cannot be told: {reached} {short(metric, rival.score)} {between}; {few}.", None
    notes = _too_close(metric, best, tuned, seed, noun)
    return Verdict(sentence, notes, is_worth_it, best.name, rival.name, found)


def changes(metric: Metric, tuned: Sequence[Outcome], prompted: Sequence[Outcome]) -> Changes:
    """Which rows a fine-tuned model mended and broke; both in the same order of rows."""
    after, before = goodness(metric, tuned), goodness(metric, prompted)
    origins = [outcome.origin for outcome in tuned]
    return Changes(
        fixed=tuple(origins[i] for i in np.flatnonzero(after > before)),
        broken=tuple(origins[i] for i in np.flatnonzero(after < before)),
    )


def goodness(metric: Metric, outcomes: Sequence[Outcome]) -> Any:
    """How good each single answer is, [R]; higher is better whatever the metric."""
    values = metric.value(metric.statistics(outcomes))
    return values if metric.higher_is_better else -values


def best_of(metric: Metric, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the best score; of equals the first."""
    sign = 1 if metric.higher_is_better else -1
    return max(candidates, key=lambda candidate: sign * candidate.score.value)


def reaches(metric: Metric, score: Score, noun: str) -> str:
    """`answers 84 % of 96 held-out questions`, or `reaches BLEU 41.2 on 96 held-out rows`."""
    if metric.is_rate:
        verb = "answers" if metric.needs == "answers" else "gets right"
        return f"{verb} {short(metric, score)} of {count(score.num_rows)} held-out {noun}"
    return f"reaches {metric.heading()} {short(metric, score)} on {count(score.num_rows)} held-out {noun}"


def short(metric: Metric, score: Score) -> str:
    """84 % for a rate, otherwise three digits."""
    return f"{100 * score.value:.0f} %" if metric.is_rate else number(score.value)


def signed_interval(found: Difference) -> str:
    """+0.53 [0.41, 0.64]."""
    decimals = 2 if max(abs(found.low), abs(found.high)) < 10 else 1
    low, high = (signed(end, decimals).removeprefix("+") for end in (found.low, found.high))
    return f"{signed(found.value, decimals)} [{low}, {high}]"


def _too_close(metric: Metric, best: Candidate, rows: Sequence[Candidate], seed: int, noun: str) -> tuple[str, ...]:
    others = [candidate for candidate in rows if candidate is not best]
    equal = [other.name for other in others if not seeds_difference(metric, best.seeds, other.seeds, seed).is_separated]
    if not equal:
        return ()
    names = [*equal, best.name]
    listing = ", ".join(names[:-1]) + f" and {names[-1]}"
    return (f"{listing} cannot be told apart with {count(best.score.num_rows)} {noun}.",)


def _only_one_kind(metric: Metric, candidates: Sequence[Candidate], seed: int, noun: str) -> Verdict:
    best = best_of(metric, candidates)
    missing = "no prompt row to compare with" if best.is_tuned else "nothing was fine-tuned"
    sentence = f"Best: {best.name} {reaches(metric, best.score, noun)}; {missing}."
    return Verdict(sentence, _too_close(metric, best, candidates, seed, noun), best=best.name)
