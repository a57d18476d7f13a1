"""Anthropic's Messages API."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fake_vendors.wire import (
    ModelReply,
    ModelRequest,
    ReplyRecord,
    TokenCounts,
    VendorError,
    WireToolCall,
    build_answer,
    build_call,
    build_transcript,
    build_turn,
    dump_canonical,
    dump_compact,
    extract_text,
    read_list,
    split_text,
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
_MAX_CACHE_MARKS = 4


class Messages:
    vendor = "anthropic"
    key = "sk-ant-canary-0123456789abcdef"
    model = "claude-sonnet-5"
    call_prefix = "toolu_"
    answers_anywhere = False

    def matches_path(self, path: str) -> bool:
        return path == "/anthropic/v1/messages"

    def accepts_key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return self.key in (
            headers.get("x-api-key"),
            headers.get("authorization", "").removeprefix("Bearer "),
        )

    def parse_request(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        if not isinstance(body.get("max_tokens"), int):
            raise VendorError(400, "max_tokens: Field required")
        messages = read_list(body, "messages")
        system = body.get("system") or []
        system = _list_blocks({"content": system}) if system else []
        tools = read_list(body, "tools")
        transcript_messages = [
            Message(role="system", text="\n\n".join(block["text"] for block in system))
        ]
        for message in messages:
            transcript_messages += _read_message(message)
        blocks, marks = _list_prompt_blocks(
            tools, system, messages, marks_end=bool(body.get("cache_control"))
        )
        return ModelRequest(
            model=str(body.get("model")),
            stream=bool(body.get("stream")),
            body=body,
            transcript=build_transcript(transcript_messages),
            tools={str(tool.get("name")): tool.get("input_schema") or {} for tool in tools},
            blocks=blocks,
            marks=marks,
        )

    def build_record(self, request: ModelRequest, reply: ModelReply) -> ReplyRecord:
        thinking = [
            dump_canonical(block)
            for block in _build_content(request, reply)
            if block["type"] == "thinking"
        ]
        states = {"thinking block with its signature": thinking[0]} if thinking else {}
        return ReplyRecord(
            keys=frozenset([reply.state, *(call.id for call in reply.calls)]), states=states
        )

    def build_body(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Mapping[str, Any]:
        return {
            "id": f"msg_{reply.id}",
            "type": "message",
            "role": "assistant",
            "model": request.model,
            "content": _build_content(request, reply),
            "usage": _build_usage(counts),
            **_build_stop(reply),
        }

    def build_frames(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Iterator[str]:
        for event in self._build_events(request, reply, counts):
            yield f"event: {event['type']}\ndata: {dump_compact(event)}\n\n"

    def _build_events(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Iterator[dict[str, Any]]:
        started_message: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "usage": {**_build_usage(counts), "output_tokens": 1},
        }
        yield {
            "type": "message_start",
            "message": {**self.build_body(request, reply, counts), **started_message},
        }
        yield {"type": "ping"}
        calls = iter(reply.calls)
        for index, block in enumerate(_build_content(request, reply)):
            started_block, deltas = _split_block(block, calls)
            yield {"type": "content_block_start", "index": index, "content_block": started_block}
            for delta in deltas:
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        yield {"type": "message_delta", "delta": _build_stop(reply), "usage": _build_usage(counts)}
        yield {"type": "message_stop"}

    def build_key_error(self, headers: Mapping[str, str]) -> VendorError:
        return VendorError(401, "invalid x-api-key")

    def build_model_error(self, model: str) -> VendorError:
        return VendorError(404, f"model: {model}")

    def build_context_error(self) -> VendorError:
        return VendorError(400, "prompt is too long: 208310 tokens > 200000 maximum")

    def build_error_body(self, vendor_error: VendorError) -> Mapping[str, Any]:
        name, sentence = _ERRORS.get(vendor_error.status, ("api_error", "Internal server error"))
        error = {"type": vendor_error.error or name, "message": vendor_error.sentence or sentence}
        return {"type": "error", "error": error, "request_id": "req_loopback"}


def _list_blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return (
        [{"type": "text", "text": content}]
        if isinstance(content, str)
        else read_list(message, "content")
    )


def _read_message(message: Mapping[str, Any]) -> Iterator[Message]:
    blocks = _list_blocks(message)
    match message.get("role"):
        case "assistant":
            yield _read_turn(blocks)
        case "user":
            for block in blocks:
                if block.get("type") == "tool_result":
                    yield build_answer(
                        str(block.get("tool_use_id")), extract_text(block.get("content"))
                    )
                else:
                    yield Message(role="user", text=str(block.get("text", "")))
        case "system":
            yield Message(role="system", text=extract_text(blocks))
        case role:
            raise VendorError(
                400,
                f"messages: Unexpected role {role!r}. Allowed roles are user, assistant and system",
            )


def _read_turn(blocks: Iterable[Mapping[str, Any]]) -> Message:
    thoughts = [block for block in blocks if block.get("type") == "thinking"]
    uses = [block for block in blocks if block.get("type") == "tool_use"]
    for use in uses:
        if not isinstance(use.get("input"), dict):
            raise VendorError(
                400, f"tool_use.input of {use.get('id')}: Input should be a valid dictionary"
            )
    return build_turn(
        "".join(str(block.get("text")) for block in blocks if block.get("type") == "text"),
        [build_call(str(use.get("id")), str(use.get("name")), use["input"]) for use in uses],
        keys=[str(block.get("signature")) for block in thoughts],
        states=map(dump_canonical, thoughts),
    )


def _list_prompt_blocks(
    tools: Iterable[Mapping[str, Any]],
    system: Iterable[Mapping[str, Any]],
    messages: Iterable[Mapping[str, Any]],
    *,
    marks_end: bool,
) -> tuple[list[str], list[int]]:
    """Return the blocks of the prompt in the order of the cache, and where the marked prefixes
    end."""
    parts = [("tool", tool) for tool in tools] + [("system", block) for block in system]
    parts += [
        (str(message.get("role")), block) for message in messages for block in _list_blocks(message)
    ]
    marks = [end for end, (_, block) in enumerate(parts, 1) if block.get("cache_control")]
    marks += [len(parts)] if marks_end else []
    if len(marks) > _MAX_CACHE_MARKS:
        raise VendorError(
            400, f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}."
        )
    unmarked = [
        [role, {name: block[name] for name in block if name != "cache_control"}]
        for role, block in parts
    ]
    return [dump_canonical(part) for part in unmarked], marks


def _build_content(request: ModelRequest, reply: ModelReply) -> list[dict[str, Any]]:
    thinking = request.body.get("thinking") or {}
    content: list[dict[str, Any]] = []
    if reply.thinking and thinking.get("type", "disabled") != "disabled":
        shown = "" if thinking.get("display") == "omitted" else reply.thinking
        content.append({"type": "thinking", "thinking": shown, "signature": reply.state})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    for call in reply.calls:
        content.append(
            {
                "type": "tool_use",
                "id": call.id,
                "name": call.name,
                "input": reply.parse_arguments(call),
            }
        )
    return content


def _split_block(
    block: Mapping[str, Any], calls: Iterator[WireToolCall]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a block as it begins, and the deltas that complete it."""
    match block["type"]:
        case "thinking":
            deltas = [
                {"type": "thinking_delta", "thinking": piece}
                for piece in split_text(block["thinking"])
            ]
            signature_delta = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signature_delta]
        case "text":
            return {**block, "text": ""}, [
                {"type": "text_delta", "text": piece} for piece in split_text(block["text"])
            ]
        case _:
            pieces = ["", *split_text(next(calls).arguments)]
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": piece} for piece in pieces
            ]


def _build_stop(reply: ModelReply) -> dict[str, Any]:
    reason = "tool_use" if reply.calls else "end_turn"
    if reply.end:
        reason = "max_tokens" if reply.end == "cut" else "refusal"
    stop: dict[str, Any] = {"stop_reason": reason, "stop_sequence": None}
    if reply.end == "refused":
        stop["stop_details"] = {"type": "refusal", "category": "cyber", "explanation": reply.text}
    return stop


def _build_usage(counts: TokenCounts) -> dict[str, Any]:
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
