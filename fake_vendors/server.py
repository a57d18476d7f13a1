"""A server for the APIs of all vendors, on one port of 127.0.0.1."""

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

from fake_vendors.caching import PromptCache
from fake_vendors.chat import ChatApi
from fake_vendors.gemini import Gemini
from fake_vendors.messages import Messages
from fake_vendors.request_log import ReplyLog
from fake_vendors.responses import ResponsesApi
from fake_vendors.script import ScriptPlayer
from fake_vendors.streaming import StreamingClient
from fake_vendors.troubles import BreakMidway, ContextFull, Hang, HangMidway, Status, Trouble
from fake_vendors.wire import (
    MISSING,
    ModelReply,
    ModelRequest,
    TokenCounts,
    VendorApi,
    VendorError,
    dump_compact,
)
from osiris.config.http_server import serve_app

VENDOR_APIS: Mapping[str, VendorApi] = {
    api.vendor: api for api in (Messages(), ResponsesApi(), Gemini(), ChatApi())
}

_BASE_PATHS = {
    "anthropic": "/anthropic",
    "openai": "/openai/v1",
    "google": "/google",
    "openai-compatible": "/compatible/v1",
}


@dataclass(slots=True, kw_only=True)
class ReceivedRequest:
    """A model request as it was received.

    `began` is the time at which all of it was received, on the clock of time.monotonic(). `seconds`
    is the server's own time from then until the answer was handed over; 0 until then.
    """

    vendor: str
    path: str
    headers: Mapping[str, str]
    body: Any
    began: float
    seconds: float = 0.0


@dataclass(slots=True)
class _RepeatedTokens:
    """The input tokens of a vendor's requests whose briefing it has seen before, and how many of
    them were cached."""

    briefings: set[str] = field(default_factory=set)
    input: int = 0
    cached: int = 0

    def add(self, request: ModelRequest, counts: TokenCounts) -> None:
        briefing = request.transcript[1].text
        if briefing in self.briefings and not request.is_probe:
            self.input += counts.input
            self.cached += counts.cached
        self.briefings.add(briefing)


