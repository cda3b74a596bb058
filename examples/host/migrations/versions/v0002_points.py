"""The points' tables, by the revisions that their package ships."""

from alembic import op

from points_platform import migrations

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    migrations.upgrade(op.get_bind())


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back")
