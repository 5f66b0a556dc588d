"""Alembic runs this for every upgrade; the store hands over its open connection, within its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
