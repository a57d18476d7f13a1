"""OpenAI's Responses API, without stored state."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from fake_vendors.wire import (
    ModelReply,
    ModelRequest,
    ReplyRecord,
    TokenCounts,
    VendorError,
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
    400: ("invalid_request_error", None, "the request is not lawful"),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    402: ("insufficient_quota", "insufficient_quota", "There is no credit left."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Country not supported"),
    404: ("invalid_request_error", None, "Not found"),
    429: (
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached for requests per min (RPM). Please try again later.",
    ),
    503: (
        "server_error",
        "server_is_overloaded",
        "The engine is currently overloaded, please try again later",
    ),
}
_ASSISTANT_KINDS = ("reasoning", "function_call", "assistant")


class ResponsesApi:
    vendor = "openai"
    key = "sk-proj-canary-0123456789abcdef"
    model = "gpt-5"
    call_prefix = "call_"
    answers_anywhere = True

    def matches_path(self, path: str) -> bool:
        return path == "/openai/v1/responses"

    def accepts_key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return headers.get("authorization") == f"Bearer {self.key}"

    def parse_request(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        if body.get("previous_response_id"):
            raise VendorError(
                400, f"Previous response with id {body['previous_response_id']!r} not found."
            )
        input_value = body.get("input")
        items = (
            [{"role": "user", "content": input_value}]
            if isinstance(input_value, str)
            else read_list(body, "input")
        )
        tools = read_list(body, "tools")
        system = str(body.get("instructions") or "")
        messages = [Message(role="system", text=system)] if system else []
        for is_assistant, group in groupby(items, lambda item: _get_kind(item) in _ASSISTANT_KINDS):
            part = list(group)
            messages += [_read_turn(part)] if is_assistant else map(_read_item, part)
        return ModelRequest(
            model=str(body.get("model")),
            stream=bool(body.get("stream")),
            body=body,
            transcript=build_transcript(messages),
            tools={str(tool.get("name")): tool.get("parameters") or {} for tool in tools},
            blocks=[dump_canonical(part) for part in [*tools, system, *items]],
        )

    def build_record(self, request: ModelRequest, reply: ModelReply) -> ReplyRecord:
        keys = [
            f"msg_{reply.id}",
            f"rs_{reply.id}",
            reply.state,
            *(call.id for call in reply.calls),
        ]
        states = {}
        if reply.thinking and _includes_encrypted(request):
            states["reasoning item with its encrypted_content"] = reply.state
        elif reply.thinking and request.body.get("store") is not False:
            states["reasoning item"] = f"rs_{reply.id}"
        return ReplyRecord(keys=frozenset(keys), states=states)

    def build_body(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Mapping[str, Any]:
        return {
            "id": f"resp_{reply.id}",
            "object": "response",
            "created_at": 1,
            "status": "incomplete" if reply.end == "cut" else "completed",
            "model": request.model,
            "output": list(_build_items(request, reply)),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if reply.end == "cut" else None,
            "instructions": None,
            "metadata": {},
            "temperature": 1.0,
            "top_p": 1.0,
            "usage": _build_usage(counts),
        }

    def build_frames(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Iterator[str]:
        for number, (kind, fields) in enumerate(self._build_events(request, reply, counts)):
            event = {"type": kind, "sequence_number": number, **fields}
            yield f"event: {kind}\ndata: {dump_compact(event)}\n\n"

    def _build_events(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        response = self.build_body(request, reply, counts)
        started_response = {
            **response,
            "status": "in_progress",
            "output": [],
            "usage": None,
            "incomplete_details": None,
        }
        yield "response.created", {"response": started_response}
        yield "response.in_progress", {"response": started_response}
        for index, item in enumerate(_build_items(request, reply)):
            at = {"item_id": item["id"], "output_index": index}
            yield (
                "response.output_item.added",
                {"output_index": index, "item": _build_started_item(item)},
            )
            match item["type"]:
                case "reasoning":
                    yield from _build_reasoning_events(item, at)
                case "message":
                    yield from _build_message_events(item, at)
                case _:
                    yield from _build_call_events(item, at)
            yield "response.output_item.done", {"output_index": index, "item": item}
        yield f"response.{response['status']}", {"response": response}

    def build_key_error(self, headers: Mapping[str, str]) -> VendorError:
        key = headers.get("authorization", "").removeprefix("Bearer ")
        shown = f"{key[:8]}{'*' * max(0, len(key) - 12)}{key[-4:]}"
        advice = "You can find your API key at https://platform.openai.com/account/api-keys."
        return VendorError(401, f"Incorrect API key provided: {shown}. {advice}", "invalid_api_key")

    def build_model_error(self, model: str) -> VendorError:
        return VendorError(
            404,
            f"The model `{model}` does not exist or you do not have access to it.",
            "model_not_found",
        )

    def build_context_error(self) -> VendorError:
        sentence = (
            "Your input exceeds the context window of this model. Please adjust your input and try"
            " again."
        )
        return VendorError(400, sentence, "context_length_exceeded")

    def build_error_body(self, vendor_error: VendorError) -> Mapping[str, Any]:
        kind, code, sentence = _ERRORS.get(
            vendor_error.status,
            ("server_error", None, "The server had an error while processing your request."),
        )
        if vendor_error.error:
            code = vendor_error.error
        if code == "insufficient_quota":
            kind = code
            sentence = (
                "You exceeded your current quota, please check your plan and billing details."
            )
        return {
            "error": {
                "message": vendor_error.sentence or sentence,
                "type": kind,
                "param": None,
                "code": code,
            }
        }


def _get_kind(item: Mapping[str, Any]) -> str:
    """Return the type of an item; for a message, its role."""
    kind = str(item.get("type") or "message")
    return str(item.get("role")) if kind == "message" else kind


def _read_item(item: Mapping[str, Any]) -> Message:
    match _get_kind(item):
        case "function_call_output":
            return build_answer(str(item.get("call_id")), extract_text(item.get("output")))
        case "user":
            return Message(role="user", text=extract_text(item.get("content")))
        case "system" | "developer":
            return Message(role="system", text=extract_text(item.get("content")))
        case kind:
            raise VendorError(400, f"Invalid value: {kind!r} in the input.")


def _read_turn(items: Iterable[Mapping[str, Any]]) -> Message:
    """Read the items that the assistant wrote between two inputs."""
    calls = [item for item in items if _get_kind(item) == "function_call"]
    thoughts = [item for item in items if _get_kind(item) == "reasoning"]
    encrypted = [
        str(item["encrypted_content"]) for item in thoughts if item.get("encrypted_content")
    ]
    return build_turn(
        "".join(
            extract_text(item.get("content")) for item in items if _get_kind(item) == "assistant"
        ),
        [
            build_call(str(call.get("call_id")), str(call.get("name")), call.get("arguments"))
            for call in calls
        ],
        keys=[str(item["id"]) for item in items if item.get("id")] + encrypted,
        states=[str(item.get("id")) for item in thoughts] + encrypted,
    )


def _includes_encrypted(request: ModelRequest) -> bool:
    return "reasoning.encrypted_content" in (request.body.get("include") or ())


def _build_items(request: ModelRequest, reply: ModelReply) -> Iterator[dict[str, Any]]:
    if reply.thinking:
        shown = (request.body.get("reasoning") or {}).get("summary")
        summary = [{"type": "summary_text", "text": reply.thinking}] if shown else []
        encrypted = {"encrypted_content": reply.state} if _includes_encrypted(request) else {}
        yield {"type": "reasoning", "id": f"rs_{reply.id}", "summary": summary, **encrypted}
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        part = {"type": "refusal", "refusal": reply.text} if reply.end == "refused" else part
        item = {
            "type": "message",
            "id": f"msg_{reply.id}",
            "role": "assistant",
            "status": "completed",
        }
        yield {**item, "content": [part]}
    for call in reply.calls:
        yield {
            "type": "function_call",
            "id": call.id.replace("call_", "fc_"),
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": "incomplete" if reply.end == "cut" else "completed",
        }


def _build_started_item(item: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"reasoning": {"summary": []}, "message": {"content": []}}.get(
        item["type"], {"arguments": ""}
    )
    return {**item, **empty, **({} if item["type"] == "reasoning" else {"status": "in_progress"})}


def _build_reasoning_events(
    item: Mapping[str, Any], at: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, part in enumerate(item["summary"]):
        position = {**at, "summary_index": index}
        yield "response.reasoning_summary_part.added", {**position, "part": {**part, "text": ""}}
        for piece in split_text(part["text"]):
            yield "response.reasoning_summary_text.delta", {**position, "delta": piece}
        yield "response.reasoning_summary_text.done", {**position, "text": part["text"]}
        yield "response.reasoning_summary_part.done", {**position, "part": part}


def _build_message_events(
    item: Mapping[str, Any], at: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    [part] = item["content"]
    name = "refusal" if part["type"] == "refusal" else "text"
    kind = "refusal" if name == "refusal" else "output_text"
    more: dict[str, Any] = {} if name == "refusal" else {"logprobs": []}
    position = {**at, "content_index": 0}
    yield "response.content_part.added", {**position, "part": {**part, name: ""}}
    for piece in split_text(part[name]):
        yield f"response.{kind}.delta", {**position, "delta": piece, **more}
    yield f"response.{kind}.done", {**position, name: part[name], **more}
    yield "response.content_part.done", {**position, "part": part}


def _build_call_events(
    item: Mapping[str, Any], at: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for piece in split_text(item["arguments"]):
        yield "response.function_call_arguments.delta", {**at, "delta": piece}
    yield (
        "response.function_call_arguments.done",
        {**at, "name": item["name"], "arguments": item["arguments"]},
    )


def _build_usage(counts: TokenCounts) -> dict[str, Any]:
    return {
        "input_tokens": counts.input,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.input + counts.output,
    }
