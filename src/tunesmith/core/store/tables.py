"""The tables as they are now; `migrations/` holds the steps that lead here (a test compares the two).

Times are UTC text, ISO 8601 to the second. Requests name their model by text, so that they outlive a deleted version.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("last_number", Integer, nullable=False),  # the highest number ever given; never goes down
    Column("at", String(20), nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("name", ForeignKey("models.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("content_hash", String(64), nullable=False),
    Column("folder", Text, nullable=False),  # below the registry's folder
    Column("lineage", JSON, nullable=False),
    Column("who", Text, nullable=False),
    Column("at", String(20), nullable=False),
    UniqueConstraint("name", "content_hash"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", ForeignKey("models.name"), nullable=False, index=True),
    Column("alias", String(64), nullable=False),
    Column("previous", Integer),
    Column("number", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("gates", JSON, nullable=False),
    Column("who", Text, nullable=False),
    Column("at", String(20), nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Integer),
    Column("endpoint", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("finish_reason", Text, nullable=False),
    Column("num_choices", Integer, nullable=False),
    Column("num_prompt_tokens", Integer, nullable=False),
    Column("num_answer_tokens", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("first_token_seconds", Float),
    Column("messages", JSON(none_as_null=True)),
    Column("answers", JSON(none_as_null=True)),
    Column("at", String(20), nullable=False),
    Index("ix_requests_model", "model", "at"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("request", ForeignKey("requests.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("rater", String(128), primary_key=True),
    Column("choice", Integer, nullable=False),
    Column("value", JSON, nullable=False),
    Column("comment", Text, nullable=False),
    Column("correction", Text, nullable=False),
    Column("at", String(20), nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("progress", Float, nullable=False),
    Column("details", JSON, nullable=False),
    Column("at", String(20), nullable=False),
    Column("changed_at", String(20), nullable=False),
)
