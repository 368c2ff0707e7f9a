"""What Alembic runs; only `runner.upgrade` calls it, with a connection whose transaction it owns."""

from alembic import context

from labeling.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
