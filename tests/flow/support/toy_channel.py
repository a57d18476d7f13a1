"""A minimal channel: a chat with signed webhooks. It stores the messages of Osiris in memory."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import httpx

from osiris.core.errors import Refused, Unavailable
from osiris.core.events import (
    Address,
    Authentication,
    Event,
    MessageReceived,
    Principal,
    RequestMade,
)
from osiris.core.ports.channels import BadHeaders, BadSignature, VerifiedDelivery

SECRET = b"the toy's secret"


class ToyChannel:
    """Implements `osiris.core.ports.channels.Channel`.

    `accounts` maps the users of the chat to their GitHub logins. `sent` maps conversation and
    deduplication key to a message of Osiris. The next `outages` calls of `interpret` fail.
    """

    name = "toy"

    def __init__(self, accounts: Mapping[str, str]) -> None:
        self._accounts = accounts
        self.sent: dict[tuple[str, str], str] = {}
        self.outages = 0

    # ── the channel ───────────────────────────────────────────────────────────────────────────────

    def verify(self, headers: Mapping[str, str], body: bytes) -> VerifiedDelivery:
        if not hmac.compare_digest(headers.get("x-toy-signature", ""), sign_message(body)):
            raise BadSignature
        if not (id := headers.get("x-toy-message", "")):
            raise BadHeaders("X-Toy-Message is missing")
        return VerifiedDelivery(id=id, kind="message", body=body)

    def ordering_key(self, delivery: VerifiedDelivery) -> str:
        try:
            return str(json.loads(delivery.body)["thread"])
        except (ValueError, LookupError, TypeError):
            return ""

    async def interpret(self, delivery: VerifiedDelivery) -> Event | None:
        """Return a request for the first message of a thread, and a message for each later one.

        The next `outages` calls fail, as if the channel needed another service that was down.
        """
        if self.outages:
            self.outages -= 1
            raise Unavailable("the toy is down")
        try:
            message: dict[str, Any] = json.loads(delivery.body)
            thread, user, text = message["thread"], message["user"], str(message["text"])
        except (ValueError, LookupError, TypeError) as error:
            raise Refused(f"the body is not a message of the toy: {type(error).__name__}") from None
        if (login := self._accounts.get(user)) is None:
            return None
        address = Address(self.name, thread)
        principal = Principal(name=login, authentication=Authentication.GITHUB)
        key = f"{self.name}/{delivery.id}"
        if message.get("is_reply"):
            return MessageReceived(address=address, key=key, principal=principal, text=text)
        title, _, body = text.partition("\n")
        return RequestMade(
            key=key,
            repo=message.get("repo", ""),
            title=title,
            body=body or title,
            principal=principal,
            address=address,
        )

    async def send(self, address: Address, text: str, dedup_key: str) -> None:
        self.sent[address.conversation, dedup_key] = text

    # ── its users ─────────────────────────────────────────────────────────────────────────────────

    def list_messages(self, thread: str) -> list[str]:
        """Return the messages of Osiris in a thread, in order."""
        return [text for (conversation, _), text in self.sent.items() if conversation == thread]


def sign_message(body: bytes) -> str:
    return hmac.new(SECRET, body, hashlib.sha256).hexdigest()


async def send_message(port: int, id: str, **message: Any) -> httpx.Response:
    """Send a message of a user to Osiris, as the chat's server does."""
    body = json.dumps(message).encode()
    headers = {"X-Toy-Signature": sign_message(body), "X-Toy-Message": id}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        return await http.post("/webhooks/toy", content=body, headers=headers)
