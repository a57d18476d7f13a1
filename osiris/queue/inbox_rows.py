"""New rows of the inbox."""

import json
from typing import NamedTuple
from uuid import uuid4

from osiris.core.events import Event, TaskEvent
from osiris.core.ports.telemetry import current_trace
from osiris.queue import serialization

OWN = "osiris"
"""The source of the facts that Osiris itself reports."""


class NewInboxRow(NamedTuple):
    """A new inbox row; `delivery` is its sender's id for it."""

    source: str
    delivery: str
    kind: str
    body: bytes
    ordering_key: str
    trace: str


def create_fact_row(key: str, fact: Event) -> NewInboxRow:
    """Create the row of a fact that Osiris reports; `key` prevents duplicates."""
    body = serialization.dump(fact)
    subject = str(fact.issue) if isinstance(fact, TaskEvent) else str(fact.address or "")
    return NewInboxRow(
        source=OWN,
        delivery=key,
        kind=body["type"],
        body=json.dumps(body).encode(),
        ordering_key=subject,
        trace=current_trace.get() or create_trace(),
    )


def create_trace() -> str:
    """Return a new trace id, in the form of W3C Trace Context: 32 hexadecimal digits."""
    return uuid4().hex
