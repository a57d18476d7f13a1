"""Conversations, the ordering key of each inbox row, and traces"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("channel", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("updated", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("channel", "name"),
    )
    ordering_key = sa.Column("ordering_key", sa.String(300), nullable=False, server_default="")
    op.add_column("inbox", ordering_key)
    for table in ("inbox", "outbox"):
        op.add_column(
            table, sa.Column("trace", sa.String(length=32), nullable=False, server_default="")
        )
    # the rows that wait now have no key of their own; one for all keeps their order
    op.execute("UPDATE inbox SET ordering_key = 'upgrade' WHERE not_before IS NOT NULL")
