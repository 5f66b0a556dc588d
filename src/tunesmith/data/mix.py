"""Several sources in one training: how often each is drawn, and each one's share of the settings.

With e rows, K the size limit, T the temperature and w the weight of a source, its rows are drawn at the rate

    r = w · min(e, K)^(1/T)    (proportional: T = 1 without K; equal: r = w)

as in T5 (arXiv:1910.10683, section 3.5.2: examples-proportional, temperature-scaled and equal mixing). No row is lost:
the source that is drawn least per row is read once per epoch, the others more often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example
from tunesmith.data.repeats import content_key
from tunesmith.data.split import unit_hash
from tunesmith.recipe import DataSettings, SourceSettings, Temperature

if TYPE_CHECKING:
    from tunesmith.data.load import DataSet

Mixing = str | Temperature


def sources_of(settings: DataSettings) -> tuple[SourceSettings, ...]:
    """The sources of a recipe, each with its name.

    Raises:
        UserError: Two have the same name, or a name cannot be a folder's.
    """
    if isinstance(settings.source, str):
        return (SourceSettings(path=settings.source),)
    named = tuple(source.model_copy(update={"name": source.title}) for source in settings.source)
    if not named:
        raise UserError("there is no source.", code="no_rows", where="data.source", remedy="Name at least one file.")
    name, times = Counter(source.name for source in named).most_common(1)[0]
    if times > 1:
        raise UserError(
            f'{times} sources are called "{name}".',
            code="repeated_name",
            where="data.source",
            remedy=f"Give each a name: {{path: {named[0].path}, name: …}}.",
        )
    return named


def settings_of(settings: DataSettings, source: SourceSettings) -> DataSettings:
    """The data settings as they are for one source."""
    return settings.model_copy(
        update={
            "source": source.path,
            "format": source.format if source.format != "auto" else settings.format,
            "columns": source.columns or settings.columns,
            "validation": source.validation or settings.validation,
            "test": source.test or settings.test,
        }
    )


def has_tasks(settings: DataSettings) -> bool:
    """Whether the sources are tasks of their own: each names its objective."""
    return not isinstance(settings.source, str) and any(source.objective != "auto" for source in settings.source)


def refuse_tasks(settings: DataSettings) -> None:
    """For what can be done with one data set only.

    Raises:
        UserError: The sources are tasks of their own.
    """
    if has_tasks(settings):
        names = ", ".join(source.name for source in sources_of(settings))
        raise UserError(
            f"these data are several tasks ({names}), and this works on one.",
            code="several_tasks",
            where="data.source",
            remedy="Name the data of one task, or a task's own folder in a finished run: RUN/TASK.",
        )


def copies_per_epoch(sizes: Sequence[int], weights: Sequence[float], mixing: Mixing) -> tuple[float, ...]:
    """How often the rows of each source are read in an epoch; at least once, 1.5 is every second row twice.

    `sizes` are rows. The share of a source among all reads is its rate (see the module) over the sum of rates.
    """
    per_row = [
        weight * _rate(size, mixing) / size if size else 0.0 for size, weight in zip(sizes, weights, strict=True)
    ]
    least = min((rate for rate in per_row if rate), default=1.0)
    return tuple(rate / least for rate in per_row)


def _rate(size: int, mixing: Mixing) -> float:
    if isinstance(mixing, Temperature):
        counted = min(size, mixing.size_limit) if mixing.size_limit else size
        return float(counted ** (1 / mixing.temperature))
    return float(size) if mixing == "proportional" else 1.0


def named(examples: Sequence[Example], name: str) -> tuple[Example, ...]:
    """The examples with the name of their source."""
    return tuple(replace(example, source_name=name) for example in examples)


def repeated(data: DataSet) -> Sequence[Example]:
    """The training rows of one epoch, written out: each as often as its source is read.

    What is left after whole copies is chosen by hash. A training draws anew in every epoch (training/order.py).
    """
    if not data.copies:
        return data.train
    out: list[Example] = []
    for name, times in data.copies.items():
        mine = [i for i, example in enumerate(data.train) if example.source_name == name]
        whole, part = divmod(times, 1.0)
        extra = sorted(mine, key=lambda i: (unit_hash(f"mix {content_key(data.train[i])}", data.seed), i))
        chosen = sorted([*mine * int(whole), *extra[: round(part * len(mine))]])
        out.extend(data.train[i] for i in chosen)
    return tuple(out)
