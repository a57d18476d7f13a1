"""A port to the channels through which people speak to Osiris; GitHub is the first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from osiris.core.events import Address, Event


class BadSignature(Exception):
    """The body does not come from the channel: its signature is missing or wrong."""


class BadHeaders(Exception):
    """A header that the channel always sends is missing or malformed; the text names it."""


class BadContentType(Exception):
    """The channel is configured to send another format than Osiris reads; the text says how to
    change that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDelivery:
    """A verified delivery. `id` identifies it within its channel: a second delivery with the same
    id is a duplicate.

    Raises BadHeaders for an `id` of more than 255 or a `kind` of more than 64 characters, which
    could not be stored.
    """

    id: str
    kind: str
    body: bytes

    def __post_init__(self) -> None:
        for name, text, most in (("id", self.id, 255), ("kind", self.kind, 64)):
            if not 0 < len(text) <= most or "\0" in text:
                raise BadHeaders(f"the {name} of the delivery has not 1 to {most} characters")


class Receiver(Protocol):
    """The part of a channel that answers HTTP requests. It is pure: it reads neither a database nor
    another service.

    `name` is the last part of the webhook address and the source of the inbox rows.
    """

    @property
    def name(self) -> str: ...

    def verify(self, headers: Mapping[str, str], body: bytes) -> VerifiedDelivery:
        """Return the delivery if its sender is proven; header names are in lower case.

        Raises BadSignature, then BadHeaders or BadContentType; Refused while the channel is not
        configured.
        """

    def ordering_key(self, delivery: VerifiedDelivery) -> str:
        """Return what a delivery is about; "" when its order does not matter.

        Deliveries with the same key are processed in the order of their arrival. The key is stored
        with the inbox row and does not change when things are renamed.
        """


class Channel(Receiver, Protocol):
    """A channel as a worker uses it."""

    async def interpret(self, delivery: VerifiedDelivery) -> Event | None:
        """Return the event behind a delivery; None when it does not concern Osiris.

        Raises Refused for a body that the channel would not send, and Unavailable.
        """

    async def send(self, address: Address, text: str, dedup_key: str) -> None:
        """Send `text` (Markdown) to a conversation of this channel.

        The same `dedup_key` again replaces the message that was sent with it, so an order that is
        performed twice sends one message. Raises Refused, Unavailable, NeedsOperator.
        """
