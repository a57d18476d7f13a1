"""All the vendors on one loopback port."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fake_vendors.caching import Cache
from fake_vendors.chat import ChatApi
from fake_vendors.gemini import Gemini
from fake_vendors.messages import Messages
from fake_vendors.request_log import Ledger
from fake_vendors.responses import ResponsesApi
from fake_vendors.script import ScriptPlayer
from fake_vendors.streaming import StreamingClient
from fake_vendors.troubles import BreakMidway, ContextFull, Hang, HangMidway, Status, Trouble
from fake_vendors.wire import (
    MISSING,
    Counts,
    ModelReply,
    ModelRequest,
    VendorApi,
    VendorError,
    compact,
)
from osiris.config.http_server import serve_app

WIRES: Mapping[str, VendorApi] = {
    wire.vendor: wire for wire in (Messages(), ResponsesApi(), Gemini(), ChatApi())
}

_BASES = {
    "anthropic": "/anthropic",
    "openai": "/openai/v1",
    "google": "/google",
    "openai-compatible": "/compatible/v1",
}


@dataclass(slots=True, kw_only=True)
class ReceivedRequest:
    """A model request as it came.

    `began` is when all of it was here, on time.monotonic()'s clock; `seconds` is the server's
    own time from then until the answer was handed over, 0 while that goes on.
    """

    vendor: str
    path: str
    headers: Mapping[str, str]
    body: Any
    began: float
    seconds: float = 0.0


@dataclass(slots=True)
class _Tally:
    """What a vendor counted: which briefs it has seen, and the input of later requests with
    them."""

    briefs: set[str] = field(default_factory=set)
    input: int = 0
    cached: int = 0

    def add(self, ask: ModelRequest, counts: Counts) -> None:
        brief = ask.transcript[1].text
        if brief in self.briefs and not ask.probes:
            self.input += counts.input
            self.cached += counts.cached
        self.briefs.add(brief)


class Vendors:
    """The vendors' side of the story: what they were asked, and what goes wrong at the next
    request."""

    def __init__(self, url: str, player: ScriptPlayer) -> None:
        self.url = url
        self.requests: list[ReceivedRequest] = []
        # for each coming request; None: it is answered as the script says
        self.troubles: list[Trouble | None] = []
        self._player = player
        self._ledger = Ledger()
        self._caches = {vendor: Cache() for vendor in WIRES}
        self._tallies = {vendor: _Tally() for vendor in WIRES}

    def environ(self, vendor: str) -> dict[str, str]:
        """The environment in which Osiris asks this vendor here."""
        wire = WIRES[vendor]
        name = vendor.upper().replace("-", "_")
        return {
            "OSIRIS_MODEL": f"{vendor}:{wire.model}",
            f"{name}_API_KEY": wire.key,
            f"{name}_BASE_URL": self.url + _BASES[vendor],
        }

    def repeated(self, vendor: str) -> float:
        """The share of input tokens that the vendor had seen before, from each conversation's
        second request on."""
        tally = self._tallies[vendor]
        return tally.cached / tally.input if tally.input else 0.0

    async def answer(
        self,
        client: StreamingClient,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> None:
        """Answer one HTTP request, whatever it is. The client may leave at any time."""
        if (body := await client.body()) is None:
            return
        wire = next((wire for wire in WIRES.values() if wire.serves(path)), None)
        if wire is None:
            await client.whole(404, compact({"error": {"message": f"there is no {path} here"}}))
            return
        asked = ReceivedRequest(
            vendor=wire.vendor,
            path=path,
            headers=headers,
            body=_parsed(body),
            began=time.monotonic(),
        )
        self.requests.append(asked)
        try:
            if not wire.admits(headers, query):
                raise wire.no_key(headers)
            await self._model(client, wire, asked)
        except VendorError as denied:
            after = (
                {}
                if denied.retry_after is None or wire.vendor == "google"
                else _retry(denied.retry_after)
            )
            await client.whole(denied.status, compact(wire.error(denied)), after)
        finally:
            asked.seconds = time.monotonic() - asked.began

    async def _model(
        self, client: StreamingClient, wire: VendorApi, asked: ReceivedRequest
    ) -> None:
        """Answer a model request. Raises Denied."""
        if asked.body is None:
            raise VendorError(400, "the body is no JSON object")
        trouble = self.troubles.pop(0) if self.troubles else None
        match trouble:
            case Status(code=code, error=error, retry_after=after):
                sentence = error if " " in error else ""
                raise VendorError(code, sentence, "" if sentence else error, after)
            case ContextFull():
                raise wire.full()
            case Hang():
                await client.hang()
                return
        ask = wire.ask(asked.path, asked.body)
        if ask.model == MISSING:
            raise wire.no_model(ask.model)
        self._ledger.verify(wire.vendor, ask.transcript, anywhere=wire.answers_anywhere)
        reply, counts = await self._reply(wire, ask, trouble)
        await _send(client, wire, ask, reply, counts, trouble)

    async def _reply(
        self, wire: VendorApi, ask: ModelRequest, trouble: Trouble | None
    ) -> tuple[ModelReply, Counts]:
        transcript = self._ledger.scripted(ask.transcript)
        reply = await self._player.reply(ask, transcript, trouble, wire.call_prefix)
        aside = trouble is not None and not isinstance(trouble, BreakMidway | HangMidway)
        self._ledger.issue(wire.vendor, reply, wire.kept(ask, reply), scripted=not aside)
        counts = self._caches[wire.vendor].count(ask.model, ask.blocks, ask.marks)
        self._tallies[wire.vendor].add(ask, counts)
        words = reply.thinking + reply.text + "".join(call.arguments for call in reply.calls)
        return reply, replace(counts, output=len(words) // 4 + 1)


async def _send(
    client: StreamingClient,
    wire: VendorApi,
    ask: ModelRequest,
    reply: ModelReply,
    counts: Counts,
    trouble: Trouble | None,
) -> None:
    if ask.stream:
        kind = "text/event-stream"
        frames = list(wire.frames(ask, reply, counts))
    else:
        kind = "application/json"
        frames = [compact(wire.whole(ask, reply, counts))]
    match trouble:
        case HangMidway():
            await client.begin(kind)
            await client.send(_midway(frames))
            await client.hang()
        case BreakMidway():
            await client.begin(kind)
            await client.send(_midway(frames))
            await client.cut()
        case _:
            await client.begin(kind)
            await client.send(frames)
            await client.end()


def _midway(frames: list[str]) -> list[str]:
    """The frames until the second piece of a tool call, or half of them; of a single one the
    half."""
    if len(frames) == 1:
        return [frames[0][: len(frames[0]) // 2]]
    marks = ("partial_json", "function_call_arguments.delta", "functionCall", '"tool_calls"')
    told = [at for at, frame in enumerate(frames) if any(mark in frame for mark in marks)]
    return frames[: told[:2][-1] + 1 if told else len(frames) // 2]


def _parsed(body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _retry(after: float) -> dict[str, str]:
    return {"retry-after": f"{after:g}"}


@contextlib.asynccontextmanager
async def serving(script: Mapping[str, Any] | Path) -> AsyncIterator[Vendors]:
    """The vendors on a port of 127.0.0.1, until the block ends. Raises Refused when the script is
    not one."""
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        vendors = Vendors(f"http://127.0.0.1:{listener.getsockname()[1]}", ScriptPlayer(script))
    except BaseException:
        listener.close()
        raise
    closing = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        await vendors.answer(StreamingClient(receive, send, closing), scope["path"], query, headers)

    async with serve_app(app, listener, grace=1):
        try:
            yield vendors
        finally:
            closing.set()
