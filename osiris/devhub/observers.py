"""Looking on: who watches a hub sees each finished exchange of its API and each webhook, and
changes nothing."""

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from osiris.devhub.models import Delivery


@dataclass(kw_only=True)
class ApiExchange:
    """One request of REST or GraphQL; `answer` is the hub's own, None when an interceptor kept the
    request from it."""

    request: Request
    body: bytes
    answer: Response | None = None


class HubObserver(Protocol):
    def on_exchange(self, exchange: ApiExchange) -> None:
        """Called once for each exchange, before the answer leaves."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Called once for each webhook, when it was answered or could not be sent."""
