"""New rows of the inbox."""

import json
from typing import NamedTuple

from osiris.core.events import Event
from osiris.queue import serialization

OWN = "osiris"
"""The source of the facts that Osiris itself reports."""


class NewInboxRow(NamedTuple):
    """A new inbox row; `delivery` is its sender's id for it."""

    source: str
    delivery: str
    kind: str
    body: bytes


def create_fact_row(key: str, fact: Event) -> NewInboxRow:
    """Create the row of a fact that Osiris reports; `key` prevents duplicates."""
    body = serialization.dump(fact)
    return NewInboxRow(OWN, key, body["type"], json.dumps(body).encode())
