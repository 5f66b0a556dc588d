"""What a search is going to do, checked before a weight is loaded: every end of every range gives a valid recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.errors import UserError
from tunesmith.core.overrides import put
from tunesmith.core.plugins import names
from tunesmith.core.settings import Locate
from tunesmith.core.space import (
    PLUGIN_PLACES,
    Assignment,
    Choice,
    SearchSettings,
    Space,
    label,
    take_space,
)
from tunesmith.metrics.base import Metric
from tunesmith.recipe import Recipe, make_recipe, read_values
from tunesmith.steps.evaluate import metric_of

FIXED = {
    "name": "it changes no score",
    "seed": "the rows that trials are judged by would change",
    "data.split": "the rows that trials are judged by would change",
    "data.validation": "the rows that trials are judged by would change",
    "data.test": "a search does not look at test rows",
    "evaluate": "it changes what is measured",
    "compare": "it changes no score",
    "search": "it is the search",
    "launcher": "it changes no score",
}
"""Keys that cannot be searched, and why."""
CHANGE_LOSS = ("model", "objective", "data.max_length")
"""Keys that change what the loss counts (another tokenizer's tokens, another sum): losses cannot be compared."""


@dataclass(frozen=True)
class SearchPlan:
    """A recipe, the space around it, and how to look."""

    values: Mapping[str, Any]
    """Plain recipe values as the user wrote them, ranges included; what a resumed search reads again."""
    plain: Mapping[str, Any]
    """The same without ranges beside keys."""
    space: Space
    recipe: Recipe

    @staticmethod
    def read(path: str | Path, overrides: Sequence[str] = ()) -> SearchPlan:
        """The plan of a recipe file with `key=value` overrides.

        Raises:
            UserError: The recipe or a range is wrong, or no key has a range.
        """
        values, locate = read_values(path, overrides)
        return SearchPlan.make(values, locate=locate)

    @staticmethod
    def make(values: Mapping[str, Any], *, locate: Locate | None = None) -> SearchPlan:
        """The plan of plain values (Python, REST)."""
        plain, space = take_space(values, locate)
        recipe = make_recipe(plain, locate=locate)
        plan = SearchPlan(values, plain, space, recipe)
        plan.check()
        return plan

    @property
    def settings(self) -> SearchSettings:
        return self.recipe.search

    @cached_property
    def metric(self) -> Metric | None:
        """The metric that decides; None is the validation loss."""
        wished = self.settings.metric
        return None if wished == "auto" else metric_of(wished)

    @property
    def metric_name(self) -> str:
        """The name of the value that decides."""
        return "validation_loss" if self.metric is None else self.metric.key()

    @property
    def metric_title(self) -> str:
        return "validation loss" if self.metric is None else self.metric.heading()

    @property
    def higher_is_better(self) -> bool:
        return self.metric is not None and self.metric.higher_is_better

    @property
    def num_trials(self) -> int:
        """How many trials there are to be."""
        return len(self.combinations) if self.settings.sampler == "grid" else self.settings.trials

    @cached_property
    def combinations(self) -> list[Assignment]:
        """All of a grid."""
        return self.space.combinations()

    def to_yaml(self) -> str:
        """The file that a resumed search reads."""
        return yaml.safe_dump(dict(self.values), sort_keys=False, allow_unicode=True, width=120)

    def recipe_for(self, chosen: Assignment) -> Recipe:
        """The recipe of one trial: no ranges, no search.

        Raises:
            UserError: These values do not go together.
        """
        values = _deep(self.plain)
        values.pop("search", None)
        for key, value in chosen.items():
            if _is_same_plugin(values.get(key), value):
                continue  # the recipe's own settings of that plug-in stay
            put(values, key, _deep(value))
        return make_recipe(values)

    def check(self) -> None:
        """Try what each key can be, beside every plug-in that it can stand beside.

        Raises:
            UserError: A key does not exist, cannot be searched, or a value is out of its bounds.
        """
        for key in self.space.axes:
            self._refuse_fixed(key)
            contexts = [context for context in self._contexts(key) if self.space.is_active(key, context)]
            if not contexts:
                raise self.space.error(key, "no value of its group has such a setting.", "unknown_setting", "Leave it.")
            for context in contexts:
                for value in self.space.axes[key].samples():
                    self._try(key, {**context, key: value})
        assert self.metric is None or self.metric.name in names("metrics") or "." in self.metric.name, self.metric
        if self.settings.sampler == "grid" and len(self.combinations) > self.settings.trials:
            many = len(self.combinations)
            raise UserError(
                f"the grid has {many:,} combinations and `search.trials` is {self.settings.trials:,}.",
                code="grid_too_large",
                where="search.trials",
                remedy=f"Set search.trials={many}, shorten the lists, or take search.sampler=tpe.",
            )

    def _contexts(self, key: str) -> Iterator[Assignment]:
        group = key.partition(".")[0]
        axis = self.space.axes.get(group)
        if group != key and group in PLUGIN_PLACES and isinstance(axis, Choice):
            yield from ({group: option} for option in axis.options)
        else:
            yield {}

    def _try(self, key: str, chosen: Assignment) -> None:
        try:
            self.recipe_for(chosen)
        except UserError as fault:
            where, frame = self.space.places.get(key, ("", ""))
            beside = ", ".join(f"{name}={label(value)}" for name, value in chosen.items() if name != key)
            note = f" (beside {beside})" if beside and fault.code != "unknown_setting" else ""
            raise UserError(
                fault.message + note,
                code=fault.code,
                where=where or f"search.space.{key}",
                remedy=fault.remedy,
                frame=frame,
            ) from None

    def _refuse_fixed(self, key: str) -> None:
        for fixed, why in FIXED.items():
            if f"{key}.".startswith(f"{fixed}."):
                raise self.space.error(key, f"this cannot be searched: {why}.", "not_searchable", "Fix it.")
        changes = next((one for one in CHANGE_LOSS if f"{key}.".startswith(f"{one}.")), "")
        if changes and self.metric is None:
            raise self.space.error(
                key,
                "it changes what the loss counts, so that trials could not be compared by their losses.",
                "loss_not_comparable",
                "Choose what is best by another score, for example: search.metric=exact_match",
            )


def _is_same_plugin(own: Any, chosen: Any) -> bool:
    return isinstance(own, Mapping) and isinstance(chosen, str) and own.get("name") == chosen


def _deep(value: Any) -> Any:
    """A copy of plain values that can be changed."""
    if isinstance(value, Mapping):
        return {key: _deep(inner) for key, inner in value.items()}
    return [_deep(inner) for inner in value] if isinstance(value, list | tuple) else value