class Vendors:
    """All vendors: the requests that they received, and the troubles of the next requests."""

    def __init__(self, url: str, player: ScriptPlayer) -> None:
        self.url = url
        self.requests: list[ReceivedRequest] = []
        # one for each next request; None: the script answers it
        self.troubles: list[Trouble | None] = []
        self._player = player
        self._reply_log = ReplyLog()
        self._caches = {vendor: PromptCache() for vendor in VENDOR_APIS}
        self._repeated_tokens = {vendor: _RepeatedTokens() for vendor in VENDOR_APIS}

    def build_environ(self, vendor: str) -> dict[str, str]:
        """Return the environment with which Osiris uses this vendor here."""
        api = VENDOR_APIS[vendor]
        name = vendor.upper().replace("-", "_")
        return {
            "OSIRIS_MODEL": f"{vendor}:{api.model}",
            f"{name}_API_KEY": api.key,
            f"{name}_BASE_URL": self.url + _BASE_PATHS[vendor],
        }

    def get_repeated_share(self, vendor: str) -> float:
        """Return the share of input tokens that the vendor had seen before, from the second request
        of each conversation on."""
        tokens = self._repeated_tokens[vendor]
        return tokens.cached / tokens.input if tokens.input else 0.0

    async def answer(
        self,
        client: StreamingClient,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> None:
        """Answer any HTTP request. The client may leave at any time."""
        if (body := await client.read_body()) is None:
            return
        api = next((api for api in VENDOR_APIS.values() if api.matches_path(path)), None)
        if api is None:
            await client.send_json(
                404, dump_compact({"error": {"message": f"there is no {path} here"}})
            )
            return
        received = ReceivedRequest(
            vendor=api.vendor,
            path=path,
            headers=headers,
            body=_parse_body(body),
            began=time.monotonic(),
        )
        self.requests.append(received)
        try:
            if not api.accepts_key(headers, query):
                raise api.build_key_error(headers)
            await self._answer_model_request(client, api, received)
        except VendorError as error:
            retry_header = (
                {}
                if error.retry_after is None or api.vendor == "google"
                else _build_retry_header(error.retry_after)
            )
            await client.send_json(
                error.status, dump_compact(api.build_error_body(error)), retry_header
            )
        finally:
            received.seconds = time.monotonic() - received.began

    async def _answer_model_request(
        self, client: StreamingClient, api: VendorApi, received: ReceivedRequest
    ) -> None:
        """Answer a model request. Raise VendorError if it is refused."""
        if received.body is None:
            raise VendorError(400, "the body is no JSON object")
        trouble = self.troubles.pop(0) if self.troubles else None
        match trouble:
            case Status(code=code, error=error, retry_after=after):
                sentence = error if " " in error else ""
                raise VendorError(code, sentence, "" if sentence else error, after)
            case ContextFull():
                raise api.build_context_error()
            case Hang():
                await client.wait_until_gone()
                return
        request = api.parse_request(received.path, received.body)
        if request.model == MISSING:
            raise api.build_model_error(request.model)
        self._reply_log.verify_transcript(
            api.vendor, request.transcript, allows_distance=api.answers_anywhere
        )
        reply, counts = await self._create_reply(api, request, trouble)
        await _send_reply(client, api, request, reply, counts, trouble)

    async def _create_reply(
        self, api: VendorApi, request: ModelRequest, trouble: Trouble | None
    ) -> tuple[ModelReply, TokenCounts]:
        transcript = self._reply_log.list_scripted(request.transcript)
        reply = await self._player.create_reply(request, transcript, trouble, api.call_prefix)
        is_unscripted = trouble is not None and not isinstance(trouble, BreakMidway | HangMidway)
        self._reply_log.add_reply(
            api.vendor, reply, api.build_record(request, reply), is_scripted=not is_unscripted
        )
        counts = self._caches[api.vendor].count_tokens(request.model, request.blocks, request.marks)
        self._repeated_tokens[api.vendor].add(request, counts)
        text = reply.thinking + reply.text + "".join(call.arguments for call in reply.calls)
        return reply, replace(counts, output=len(text) // 4 + 1)


async def _send_reply(
    client: StreamingClient,
    api: VendorApi,
    request: ModelRequest,
    reply: ModelReply,
    counts: TokenCounts,
    trouble: Trouble | None,
) -> None:
    if request.stream:
        kind = "text/event-stream"
        frames = list(api.build_frames(request, reply, counts))
    else:
        kind = "application/json"
        frames = [dump_compact(api.build_body(request, reply, counts))]
    match trouble:
        case HangMidway():
            await client.begin_response(kind)
            await client.send_texts(_cut_frames(frames))
            await client.wait_until_gone()
        case BreakMidway():
            await client.begin_response(kind)
            await client.send_texts(_cut_frames(frames))
            await client.cut_connection()
        case _:
            await client.begin_response(kind)
            await client.send_texts(frames)
            await client.end_response()


def _cut_frames(frames: list[str]) -> list[str]:
    """Return the frames up to the second piece of a tool call, or half of the frames; of a single
    frame, half."""
    if len(frames) == 1:
        return [frames[0][: len(frames[0]) // 2]]
    marks = ("partial_json", "function_call_arguments.delta", "functionCall", '"tool_calls"')
    call_frames = [
        index for index, frame in enumerate(frames) if any(mark in frame for mark in marks)
    ]
    return frames[: call_frames[:2][-1] + 1 if call_frames else len(frames) // 2]


def _parse_body(body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _build_retry_header(after: float) -> dict[str, str]:
    return {"retry-after": f"{after:g}"}


@contextlib.asynccontextmanager
async def serve_vendors(script: Mapping[str, Any] | Path) -> AsyncIterator[Vendors]:
    """Serve the vendors on a port of 127.0.0.1 until the block ends. Raise Refused if the script is
    invalid."""
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
