"""Alembic's entry: runs on the connection that `agentq.store.migrate` opened, in its transaction."""

from alembic import context

from agentq.store.migrate import _VERSION_TABLE, include_name
from agentq.store.schema import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=_VERSION_TABLE,
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=include_name,
    transaction_per_migration=False,
)
context.run_migrations()
