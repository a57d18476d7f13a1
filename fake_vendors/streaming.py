"""The client at the other end of a connection. It may leave at any time, and the server may stop in
the middle of an answer."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class StreamingClient:
    """The client of one request, over ASGI. `closing` is set when the server ends."""

    def __init__(self, receive: Receive, send: Send, closing: asyncio.Event) -> None:
        self._receive = receive
        self._send = send
        self._closing = closing

    async def read_body(self) -> bytes | None:
        """Return the whole body of the request; None if the client left before its end."""
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            body += bytes(message.get("body", b""))
            if not message.get("more_body"):
                return body

    async def send_json(
        self, status: int, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a JSON answer."""
        body = text.encode()
        await self.begin_response(
            "application/json", status, {"content-length": str(len(body)), **(headers or {})}
        )
        await self._send({"type": "http.response.body", "body": body})

    async def begin_response(
        self, kind: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        all_headers = {
            "content-type": kind,
            "request-id": "req_loopback",
            "x-request-id": "req_loopback",
            **(headers or {}),
        }
        encoded = [(name.encode(), value.encode()) for name, value in all_headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def send_texts(self, texts: Iterable[str]) -> None:
        """Send each text as soon as it is ready, split in the middle of its first character of more
        than one byte."""
        for text in texts:
            for piece in _split_in_character(text.encode("utf-8", "replace")):
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end_response(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def wait_until_gone(self) -> None:
        """Send nothing until the client leaves or the server ends."""
        leaving = asyncio.ensure_future(self._wait_for_disconnect())
        closing = asyncio.ensure_future(self._closing.wait())
        await asyncio.wait((leaving, closing), return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        if not leaving.done():
            leaving.cancel()
            await self.cut_connection()

    async def cut_connection(self) -> None:
        """Close the connection without a proper end, after everything was sent."""
        cycle = self._receive.__self__  # type: ignore[attr-defined]  # ASGI offers no way; uvicorn's cycle does
        cycle.transport.close()
        await self._wait_for_disconnect()

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _split_in_character(frame: bytes) -> list[bytes]:
    match = re.search(rb"[\xc0-\xff]", frame)
    return [frame[: match.end()], frame[match.end() :]] if match else [frame]
