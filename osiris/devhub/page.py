"""The review page."""

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

if TYPE_CHECKING:
    from osiris.devhub.server import Hub


async def answer(hub: "Hub", request: Request) -> Response:
    return PlainTextResponse("soon", 404)
