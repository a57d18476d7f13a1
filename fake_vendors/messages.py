"""Anthropic's wire: the Messages API."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fake_vendors.wire import (
    Counts,
    ModelReply,
    ModelRequest,
    ReplyRecord,
    VendorError,
    WireToolCall,
    answered,
    call_of,
    canonical,
    compact,
    listed,
    pieces,
    said,
    text_of,
    transcript,
)
from osiris.core.ports.models import Message

_ERRORS = {
    400: ("invalid_request_error", "the request is not lawful"),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: (
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
    ),
    404: ("not_found_error", "Not found"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    504: ("timeout_error", "The request timed out."),
    529: ("overloaded_error", "Overloaded"),
}
_MOST_MARKS = 4


class Messages:
    vendor = "anthropic"
    key = "sk-ant-canary-0123456789abcdef"
    model = "claude-sonnet-5"
    call_prefix = "toolu_"
    answers_anywhere = False

    def serves(self, path: str) -> bool:
        return path == "/anthropic/v1/messages"

    def admits(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return self.key in (
            headers.get("x-api-key"),
            headers.get("authorization", "").removeprefix("Bearer "),
        )

    def ask(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        if not isinstance(body.get("max_tokens"), int):
            raise VendorError(400, "max_tokens: Field required")
        messages = listed(body, "messages")
        system = body.get("system") or []
        system = _blocks({"content": system}) if system else []
        tools = listed(body, "tools")
        heard = [Message(role="system", text="\n\n".join(block["text"] for block in system))]
        for message in messages:
            heard += _read(message)
        blocks, marks = _prompt(tools, system, messages, automatic=bool(body.get("cache_control")))
        return ModelRequest(
            model=str(body.get("model")),
            stream=bool(body.get("stream")),
            body=body,
            transcript=transcript(heard),
            tools={str(tool.get("name")): tool.get("input_schema") or {} for tool in tools},
            blocks=blocks,
            marks=marks,
        )

    def kept(self, ask: ModelRequest, reply: ModelReply) -> ReplyRecord:
        thinking = [
            canonical(block) for block in _content(ask, reply) if block["type"] == "thinking"
        ]
        states = {"thinking block with its signature": thinking[0]} if thinking else {}
        return ReplyRecord(
            keys=frozenset([reply.state, *(call.id for call in reply.calls)]), states=states
        )

    def whole(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Mapping[str, Any]:
        return {
            "id": f"msg_{reply.id}",
            "type": "message",
            "role": "assistant",
            "model": ask.model,
            "content": _content(ask, reply),
            "usage": _usage(counts),
            **_stop(reply),
        }

    def frames(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Iterator[str]:
        for event in self._events(ask, reply, counts):
            yield f"event: {event['type']}\ndata: {compact(event)}\n\n"

    def _events(
        self, ask: ModelRequest, reply: ModelReply, counts: Counts
    ) -> Iterator[dict[str, Any]]:
        begun: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "usage": {**_usage(counts), "output_tokens": 1},
        }
        yield {"type": "message_start", "message": {**self.whole(ask, reply, counts), **begun}}
        yield {"type": "ping"}
        calls = iter(reply.calls)
        for index, block in enumerate(_content(ask, reply)):
            started, deltas = _streamed(block, calls)
            yield {"type": "content_block_start", "index": index, "content_block": started}
            for delta in deltas:
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        yield {"type": "message_delta", "delta": _stop(reply), "usage": _usage(counts)}
        yield {"type": "message_stop"}

    def no_key(self, headers: Mapping[str, str]) -> VendorError:
        return VendorError(401, "invalid x-api-key")

    def no_model(self, model: str) -> VendorError:
        return VendorError(404, f"model: {model}")

    def full(self) -> VendorError:
        return VendorError(400, "prompt is too long: 208310 tokens > 200000 maximum")

    def error(self, denied: VendorError) -> Mapping[str, Any]:
        name, sentence = _ERRORS.get(denied.status, ("api_error", "Internal server error"))
        error = {"type": denied.error or name, "message": denied.sentence or sentence}
        return {"type": "error", "error": error, "request_id": "req_loopback"}


def _blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return (
        [{"type": "text", "text": content}]
        if isinstance(content, str)
        else listed(message, "content")
    )


def _read(message: Mapping[str, Any]) -> Iterator[Message]:
    blocks = _blocks(message)
    match message.get("role"):
        case "assistant":
            yield _turn(blocks)
        case "user":
            for block in blocks:
                if block.get("type") == "tool_result":
                    yield answered(str(block.get("tool_use_id")), text_of(block.get("content")))
                else:
                    yield Message(role="user", text=str(block.get("text", "")))
        case "system":
            yield Message(role="system", text=text_of(blocks))
        case role:
            raise VendorError(
                400,
                f"messages: Unexpected role {role!r}. Allowed roles are user, assistant and system",
            )


def _turn(blocks: Iterable[Mapping[str, Any]]) -> Message:
    thoughts = [block for block in blocks if block.get("type") == "thinking"]
    uses = [block for block in blocks if block.get("type") == "tool_use"]
    for use in uses:
        if not isinstance(use.get("input"), dict):
            raise VendorError(
                400, f"tool_use.input of {use.get('id')}: Input should be a valid dictionary"
            )
    return said(
        "".join(str(block.get("text")) for block in blocks if block.get("type") == "text"),
        [call_of(str(use.get("id")), str(use.get("name")), use["input"]) for use in uses],
        keys=[str(block.get("signature")) for block in thoughts],
        states=map(canonical, thoughts),
    )


def _prompt(
    tools: Iterable[Mapping[str, Any]],
    system: Iterable[Mapping[str, Any]],
    messages: Iterable[Mapping[str, Any]],
    *,
    automatic: bool,
) -> tuple[list[str], list[int]]:
    """The prompt's blocks in the order of the cache, and where the marked prefixes end."""
    parts = [("tool", tool) for tool in tools] + [("system", block) for block in system]
    parts += [
        (str(message.get("role")), block) for message in messages for block in _blocks(message)
    ]
    marks = [at for at, (_, block) in enumerate(parts, 1) if block.get("cache_control")]
    marks += [len(parts)] if automatic else []
    if len(marks) > _MOST_MARKS:
        raise VendorError(
            400, f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}."
        )
    bare = [
        [role, {name: block[name] for name in block if name != "cache_control"}]
        for role, block in parts
    ]
    return [canonical(part) for part in bare], marks


