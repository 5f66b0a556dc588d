"""Few-shot fine-tuning: a handful of training rows, drawn by the seed.

Rows with classes are drawn per class, all others altogether. A row with several classes (sets of classes, tags of
words) counts for each of them, so a class has k rows or more; rows whose set of classes is empty are drawn as one more
class. The draw goes by the hash of a row's contents, so rows that are added elsewhere do not change it, and k + 1 shots
are the k shots and one more of each class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tunesmith.core.records import Example, Origin
from tunesmith.data.findings import Findings
from tunesmith.data.labels import labels_in
from tunesmith.data.repeats import content_key
from tunesmith.data.split import unit_hash


def draw_shots(examples: Sequence[Example], shots: int, seed: int, found: Findings) -> list[Example]:
    """The first `shots` rows of each class of each source, in their order; a class with fewer is a finding."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        for label in labels_in(example) or ("",):
            groups[(example.source_name, label)].append(i)
    chosen: set[int] = set()
    for (_, label), members in groups.items():
        ordered = sorted(members, key=lambda i: (unit_hash(f"shots {content_key(examples[i])}", seed), i))
        chosen.update(ordered[:shots])
        if len(members) < shots:
            note_few_shots(found, label, len(members), shots, examples[members[0]].origin)
    return [examples[i] for i in sorted(chosen)]


def note_few_shots(found: Findings, label: str, num_rows: int, shots: int, first: Origin) -> None:
    """Note a class (empty: the rows without one) that has fewer rows than are to be drawn; `first` is its first."""
    what = f'the class "{label}" has' if label else "there are"
    text = f"{what} {num_rows} training rows, fewer than the {shots} of data.shots"
    found.add("warning", "few_shots", first, text, "data.shots")
