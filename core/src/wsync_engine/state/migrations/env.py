"""Alembic's entry: runs the versions on the connection that `upgrade` hands over, in one transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

connection: Connection = context.config.attributes["connection"]
connection.execute(text("CREATE SCHEMA IF NOT EXISTS wsync"))  # before the version table, which lies in it
context.configure(connection=connection, version_table="schema_version", version_table_schema="wsync")
context.run_migrations()
connection.execute(text("GRANT SELECT ON wsync.schema_version TO wsync_engine, wsync_api"))
