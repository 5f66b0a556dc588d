"""The web application of one server, from its parts."""

from __future__ import annotations

from fastapi import FastAPI

from tunesmith import __version__
from tunesmith.core.store import Store
from tunesmith.server.boundary import Boundary, allowed_hosts
from tunesmith.server.catalog import Catalog
from tunesmith.server.engine import Engine
from tunesmith.server.errors import install_handlers
from tunesmith.server.feedback import feedback_routes
from tunesmith.server.health import health_routes
from tunesmith.server.openai import openai_routes
from tunesmith.server.service import Service
from tunesmith.server.settings import ServerSettings


def create_app(catalog: Catalog, engine: Engine, store: Store, settings: ServerSettings) -> FastAPI:
    """The application; its engine must run, its models be loaded. Interactive docs are off: they need a CDN."""
    monitor = engine.monitor
    service = Service(catalog, engine, store, settings, monitor)
    app = FastAPI(title="Tunesmith", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.include_router(openai_routes(service))
    app.include_router(feedback_routes(service))
    app.include_router(health_routes(service))
    install_handlers(app)
    monitor.watch(
        running=lambda: engine.num_running,
        waiting=lambda: engine.num_waiting,
        loaded=lambda: sum(served.is_adapter for served in catalog.served),
    )
    app.add_middleware(Boundary, monitor=monitor, hosts=allowed_hosts(settings.host))
    return app
