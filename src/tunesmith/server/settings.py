"""How a server behaves; the command's options are these fields."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from tunesmith.core.settings import Settings


class ServerSettings(Settings):
    """Limits and habits of one server."""

    host: str = "127.0.0.1"
    """Where it listens; the default can be reached from this machine only."""
    keep_text: bool = False
    """Record the text of questions and answers; corrections become training data only with it."""
    max_running: PositiveInt = 16
    """Sequences that take turns in generating."""
    max_waiting: PositiveInt = 64
    """Requests that may wait; the next one is answered 503."""
    token_budget: PositiveInt = 131_072
    """Prompt and answer tokens of all requests taken on."""
    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    """Largest request body."""
    drain_seconds: PositiveFloat = 25.0
    """How long requests in flight may go on after SIGTERM."""
    keep_alive_seconds: PositiveFloat = 15.0
    """Silence in a stream after which a comment is sent."""
    follow_seconds: PositiveFloat = 2.0
    """How often aliases are looked up, to serve what they point at now."""
