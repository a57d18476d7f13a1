"""What comes into the inbox."""

import json
from typing import NamedTuple

from osiris.core.events import Event
from osiris.queue import serialization

OWN = "osiris"
"""The source of our own facts."""


class NewInboxRow(NamedTuple):
    """What arrived; `delivery` is its sender's own name for it."""

    source: str
    delivery: str
    kind: str
    body: bytes


def create_fact_row(key: str, fact: Event) -> NewInboxRow:
    """A fact of our own; `key` keeps it single."""
    body = serialization.dump(fact)
    return NewInboxRow(OWN, key, body["type"], json.dumps(body).encode())
