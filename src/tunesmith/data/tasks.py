"""Several tasks with heads of their own: a data set for each, held out by one rule, and how often each is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, silent
from tunesmith.data.load import DataSet, load_data
from tunesmith.data.mix import copies_per_epoch, settings_of, sources_of
from tunesmith.recipe import DataSettings, SourceSettings

RESERVED = ("model", "checkpoints")
"""Folders that a run has anyway."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


@dataclass(frozen=True)
class TaskSets:
    """The data of every task, by its name."""

    sources: Mapping[str, SourceSettings]
    settings: Mapping[str, DataSettings]
    """What reads one task's rows alone."""
    sets: Mapping[str, DataSet]
    copies: Mapping[str, float]
    """How often each task's rows are read in an epoch."""

    def card(self) -> dict[str, Any]:
        """The data cards of all tasks. Equal data have equal cards."""
        return {
            "version": 1,
            "tasks": {name: data.card() for name, data in self.sets.items()},
            "copies": dict(self.copies),
        }


def load_tasks(settings: DataSettings, *, seed: int, emit: Emit = silent) -> TaskSets:
    """The data sets of a recipe whose sources are tasks of their own.

    Raises:
        UserError: A source names no objective, a name cannot be a folder, or as `load_data`.
    """
    sources = {source.name: source for source in sources_of(settings)}
    for name, source in sources.items():
        if source.objective == "auto":
            raise UserError(
                f'the source "{name}" names no objective, and others do.',
                code="no_objective",
                where="data.source",
                remedy="Name one in every source (tasks with their own heads) or in none (one head for all).",
            )
        if name in RESERVED or not _NAME.fullmatch(name):
            raise UserError(
                f'"{name}" cannot be the name of a task: it becomes a folder of the run.',
                code="bad_name",
                where="data.source",
                remedy=f"Set its `name`: letters, digits, `_`, `-` and dots, and none of {', '.join(RESERVED)}.",
            )
    for side in ("validation", "test"):
        if getattr(settings, side):
            raise UserError(
                f"`data.{side}` is one file, and these are {len(sources)} tasks.",
                code="several_tasks",
                where=f"data.{side}",
                remedy=f"Name it in the source it belongs to: {{path: …, {side}: …, objective: …}}.",
            )
    alone = {name: settings_of(settings, source) for name, source in sources.items()}
    sets = {name: load_data(one, seed=seed, emit=emit) for name, one in alone.items()}
    sizes, weights = [len(data.train) for data in sets.values()], [source.weight for source in sources.values()]
    copies = dict(zip(sets, copies_per_epoch(sizes, weights, settings.mixing), strict=True))
    return TaskSets(sources, alone, sets, copies)
