"""The web side: verify, write it down, wake a worker, answer. Nothing else happens in a request."""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from osiris.bot.webhook import BadHeaders, BadSignature, verify
from osiris.errors import Unavailable
from osiris.ports import Inbox, Probe

BODY_LIMIT = 25 * 1024 * 1024  # bytes; GitHub never sends more

Ready = Callable[[], Awaitable[Sequence[Probe]]]


def create_app(inbox: Inbox, *, secret: str, ready: Ready) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    app.router.routes.append(Route("/webhooks/github", _Door(inbox, secret), methods=["POST"]))

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"ok": True})

    @app.get("/readyz")
    async def readyz() -> Response:
        probes = await ready()
        missing = [{"what": p.name, "why": p.detail, "fix": p.fix} for p in probes if p.needed and not p.ok]
        return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)

    return app


class _Door:
    """`POST /webhooks/github` as plain ASGI: the one busy route takes no detour."""

    def __init__(self, inbox: Inbox, secret: str) -> None:
        self._inbox, self._secret = inbox, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if not self._secret:
            return _problem(503, "GITHUB_WEBHOOK_SECRET is not set; set it and start Osiris again")
        if (body := await _body(request)) is None:
            return _problem(413, "a delivery has at most 25 MB")
        try:
            delivery = verify(request.headers, body, secret=self._secret)
            await self._inbox.accept("github", delivery.id, delivery.kind, delivery.body)
        except BadSignature:
            return _problem(401, "the signature does not fit the body and the secret")
        except BadHeaders:
            return _problem(400, "X-GitHub-Delivery or X-GitHub-Event is missing")
        except Unavailable as outage:
            return _problem(503, str(outage))
        return JSONResponse({"delivery": delivery.id}, 202)


async def _body(request: Request) -> bytes | None:
    """The raw body; None as soon as it is more than we take."""
    if int(request.headers.get("content-length") or 0) > BODY_LIMIT:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            return None
    return bytes(body)


def _problem(status: int, detail: str) -> Response:
    return JSONResponse({"status": status, "detail": detail}, status, media_type="application/problem+json")
