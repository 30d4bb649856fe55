"""Prices have cents."""

import sqlalchemy as sa
from alembic import op

revision = "003"
down_revision = "002"


def upgrade() -> None:
    op.alter_column("plan", "price", type_=sa.Numeric(8, 2))


def downgrade() -> None:
    op.alter_column("plan", "price", type_=sa.Integer)
