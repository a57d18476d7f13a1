"""Observers of a hub: they receive each finished exchange of its API and each webhook, and change
nothing."""

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from osiris.devhub.models import Delivery


@dataclass(kw_only=True)
class ApiExchange:
    """One request of REST or GraphQL; `answer` is the hub's own, None when an interceptor answered
    instead."""

    request: Request
    body: bytes
    answer: Response | None = None


class HubObserver(Protocol):
    def on_exchange(self, exchange: ApiExchange) -> None:
        """Receive each exchange once, before the answer is sent."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Receive each webhook once, when it was answered or could not be sent."""
