"""The client at the other end of a connection: it may leave at any time, and it may be left in the
middle."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class StreamingClient:
    """One request's client, over ASGI. `closing` is set when the server ends."""

    def __init__(self, receive: Receive, send: Send, closing: asyncio.Event) -> None:
        self._receive = receive
        self._send = send
        self._closing = closing

    async def body(self) -> bytes | None:
        """All of the request; None when the client left before."""
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            body += bytes(message.get("body", b""))
            if not message.get("more_body"):
                return body

    async def whole(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        """A JSON answer."""
        body = text.encode()
        await self.begin(
            "application/json", status, {"content-length": str(len(body)), **(headers or {})}
        )
        await self._send({"type": "http.response.body", "body": body})

    async def begin(
        self, kind: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        given = {
            "content-type": kind,
            "request-id": "req_loopback",
            "x-request-id": "req_loopback",
            **(headers or {}),
        }
        encoded = [(name.encode(), value.encode()) for name, value in given.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def send(self, texts: Iterable[str]) -> None:
        """Each text as it is ready, torn in the middle of its first character that has more than
        one byte."""
        for text in texts:
            for piece in _torn(text.encode("utf-8", "replace")):
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def hang(self) -> None:
        """Say nothing until the client leaves, or the server ends."""
        leaving = asyncio.ensure_future(self._left())
        closing = asyncio.ensure_future(self._closing.wait())
        await asyncio.wait((leaving, closing), return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        if not leaving.done():
            leaving.cancel()
            await self.cut()

    async def cut(self) -> None:
        """Close the connection without a proper end, once what was sent has left."""
        cycle = self._receive.__self__  # type: ignore[attr-defined]  # ASGI has no word for this; uvicorn's cycle does
        cycle.transport.close()
        await self._left()

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _torn(frame: bytes) -> list[bytes]:
    first = re.search(rb"[\xc0-\xff]", frame)
    return [frame[: first.end()], frame[first.end() :]] if first else [frame]
