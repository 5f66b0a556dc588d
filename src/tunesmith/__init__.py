"""Tunesmith: fine-tune language models on your own data, from the raw file to the served answer.

    import tunesmith as ts

    data   = ts.data("tickets.jsonl")
    run    = ts.train("tunesmith/base", data, method="lora", rank=16)
    report = ts.compare(data.test, ["zero-shot", "few-shot", run])
    print(run.chat("What does error E07 mean?"))
    ts.register(run, "manual").promote()

Importing this is fast: every name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tunesmith.api import compare, evaluate, plan, register, run, serve, train, train_seeds
    from tunesmith.api_search import lr_range, search
    from tunesmith.core.errors import GateError, TunesmithError, UserError
    from tunesmith.nouns import Data, Model, Plan, Report, Run, Search, Seeds, Server, Version

    data: _DataPackage
    models: _ModelsPackage

_PLACES = {
    **dict.fromkeys(
        ("plan", "train", "run", "evaluate", "compare", "register", "serve", "train_seeds"), "tunesmith.api"
    ),
    **dict.fromkeys(("search", "lr_range"), "tunesmith.api_search"),
    **dict.fromkeys(
        ("Data", "Plan", "Run", "Report", "Model", "Version", "Search", "Seeds", "Server"), "tunesmith.nouns"
    ),
    **dict.fromkeys(("GateError", "TunesmithError", "UserError"), "tunesmith.core.errors"),
}
__all__ = [
    "Data",
    "GateError",
    "Model",
    "Plan",
    "Report",
    "Run",
    "Search",
    "Seeds",
    "Server",
    "TunesmithError",
    "UserError",
    "Version",
    "compare",
    "data",
    "evaluate",
    "lr_range",
    "models",
    "plan",
    "register",
    "run",
    "search",
    "serve",
    "train",
    "train_seeds",
]


class _DataPackage(ModuleType):
    """The package `tunesmith.data`, which is also the verb `ts.data(…)`."""

    def __call__(self, source: Any, *, home: Any = None, seed: int = 1, **settings: Any) -> Data:
        """Rows of a file, a folder, a list of rows, a DataFrame or a `datasets.Dataset`, checked and split.

        `settings` are those of a recipe's `data`: `tunesmith plugins data`.
        """
        from tunesmith.api import data

        return data(source, home=home, seed=seed, **settings)


class _ModelsPackage(ModuleType):
    """The package `tunesmith.models`, which is also the mapping `ts.models[name]`."""

    def __getitem__(self, name: str) -> Model:
        """The registered model of that name, in the default home."""
        from tunesmith.nouns import Model

        return Model.open(name)

    def __iter__(self) -> Iterator[str]:
        from tunesmith.nouns import Model

        return iter(Model.names())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True

    def _repr_html_(self) -> str:
        from tunesmith.nouns import Model

        return Model.overview()


_PACKAGES: dict[str, type[ModuleType]] = {"data": _DataPackage, "models": _ModelsPackage}


class _Tunesmith(ModuleType):
    """This package; it sees to it that `data` and `models` are verbs, too, whoever imports them first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _PACKAGES[name]
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Tunesmith


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
