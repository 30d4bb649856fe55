"""The first plans."""

from alembic import op

revision = "002"
down_revision = "001"


def upgrade() -> None:
    op.execute("INSERT INTO plan (name, price) VALUES ('free', 0), ('team', 20)")


def downgrade() -> None:
    op.execute("DELETE FROM plan WHERE name IN ('free', 'team')")
