from alembic import context

from billing import Base, engine

with context.config.attributes.get("engine", engine).connect() as connection:
    context.configure(connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
