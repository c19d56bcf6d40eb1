"""What Alembic runs; the connection, and with it the transaction, are the store's."""

from alembic import context

from limner.serve.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
