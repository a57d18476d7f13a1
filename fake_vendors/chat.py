"""The wire that vLLM, Ollama and llama.cpp speak: chat completions."""

from collections.abc import Iterator, Mapping
from typing import Any

from fake_vendors.wire import (
    TOOLLESS,
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
    400: ("BadRequestError", "the request is not lawful"),
    401: ("Unauthorized", "Unauthorized"),
    402: ("insufficient_quota", "There is no credit left."),
    404: ("NotFoundError", "Not found"),
    429: ("rate_limit_exceeded", "Too many requests"),
    503: ("service_unavailable_error", "Loading model"),
}


class ChatApi:
    vendor = "openai-compatible"
    key = "sk-local-canary-0123456789abcdef"
    model = "qwen3-coder"
    call_prefix = "chatcmpl-tool-"
    answers_anywhere = False

    def serves(self, path: str) -> bool:
        return path == "/compatible/v1/chat/completions"

    def admits(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return True

    def ask(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        messages = listed(body, "messages")
        tools = listed(body, "tools")
        if body.get("model") == TOOLLESS and tools:
            raise VendorError(400, f'"{TOOLLESS}" does not support tools', "invalid_request_error")
        functions = [tool.get("function") or {} for tool in tools]
        return ModelRequest(
            model=str(body.get("model")),
            stream=bool(body.get("stream")),
            body=body,
            transcript=transcript(map(_read, messages)),
            tools={
                str(function.get("name")): function.get("parameters") or {}
                for function in functions
            },
            blocks=[canonical(part) for part in [*tools, *messages]],
        )

    def kept(self, ask: ModelRequest, reply: ModelReply) -> ReplyRecord:
        return ReplyRecord(keys=frozenset(call.id for call in reply.calls))

    def whole(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Mapping[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.thinking:
            message["reasoning_content"] = reply.thinking
        if reply.calls:
            message["tool_calls"] = [
                _call(call.id, call.name, call.arguments) for call in reply.calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": _finish(reply)}
        return {
            **_head(ask, reply, "chat.completion"),
            "choices": [choice],
            "usage": _usage(counts),
        }

    def frames(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Iterator[str]:
        head = _head(ask, reply, "chat.completion.chunk")
        for delta in _deltas(reply):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield f"data: {compact({**head, 'choices': [choice]})}\n\n"
        end = {"index": 0, "delta": {}, "finish_reason": _finish(reply)}
        yield f"data: {compact({**head, 'choices': [end]})}\n\n"
        if (ask.body.get("stream_options") or {}).get("include_usage"):
            yield f"data: {compact({**head, 'choices': [], 'usage': _usage(counts)})}\n\n"
        yield "data: [DONE]\n\n"

    def no_key(self, headers: Mapping[str, str]) -> VendorError:
        return VendorError(401, "Unauthorized")

    def no_model(self, model: str) -> VendorError:
        return VendorError(404, f"The model `{model}` does not exist.")

    def full(self) -> VendorError:
        asked = (
            "However, you requested 40960 tokens (38912 in the messages, 2048 in the completion)."
        )
        advice = "Please reduce the length of the messages or completion."
        return VendorError(
            400, f"This model's maximum context length is 32768 tokens. {asked} {advice}"
        )

    def error(self, denied: VendorError) -> Mapping[str, Any]:
        name, sentence = _ERRORS.get(
            denied.status, ("InternalServerError", "Internal server error")
        )
        kind = denied.error or name
        return {
            "error": {
                "message": denied.sentence or sentence,
                "type": kind,
                "param": None,
                "code": denied.status,
            }
        }


def _read(message: Mapping[str, Any]) -> Message:
    text = text_of(message.get("content"))
    match message.get("role"):
        case "system" | "developer":
            return Message(role="system", text=text)
        case "user":
            return Message(role="user", text=text)
        case "tool":
            return answered(str(message.get("tool_call_id")), text)
        case "assistant":
            called = [
                (str(call.get("id")), call.get("function") or {})
                for call in message.get("tool_calls") or ()
            ]
            calls = [
                call_of(id, str(function.get("name")), function.get("arguments"))
                for id, function in called
            ]
            return said(text, calls, keys=[])
        case role:
            raise VendorError(400, f"Unexpected message role: {role!r}.")


def _call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _deltas(reply: ModelReply) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for piece in pieces(reply.thinking):
        yield {"reasoning_content": piece}
    for piece in pieces(reply.text):
        yield {"content": piece}
    for index, call in enumerate(reply.calls):
        yield {"tool_calls": [{"index": index, **_call(call.id, call.name, "")}]}
        for piece in pieces(call.arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _finish(reply: ModelReply) -> str:
    if reply.end:
        return "length" if reply.end == "cut" else "content_filter"
    return "tool_calls" if reply.calls else "stop"


def _head(ask: ModelRequest, reply: ModelReply, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{reply.id}", "object": kind, "created": 1, "model": ask.model}


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "prompt_tokens": counts.input,
        "completion_tokens": counts.output,
        "total_tokens": counts.input + counts.output,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }
