"""The audit log: append-only and hash-chained per task, so that a changed or missing entry is
detected."""

import hashlib
import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from osiris.core.ports.live import AuditEntryAdded
from osiris.queue.tables import JournalRow, now

Entry = tuple[str, str, dict[str, Any]]
"""(kind, what, detail); kind is "happened", "decided" or "done"."""


async def append_entries(session: AsyncSession, task_id: int, *entries: Entry) -> AuditEntryAdded:
    """Append entries to a task's chain, within the caller's transaction.

    Returns the event to publish once that is committed.
    """
    last = await session.scalar(
        select(JournalRow)
        .where(JournalRow.task_id == task_id)
        .order_by(JournalRow.seq.desc())
        .limit(1)
    )
    seq, link = (last.seq, last.hash) if last else (0, "")
    for kind, what, detail in entries:
        seq = seq + 1
        at = now()
        link = hash_entry(link, seq, at, kind, what, detail)
        session.add(
            JournalRow(
                task_id=task_id, seq=seq, at=at, kind=kind, what=what, detail=detail, hash=link
            )
        )
    return AuditEntryAdded(task=task_id, seq=seq)


def hash_entry(
    before: str, seq: int, at: float, kind: str, what: str, detail: dict[str, Any]
) -> str:
    """Return the hash of one entry, which covers the hash of the entry before it."""
    line = json.dumps([before, seq, at, kind, what, detail], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(line.encode()).hexdigest()
