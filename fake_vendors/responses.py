"""OpenAI's wire: the Responses API, stateless."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from fake_vendors.wire import (
    Counts,
    ModelReply,
    ModelRequest,
    ReplyRecord,
    VendorError,
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
_OWN = ("reasoning", "function_call", "assistant")


class ResponsesApi:
    vendor = "openai"
    key = "sk-proj-canary-0123456789abcdef"
    model = "gpt-5"
    call_prefix = "call_"
    answers_anywhere = True

    def serves(self, path: str) -> bool:
        return path == "/openai/v1/responses"

    def admits(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return headers.get("authorization") == f"Bearer {self.key}"

    def ask(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        if body.get("previous_response_id"):
            raise VendorError(
                400, f"Previous response with id {body['previous_response_id']!r} not found."
            )
        given = body.get("input")
        items = (
            [{"role": "user", "content": given}]
            if isinstance(given, str)
            else listed(body, "input")
        )
        tools = listed(body, "tools")
        system = str(body.get("instructions") or "")
        heard = [Message(role="system", text=system)] if system else []
        for own, group in groupby(items, lambda item: _kind(item) in _OWN):
            part = list(group)
            heard += [_turn(part)] if own else map(_read, part)
        return ModelRequest(
            model=str(body.get("model")),
            stream=bool(body.get("stream")),
            body=body,
            transcript=transcript(heard),
            tools={str(tool.get("name")): tool.get("parameters") or {} for tool in tools},
            blocks=[canonical(part) for part in [*tools, system, *items]],
        )

    def kept(self, ask: ModelRequest, reply: ModelReply) -> ReplyRecord:
        keys = [
            f"msg_{reply.id}",
            f"rs_{reply.id}",
            reply.state,
            *(call.id for call in reply.calls),
        ]
        states = {}
        if reply.thinking and _seals(ask):
            states["reasoning item with its encrypted_content"] = reply.state
        elif reply.thinking and ask.body.get("store") is not False:
            states["reasoning item"] = f"rs_{reply.id}"
        return ReplyRecord(keys=frozenset(keys), states=states)

    def whole(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Mapping[str, Any]:
        return {
            "id": f"resp_{reply.id}",
            "object": "response",
            "created_at": 1,
            "status": "incomplete" if reply.end == "cut" else "completed",
            "model": ask.model,
            "output": list(_items(ask, reply)),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if reply.end == "cut" else None,
            "instructions": None,
            "metadata": {},
            "temperature": 1.0,
            "top_p": 1.0,
            "usage": _usage(counts),
        }

    def frames(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Iterator[str]:
        for number, (kind, fields) in enumerate(self._events(ask, reply, counts)):
            event = {"type": kind, "sequence_number": number, **fields}
            yield f"event: {kind}\ndata: {compact(event)}\n\n"

    def _events(
        self, ask: ModelRequest, reply: ModelReply, counts: Counts
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        whole = self.whole(ask, reply, counts)
        begun = {
            **whole,
            "status": "in_progress",
            "output": [],
            "usage": None,
            "incomplete_details": None,
        }
        yield "response.created", {"response": begun}
        yield "response.in_progress", {"response": begun}
        for index, item in enumerate(_items(ask, reply)):
            at = {"item_id": item["id"], "output_index": index}
            yield "response.output_item.added", {"output_index": index, "item": _begun(item)}
            match item["type"]:
                case "reasoning":
                    yield from _reasoning(item, at)
                case "message":
                    yield from _message(item, at)
                case _:
                    yield from _call(item, at)
            yield "response.output_item.done", {"output_index": index, "item": item}
        yield f"response.{whole['status']}", {"response": whole}

    def no_key(self, headers: Mapping[str, str]) -> VendorError:
        key = headers.get("authorization", "").removeprefix("Bearer ")
        shown = f"{key[:8]}{'*' * max(0, len(key) - 12)}{key[-4:]}"
        where = "You can find your API key at https://platform.openai.com/account/api-keys."
        return VendorError(401, f"Incorrect API key provided: {shown}. {where}", "invalid_api_key")

    def no_model(self, model: str) -> VendorError:
        return VendorError(
            404,
            f"The model `{model}` does not exist or you do not have access to it.",
            "model_not_found",
        )

    def full(self) -> VendorError:
        sentence = (
            "Your input exceeds the context window of this model. Please adjust your input and try"
            " again."
        )
        return VendorError(400, sentence, "context_length_exceeded")

    def error(self, denied: VendorError) -> Mapping[str, Any]:
        kind, code, sentence = _ERRORS.get(
            denied.status,
            ("server_error", None, "The server had an error while processing your request."),
        )
        if denied.error:
            code = denied.error
        if code == "insufficient_quota":
            kind = code
            sentence = (
                "You exceeded your current quota, please check your plan and billing details."
            )
        return {
            "error": {
                "message": denied.sentence or sentence,
                "type": kind,
                "param": None,
                "code": code,
            }
        }


def _kind(item: Mapping[str, Any]) -> str:
    """An item's type; of a message, whose it is."""
    kind = str(item.get("type") or "message")
    return str(item.get("role")) if kind == "message" else kind


