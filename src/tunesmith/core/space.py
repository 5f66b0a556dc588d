"""The space of a search: which keys of a recipe vary, and between what.

A range stands beside its key (`lr: {low: 1e-5, high: 1e-3, log: true}`, `rank: {any_of: [4, 8, 16]}`) or, by its dotted
name, in `search.space`, where a plain list will do for `any_of`. What stands in `search.space` leaves the recipe's own
value as it is, so that the same file can still be trained.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import PositiveInt

from tunesmith.core.errors import UserError, suggest
from tunesmith.core.plugins import KINDS, find
from tunesmith.core.settings import Locate, Settings

RANGE_KEYS = ("low", "high", "log", "step")
FREE_MAPPINGS = ("search", "data.columns", "model.config")
"""Mappings whose keys the user makes up: a column may be called "low"."""
PLUGIN_PLACES = {kind.place: kind.folder for kind in KINDS.values() if kind.place in ("method", "objective")}
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
"""Numbers such as 1e-5, which YAML 1.1 takes for text."""
_EXAMPLE = (
    "For example: search: {space: {train.lr: {low: 1e-5, high: 1e-3, log: true}, method.rank: [4, 8, 16]}}; "
    "beside its own key a list is written `any_of`: 'method.rank={any_of: [4, 8, 16]}'"
)


class SearchSettings(Settings):
    """How `tunesmith search` looks for better settings."""

    trials: PositiveInt = 20
    """How many settings are tried; a grid tries all of its own and may have no more."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Who proposes them: TPE learns from earlier trials; a grid takes every combination of lists."""
    pruner: Literal["none", "median", "halving"] = "median"
    """Which trials end early: those behind the median at a validation, or all but the best third at growing shares."""
    metric: str = "auto"
    """What is best: a metric of `evaluate` on the validation rows; `auto` is their loss."""
    train_best: bool = True
    """Train the best recipe once more at the end, as a run; its test rows, if any, are scored then and only then."""
    space: dict[str, Any] = {}
    """What varies, by dotted name: `{low, high, log, step}`, or a list of values (of methods, too)."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both possible."""

    low: float
    high: float
    is_log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant: nothing was written with a decimal point."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)

    def samples(self) -> tuple[float, ...]:
        """The values whose validity stands for all of them."""
        return (self.low, self.high)

    def values(self) -> tuple[float, ...]:
        """Every value, where they can be counted; else none."""
        step = self.step or (1 if self.is_whole and not self.is_log else 0)
        if not step:
            return ()
        found = tuple(self.low + i * step for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1))
        return found if self.is_whole else tuple(float(f"{value:.12g}") for value in found)

    def __str__(self) -> str:
        notes = [f"step {self.step:g}"] if self.step else []
        notes += ["log"] if self.is_log else []
        return f"{self.low:g} to {self.high:g}" + (f" ({', '.join(notes)})" if notes else "")


@dataclass(frozen=True)
class Choice:
    """One of some values; a plug-in with settings is a mapping with `name`."""

    options: tuple[Any, ...]

    def samples(self) -> tuple[Any, ...]:
        return self.options

    def values(self) -> tuple[Any, ...]:
        return self.options

    def labels(self) -> list[str | int | float | bool]:
        """The options as short names, in order: `bottleneck (reduction 8)`."""
        return [label(option) for option in self.options]

    def __str__(self) -> str:
        return ", ".join(str(one) for one in self.labels())


Axis = Range | Choice
Assignment = dict[str, Any]
"""Dotted keys with the values of one trial."""


