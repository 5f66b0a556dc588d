"""Alembic's scripts; run by `core.store.database`, never by hand."""