def _read(item: Mapping[str, Any]) -> Message:
    match _kind(item):
        case "function_call_output":
            return answered(str(item.get("call_id")), text_of(item.get("output")))
        case "user":
            return Message(role="user", text=text_of(item.get("content")))
        case "system" | "developer":
            return Message(role="system", text=text_of(item.get("content")))
        case kind:
            raise VendorError(400, f"Invalid value: {kind!r} in the input.")


def _turn(items: Iterable[Mapping[str, Any]]) -> Message:
    """What the assistant said between two things it was told."""
    calls = [item for item in items if _kind(item) == "function_call"]
    thoughts = [item for item in items if _kind(item) == "reasoning"]
    sealed = [str(item["encrypted_content"]) for item in thoughts if item.get("encrypted_content")]
    return said(
        "".join(text_of(item.get("content")) for item in items if _kind(item) == "assistant"),
        [
            call_of(str(call.get("call_id")), str(call.get("name")), call.get("arguments"))
            for call in calls
        ],
        keys=[str(item["id"]) for item in items if item.get("id")] + sealed,
        states=[str(item.get("id")) for item in thoughts] + sealed,
    )


def _seals(ask: ModelRequest) -> bool:
    return "reasoning.encrypted_content" in (ask.body.get("include") or ())


def _items(ask: ModelRequest, reply: ModelReply) -> Iterator[dict[str, Any]]:
    if reply.thinking:
        shown = (ask.body.get("reasoning") or {}).get("summary")
        summary = [{"type": "summary_text", "text": reply.thinking}] if shown else []
        sealed = {"encrypted_content": reply.state} if _seals(ask) else {}
        yield {"type": "reasoning", "id": f"rs_{reply.id}", "summary": summary, **sealed}
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


def _begun(item: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"reasoning": {"summary": []}, "message": {"content": []}}.get(
        item["type"], {"arguments": ""}
    )
    return {**item, **empty, **({} if item["type"] == "reasoning" else {"status": "in_progress"})}


def _reasoning(
    item: Mapping[str, Any], at: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, part in enumerate(item["summary"]):
        here = {**at, "summary_index": index}
        yield "response.reasoning_summary_part.added", {**here, "part": {**part, "text": ""}}
        for piece in pieces(part["text"]):
            yield "response.reasoning_summary_text.delta", {**here, "delta": piece}
        yield "response.reasoning_summary_text.done", {**here, "text": part["text"]}
        yield "response.reasoning_summary_part.done", {**here, "part": part}


def _message(
    item: Mapping[str, Any], at: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    [part] = item["content"]
    name = "refusal" if part["type"] == "refusal" else "text"
    kind = "refusal" if name == "refusal" else "output_text"
    more: dict[str, Any] = {} if name == "refusal" else {"logprobs": []}
    here = {**at, "content_index": 0}
    yield "response.content_part.added", {**here, "part": {**part, name: ""}}
    for piece in pieces(part[name]):
        yield f"response.{kind}.delta", {**here, "delta": piece, **more}
    yield f"response.{kind}.done", {**here, name: part[name], **more}
    yield "response.content_part.done", {**here, "part": part}


def _call(item: Mapping[str, Any], at: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for piece in pieces(item["arguments"]):
        yield "response.function_call_arguments.delta", {**at, "delta": piece}
    yield (
        "response.function_call_arguments.done",
        {**at, "name": item["name"], "arguments": item["arguments"]},
    )


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.input,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.input + counts.output,
    }
