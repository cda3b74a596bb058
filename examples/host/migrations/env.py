"""The platform's migrations. The points' tables are in the same database, and are left to their own revisions."""

import os

from alembic import context
from sqlalchemy import create_engine
from sqlmodel import SQLModel

import examples.host.tables  # noqa: F401 - what SQLModel's metadata knows
from points_platform import migrations

engine = create_engine(os.environ["HOST_DATABASE"])
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=[SQLModel.metadata, migrations.metadata()],
        include_object=migrations.include_object,
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
