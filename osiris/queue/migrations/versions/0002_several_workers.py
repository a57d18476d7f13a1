"""Several workers: leases, turns, records, and what a run needs to resume on another machine"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INDEXES: Sequence[tuple[str, str, list[str], str]] = (
    ("ix_inbox_waiting", "inbox", ["id"], "not_before IS NOT NULL"),
    ("ix_inbox_failed", "inbox", ["id"], "error IS NOT NULL"),
    ("ix_outbox_waiting", "outbox", ["id"], "not_before IS NOT NULL"),
    ("ix_outbox_waiting_about", "outbox", ["about"], "not_before IS NOT NULL"),
    ("ix_outbox_failed", "outbox", ["id"], "error IS NOT NULL"),
)


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("place", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "turns",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("lease", sa.BigInteger(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "records",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    for table in ("tasks", "outbox", "runs"):
        op.add_column(table, sa.Column("lease", sa.BigInteger(), nullable=True))
    op.add_column(
        "runs", sa.Column("place", sa.String(length=64), nullable=False, server_default="")
    )
    op.add_column(
        "runs", sa.Column("kept", sa.String(length=64), nullable=False, server_default="")
    )
    op.add_column("runs", sa.Column("kept_steps", sa.Integer(), nullable=False, server_default="0"))
    op.add_column(
        "outbox", sa.Column("about", sa.String(length=300), nullable=False, server_default="")
    )
    op.execute(
        "UPDATE outbox SET about = (SELECT repo || '#' || issue FROM tasks WHERE tasks.id ="
        " task_id) WHERE task_id IS NOT NULL"
    )
    op.drop_index("ix_inbox_due", "inbox")
    op.drop_index("ix_outbox_due", "outbox")
    op.create_index("ix_tasks_updated", "tasks", ["updated"])
    for name, table, columns, where in _INDEXES:
        op.create_index(
            name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
