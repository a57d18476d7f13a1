"""New names in stored tasks and orders"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TASK_FIELDS = {"heard": "seen_reviews", "barred": "read_only", "grants": "budget_grants"}
_REPLY_FIELDS = {"once": "dedup_key"}


def upgrade() -> None:
    _rename_fields("tasks", "data", "true", _TASK_FIELDS)
    _rename_fields("outbox", "body", "kind = 'Reply'", _REPLY_FIELDS)
    _name_principals()


def _name_principals() -> None:
    """Give requests their principal. Until now only the operator's command line made them."""
    connection = op.get_bind()
    inbox = sa.table("inbox", *(sa.column(name) for name in ("id", "source", "kind", "body")))
    made = sa.select(inbox.c.id, inbox.c.body).where(inbox.c.kind == "RequestMade")
    for number, body in connection.execute(made.where(inbox.c.source == "osiris")).all():
        changed = json.dumps(_with_principal(json.loads(body))).encode()
        connection.execute(sa.update(inbox).where(inbox.c.id == number).values(body=changed))
    outbox = sa.table("outbox", sa.column("id"), sa.column("kind"), sa.column("body", sa.JSON()))
    orders = sa.select(outbox.c.id, outbox.c.body).where(outbox.c.kind == "OpenIssue")
    for number, order in connection.execute(orders).all():
        connection.execute(
            sa.update(outbox).where(outbox.c.id == number).values(body=_with_principal(order))
        )


def _with_principal(request: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in request.items() if name != "by"}
    return {**rest, "principal": {"name": request["by"], "authentication": "operator"}}


def _rename_fields(table: str, column: str, where: str, names: dict[str, str]) -> None:
    """Rename keys of the JSON objects of a column, in batches: a table may be larger than
    memory."""
    connection = op.get_bind()
    rows = sa.table(table, sa.column("id", sa.BigInteger()), sa.column(column, sa.JSON()))
    last = 0
    while True:
        query = sa.select(rows.c.id, rows.c[column]).where(rows.c.id > last, sa.text(where))
        batch = connection.execute(query.order_by(rows.c.id).limit(500)).all()
        if not batch:
            return
        for number, data in batch:
            renamed = {names.get(name, name): value for name, value in data.items()}
            connection.execute(sa.update(rows).where(rows.c.id == number).values({column: renamed}))
        last = batch[-1][0]