@dataclass(frozen=True)
class Space:
    """Every key that varies, those of groups before those of their settings; `places` are for messages."""

    axes: Mapping[str, Axis]
    places: Mapping[str, tuple[str, str]]

    def is_active(self, key: str, chosen: Mapping[str, Any]) -> bool:
        """Whether `key` means anything beside what was chosen: `method.rank` does beside lora, not beside ia3."""
        group, _, setting = key.partition(".")
        if group not in PLUGIN_PLACES or group not in chosen or not setting:
            return True
        return setting.partition(".")[0] in find(PLUGIN_PLACES[group], plugin_of(chosen[group])).model_fields

    def combinations(self) -> list[Assignment]:
        """Every combination, for a grid; a key that is not active is left out, and what then repeats, too.

        Raises:
            UserError: The values of a range cannot be counted.
        """
        for key, axis in self.axes.items():
            if not axis.values():
                raise self.error(key, f"a grid cannot count the values of {axis}.", "uncountable", "List them.")
        found: list[Assignment] = []
        for values in itertools.product(*(axis.values() for axis in self.axes.values())):
            chosen: Assignment = {}
            for key, value in zip(self.axes, values, strict=True):
                if self.is_active(key, chosen):
                    chosen[key] = value
            if chosen not in found:
                found.append(chosen)
        return found

    def error(self, key: str, message: str, code: str, remedy: str) -> UserError:
        """A fault of this key, at its place."""
        where, frame = self.places.get(key, ("", ""))
        return UserError(f"`{key}`: {message}", code=code, where=where, remedy=remedy, frame=frame)


def take_space(values: Mapping[str, Any], locate: Locate | None = None) -> tuple[dict[str, Any], Space]:
    """The recipe's values with the first of every range in its stead, and the space.

    Raises:
        UserError: A range is wrong or empty, stands twice, or there is none.
    """
    plain, axes, places = _beside(values, locate)
    section = plain.get("search")
    wished = section.get("space") if isinstance(section, Mapping) else None
    if isinstance(wished, Mapping):
        for path, spec in _flat(wished, ()):
            key = ".".join(path)
            places[key] = locate(("search", "space", *path)) if locate else ("", "")
            if key in axes:
                where, frame = places[key]
                raise UserError(
                    f"`{key}` has two ranges.", code="repeated_key", where=where, remedy="Keep one.", frame=frame
                )
            axes[key] = _axis(key, spec, places[key])
    if not axes:
        raise UserError("there is nothing to search: no key has a range.", code="no_space", remedy=_EXAMPLE)
    ordered = {key: axes[key] for key in sorted(axes, key=lambda key: key.count("."))}
    return plain, Space(ordered, places)


def without_ranges(values: Mapping[str, Any], locate: Locate | None = None) -> dict[str, Any]:
    """The recipe's values with the first of every range in its stead.

    Raises:
        UserError: A range is wrong or empty.
    """
    return _beside(values, locate)[0]


def _beside(
    values: Mapping[str, Any], locate: Locate | None
) -> tuple[dict[str, Any], dict[str, Axis], dict[str, tuple[str, str]]]:
    """Values without the ranges that stand beside their keys, those ranges, and their places."""
    plain = copy.deepcopy(dict(values))
    axes: dict[str, Axis] = {}
    places: dict[str, tuple[str, str]] = {}
    for path, spec in list(_ranges(plain, ())):
        key = ".".join(path)
        places[key] = locate(path) if locate else ("", "")
        axes[key] = _axis(key, spec, places[key])
        group = plain
        for part in path[:-1]:
            group = group[part]
        group[path[-1]] = axes[key].samples()[0]
    return plain, axes, places


def refuse_ranges(values: Mapping[str, Any], locate: Locate | None = None) -> None:
    """What trains a recipe takes no ranges beside its keys.

    Raises:
        UserError: A key has a range where a value belongs.
    """
    for path, _ in _ranges(values, ()):
        where, frame = locate(path) if locate else ("", "")
        raise UserError(
            f"`{'.'.join(path)}` is a range, and this needs a value.",
            code="range_in_recipe",
            where=where,
            remedy=f"Find one with `tunesmith search`, or give one: {'.'.join(path)}=VALUE",
            frame=frame,
        )


def label(value: Any) -> str | int | float | bool:
    """An option as a short name: plain values as they are, plug-ins as `bottleneck (reduction 8)`."""
    if isinstance(value, Mapping) and "name" in value:
        rest = ", ".join(f"{key.replace('_', ' ')} {inner}" for key, inner in value.items() if key != "name")
        return f"{value['name']} ({rest})" if rest else str(value["name"])
    return value if isinstance(value, str | int | float | bool) else str(value)