def _content(ask: ModelRequest, reply: ModelReply) -> list[dict[str, Any]]:
    thinking = ask.body.get("thinking") or {}
    content: list[dict[str, Any]] = []
    if reply.thinking and thinking.get("type", "disabled") != "disabled":
        shown = "" if thinking.get("display") == "omitted" else reply.thinking
        content.append({"type": "thinking", "thinking": shown, "signature": reply.state})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    for call in reply.calls:
        content.append(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": reply.arguments(call)}
        )
    return content


def _streamed(
    block: Mapping[str, Any], calls: Iterator[WireToolCall]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it begins, and what is added to it."""
    match block["type"]:
        case "thinking":
            deltas = [
                {"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])
            ]
            seal = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, seal]
        case "text":
            return {**block, "text": ""}, [
                {"type": "text_delta", "text": piece} for piece in pieces(block["text"])
            ]
        case _:
            told = ["", *pieces(next(calls).arguments)]
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": piece} for piece in told
            ]


def _stop(reply: ModelReply) -> dict[str, Any]:
    reason = "tool_use" if reply.calls else "end_turn"
    if reply.end:
        reason = "max_tokens" if reply.end == "cut" else "refusal"
    stop: dict[str, Any] = {"stop_reason": reason, "stop_sequence": None}
    if reply.end == "refused":
        stop["stop_details"] = {"type": "refusal", "category": "cyber", "explanation": reply.text}
    return stop


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.input - counts.cached - counts.written,
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": counts.written,
        "cache_creation": {
            "ephemeral_5m_input_tokens": counts.written,
            "ephemeral_1h_input_tokens": 0,
        },
        "output_tokens": counts.output,
    }
