"""The HTTP application. A webhook request is verified, stored and answered, and a worker is woken;
nothing else happens in the request."""

import json
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from osiris.bot.web.metrics import CONTENT_TYPE_LATEST, render_metrics
from osiris.core.errors import Refused, Unavailable
from osiris.core.ports.channels import BadContentType, BadHeaders, BadSignature, Receiver
from osiris.core.ports.sandbox import Probe
from osiris.core.ports.storage import Inbox, MetricSample

_WEBHOOKS = "/webhooks/"
_AGAIN = 5.0  # default Retry-After in seconds when a delivery could not be stored
BODY_LIMIT = 25 * 1024 * 1024  # bytes; GitHub never sends more

CheckReady = Callable[[], Awaitable[Sequence[Probe]]]
ReadMetrics = Callable[[], Awaitable[Sequence[MetricSample]]]


def create_app(
    inbox: Inbox, receivers: Iterable[Receiver], *, ready: CheckReady, read_metrics: ReadMetrics
) -> FastAPI:
    """Return the application, with a webhook endpoint for each receiver."""
    endpoints = {
        f"{_WEBHOOKS}{receiver.name}": _WebhookEndpoint(inbox, receiver) for receiver in receivers
    }
    app = _App(endpoints, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"ok": True})

    @app.get("/readyz")
    async def readyz() -> Response:
        probes = await ready()
        missing = [
            {"what": p.name, "why": p.detail, "fix": p.fix} for p in probes if p.needed and not p.ok
        ]
        return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        try:
            return Response(render_metrics(await read_metrics()), media_type=CONTENT_TYPE_LATEST)
        except Unavailable as outage:
            return JSONResponse({"status": 503, "detail": str(outage)}, 503)

    return app


class _App(FastAPI):
    """FastAPI with the busy routes handled before it: routing and middleware would cost as much as
    the work itself."""

    def __init__(self, endpoints: Mapping[str, "_WebhookEndpoint"], **settings: Any) -> None:
        super().__init__(**settings)
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
            if endpoint is not None:
                return await endpoint(scope, receive, send)
        await super().__call__(scope, receive, send)


class _WebhookEndpoint:
    """The endpoint of one channel as plain ASGI."""

    def __init__(self, inbox: Inbox, receiver: Receiver) -> None:
        self._inbox = inbox
        self._receiver = receiver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        retry_after = ""
        try:
            status, answer = await self._answer_delivery(headers, receive)
        except Unavailable as outage:
            status, answer = _build_problem(503, str(outage))
            retry_after = str(math.ceil(outage.retry_in or _AGAIN))
        kind = b"application/json" if status == 202 else b"application/problem+json"
        body = json.dumps(answer).encode()
        response_headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        if retry_after:
            response_headers.append((b"retry-after", retry_after.encode()))
        await send({"type": "http.response.start", "status": status, "headers": response_headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer_delivery(
        self, headers: Mapping[str, str], receive: Receive
    ) -> tuple[int, dict[str, Any]]:
        """Return status and body. Raises Unavailable when the delivery could not be stored."""
        if (body := await _read_body(headers, receive)) is None:
            return _build_problem(413, "a delivery has at most 25 MB")
        try:
            delivery = self._receiver.verify(headers, body)
        except BadSignature:
            return _build_problem(401, "the signature does not fit the body and the secret")
        except BadHeaders as error:
            return _build_problem(400, str(error))
        except BadContentType as error:
            return _build_problem(415, str(error))
        except Refused as missing:
            return _build_problem(503, str(missing))
        ordering_key = self._receiver.ordering_key(delivery)
        await self._inbox.accept_delivery(self._receiver.name, delivery, ordering_key)
        return 202, {"delivery": delivery.id}


async def _read_body(headers: Mapping[str, str], receive: Receive) -> bytes | None:
    """Return the raw body; None as soon as it exceeds the limit."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > BODY_LIMIT:
        return None
    chunks = []
    size = 0
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        more = message.get("more_body", False)
        if size > BODY_LIMIT:
            return None
    return b"".join(chunks)


def _build_problem(status: int, detail: str) -> tuple[int, dict[str, Any]]:
    """Return a refusal in the form of RFC 9457."""
    return status, {"status": status, "detail": detail}
