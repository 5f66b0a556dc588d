"""What the routes share: the parts of one server, and whether it is well."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass

from tunesmith.core.errors import UserError
from tunesmith.core.store import RequestRow, Store
from tunesmith.server.catalog import Catalog
from tunesmith.server.engine import Engine
from tunesmith.server.monitor import Monitor
from tunesmith.server.settings import ServerSettings

log = logging.getLogger("tunesmith.server")
MIN_FREE_BYTES = 16 * 1024 * 1024
"""Below this the database may fail at any moment."""


@dataclass(frozen=True)
class Service:
    """One server's parts."""

    catalog: Catalog
    engine: Engine
    store: Store
    settings: ServerSettings
    monitor: Monitor

    def troubles(self) -> dict[str, str]:
        """What keeps the server from answering well, by part; empty when it is ready."""
        found = {}
        if not self.engine.is_alive:
            found["engine"] = "it has ended"
        elif not self.engine.is_open:
            found["engine"] = "it is shutting down"
        if not self.catalog.served:
            found["models"] = "no model is loaded"
        try:
            self.store.check()
        except UserError as fault:
            found["database"] = fault.message
        registry = self.store.home.registry.absolute()
        folder = next(path for path in (registry, *registry.parents) if path.is_dir())
        if not os.access(folder, os.W_OK):
            found["disk"] = "the registry cannot be written"
        elif (free := shutil.disk_usage(folder).free) < MIN_FREE_BYTES:
            found["disk"] = f"only {free:,} bytes are free"
        return found

    def record(self, row: RequestRow) -> None:
        """Keep a request's metadata. A database that fails is told by /readyz and the log, not to the caller."""
        try:
            self.store.add_request(row)
        except UserError as fault:
            log.error("request %s was not recorded: %s", row.id, fault.line())
