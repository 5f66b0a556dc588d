"""What is served: the names that callers may use, and the model behind each."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from tunesmith.core.errors import suggest
from tunesmith.server.errors import ApiError, echo
from tunesmith.steps.served import Served


class Catalog:
    """Names and models; replaced as a whole when an alias moves, so that a request sees one state."""

    def __init__(self, served: Iterable[Served]) -> None:
        self._lock = threading.Lock()
        self._served: tuple[Served, ...] = tuple(served)

    @property
    def served(self) -> tuple[Served, ...]:
        """Every model that is loaded."""
        with self._lock:
            return self._served

    def replace(self, served: Iterable[Served]) -> None:
        """Serve these from now on; answers under way end on the model they began with."""
        with self._lock:
            self._served = tuple(served)

    def find(self, name: str) -> Served:
        """The model that `name`, `name@alias` or `name:version` stands for.

        Raises:
            ApiError: 404; the names that are close, or all, are said.
        """
        names = {known: served for served in self.served for known in served.names}
        if name in names:
            return names[name]
        hint = suggest(name, names).sentence() or "Served: " + ", ".join(sorted(names)[:20]) + "."
        message = f'The model "{echo(name)}" is not served here; {hint}'
        raise ApiError(404, message, code="model_not_found", param="model")

    def entries(self) -> list[dict[str, Any]]:
        """The list of /v1/models: each model under its first name and, where it has one, its version."""
        return [entry(served, name) for served in self.served for name in served.listed]


def entry(served: Served, name: str) -> dict[str, Any]:
    """One model as OpenAI's API describes it, with where it comes from."""
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "tunesmith",
        "root": served.reference,
        "parent": served.base or None,
        "version": served.version,
        "max_model_len": served.context_length,
    }
