"""What features have brought."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "sales",
        sa.Column("feature", sa.String(), primary_key=True),
        sa.Column("sold", sa.Integer(), nullable=False),
        sa.Column("earned", sa.Integer(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("sales")