def plugin_of(spec: Any) -> str:
    """The name of a plug-in as a recipe writes it."""
    return str(spec["name"] if isinstance(spec, Mapping) else spec)


def _ranges(values: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every mapping that is a range, with its path."""
    if not isinstance(values, Mapping) or ".".join(path) in FREE_MAPPINGS:
        return
    if path and _is_range(values):
        yield path, values
        return
    for key, inner in values.items():
        yield from _ranges(inner, (*path, str(key)))


def _is_range(values: Mapping[str, Any]) -> bool:
    return any(key in values for key in ("low", "high", "any_of"))


def _flat(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every range with its path as it is written: `{train: {lr: …}}` and `{train.lr: …}` mean the same."""
    for key, inner in values.items():
        whole = (*path, str(key))
        if isinstance(inner, Mapping) and not _is_range(inner) and inner:
            yield from _flat(inner, whole)
        else:
            yield whole, inner


Fault = Callable[..., UserError]


def _axis(key: str, spec: Any, place: tuple[str, str]) -> Axis:
    def fault(message: str, code: str = "bad_range", remedy: str = "") -> UserError:
        return UserError(f"`{key}`: {message}", code=code, where=place[0], remedy=remedy, frame=place[1])

    options = spec.get("any_of") if isinstance(spec, Mapping) and "any_of" in spec else spec
    if isinstance(options, Sequence) and not isinstance(options, str):
        if isinstance(spec, Mapping) and len(spec) > 1:
            raise fault("`any_of` stands alone.", remedy="Leave the other keys out.")
        return Choice(tuple(_options(options, fault)))
    if not isinstance(spec, Mapping) or not spec:
        raise fault(f"{spec!r} is neither a range nor a list.", remedy="Write {low: 1, high: 8}, or [1, 2, 4].")
    return _range(spec, fault)


def _range(spec: Mapping[str, Any], fault: Fault) -> Range:
    for name in spec:
        if name not in RANGE_KEYS:
            hint = suggest(str(name), RANGE_KEYS).sentence() or f"A range has {', '.join(RANGE_KEYS)}."
            raise fault(f'"{name}" is not a setting of a range;', "unknown_setting", hint)
    for name in ("low", "high"):
        if name not in spec:
            raise fault(f"the range has no `{name}`.", remedy=f"Set {name}.")
    numbers = {name: _number(spec[name]) for name in ("low", "high", "step") if spec.get(name) is not None}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise fault(f"`{name}` cannot be {spec[name]!r}; it must be a number.")
    low, high, step, is_log = numbers["low"], numbers["high"], numbers.get("step"), spec.get("log", False)
    if not isinstance(is_log, bool):
        raise fault(f"`log` cannot be {is_log!r}; it is true or false.")
    if not low < high:
        raise fault(f"the range is empty: low {low:g} is not below high {high:g}.", "empty_range")
    if is_log and (low <= 0 or step):
        raise fault("a logarithmic range begins above 0 and has no step.")
    if step is not None and not 0 < step <= high - low:
        raise fault(f"`step` must be above 0 and at most {high - low:g}.")
    return Range(low, high, is_log, step)


def _options(options: Sequence[Any], fault: Fault) -> Iterator[Any]:
    if len(options) < 2:
        raise fault("a list of one value, or none, leaves no choice.", "empty_range", "Name at least two.")
    read = [_number(option) for option in options]
    names = [label(option) for option in read]
    for name, option in zip(names, read, strict=True):
        if names.count(name) > 1:
            raise fault(f"{name} stands twice in the list.", "repeated_value", "Keep one.")
        if isinstance(option, Mapping) and any(True for _ in _ranges({"option": option}, ())):
            raise fault("an option holds no range.", remedy=f"Put it beside it: `{plugin_of(option)}`'s keys by name.")
        yield option


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
