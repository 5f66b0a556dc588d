"""The classes of rows of any kind: which a row has, which there are, and their order."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example, LabelExample, MultiLabelExample, Origin, TagExample


def labels_in(example: Example) -> tuple[str, ...]:
    """The classes of a row, each once; none where its kind has no classes."""
    if isinstance(example, LabelExample):
        return (example.label,)
    if isinstance(example, MultiLabelExample):
        return example.labels
    return tuple(dict.fromkeys(example.tags)) if isinstance(example, TagExample) else ()


def in_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Class names sorted, numbers in their order."""
    is_numeric = all(label.lstrip("-").isdigit() for label in labels)
    return tuple(sorted(set(labels), key=lambda label: (int(label) if is_numeric else 0, label)))


def label_index(label: str, labels: Sequence[str], origin: Origin) -> int:
    """The number of a class.

    Raises:
        UserError: It is not among the trained ones.
    """
    if label not in labels:
        raise UserError(
            f'the label "{label}" is not among the {len(labels)} trained ones.',
            code="unknown_label",
            where=str(origin),
            remedy="Correct it, or add training rows with this label.",
        )
    return labels.index(label)


def learnt_labels(learnt: Collection[str], held_out: Sequence[Example]) -> tuple[str, ...]:
    """The class names of training rows with several classes each, in order.

    Raises:
        UserError: There are fewer than two, or a held-out row has one that is never trained.
    """
    names = set(learnt)
    for example in held_out:
        if missing := sorted(set(labels_in(example)) - names):
            raise UserError(
                f'the label "{missing[0]}" is not among the training rows.',
                code="unseen_label",
                where=str(example.origin),
                remedy="Add training rows with this label, mend its spelling, or delete the row.",
            )
    if len(names) < 2:
        found = f'only the label "{next(iter(learnt))}"' if learnt else "no label"
        raise UserError(f"the rows have {found}.", code="one_label", remedy="Add another class.")
    return in_order(tuple(learnt))
