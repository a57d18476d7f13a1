"""Verification of webhook signatures, without any I/O."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    id: str
    kind: str
    body: bytes


class BadSignature(Exception):
    """The body is not signed with the webhook secret."""


class BadHeaders(Exception):
    """X-GitHub-Delivery or X-GitHub-Event, which GitHub always sends, is missing or malformed."""


def verify(headers: Mapping[str, str], body: bytes, *, secret: str) -> WebhookDelivery:
    """Return the delivery if its signature over the raw body is valid. Raises BadSignature, then
    BadHeaders.

    https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
    """
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    given = headers.get("x-hub-signature-256", "")
    if not secret or not hmac.compare_digest(given.encode(), f"sha256={digest}".encode()):
        raise BadSignature
    id = headers.get("x-github-delivery", "")
    kind = headers.get("x-github-event", "")
    if not (0 < len(id) <= 255 and 0 < len(kind) <= 64):
        raise BadHeaders
    return WebhookDelivery(id=id, kind=kind, body=body)
