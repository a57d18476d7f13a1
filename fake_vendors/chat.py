"""The chat completions API, which vLLM, Ollama and llama.cpp offer."""

from collections.abc import Iterator, Mapping
from typing import Any

from fake_vendors.wire import (
    TOOLLESS,
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

    def matches_path(self, path: str) -> bool:
        return path == "/compatible/v1/chat/completions"

    def accepts_key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return True

    def parse_request(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        messages = read_list(body, "messages")
        tools = read_list(body, "tools")
        if body.get("model") == TOOLLESS and tools:
            raise VendorError(400, f'"{TOOLLESS}" does not support tools', "invalid_request_error")
        functions = [tool.get("function") or {} for tool in tools]
        return ModelRequest(
            model=str(body.get("model")),
            stream=bool(body.get("stream")),
            body=body,
            transcript=build_transcript(map(_read_message, messages)),
            tools={
                str(function.get("name")): function.get("parameters") or {}
                for function in functions
            },
            blocks=[dump_canonical(part) for part in [*tools, *messages]],
        )

    def build_record(self, request: ModelRequest, reply: ModelReply) -> ReplyRecord:
        return ReplyRecord(keys=frozenset(call.id for call in reply.calls))

    def build_body(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Mapping[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.thinking:
            message["reasoning_content"] = reply.thinking
        if reply.calls:
            message["tool_calls"] = [
                _build_call_object(call.id, call.name, call.arguments) for call in reply.calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": _get_finish_reason(reply)}
        return {
            **_build_head(request, reply, "chat.completion"),
            "choices": [choice],
            "usage": _build_usage(counts),
        }

    def build_frames(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Iterator[str]:
        head = _build_head(request, reply, "chat.completion.chunk")
        for delta in _build_deltas(reply):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield f"data: {dump_compact({**head, 'choices': [choice]})}\n\n"
        end = {"index": 0, "delta": {}, "finish_reason": _get_finish_reason(reply)}
        yield f"data: {dump_compact({**head, 'choices': [end]})}\n\n"
        if (request.body.get("stream_options") or {}).get("include_usage"):
            usage = _build_usage(counts)
            yield f"data: {dump_compact({**head, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    def build_key_error(self, headers: Mapping[str, str]) -> VendorError:
        return VendorError(401, "Unauthorized")

    def build_model_error(self, model: str) -> VendorError:
        return VendorError(404, f"The model `{model}` does not exist.")

    def build_context_error(self) -> VendorError:
        details = (
            "However, you requested 40960 tokens (38912 in the messages, 2048 in the completion)."
        )
        advice = "Please reduce the length of the messages or completion."
        return VendorError(
            400, f"This model's maximum context length is 32768 tokens. {details} {advice}"
        )

    def build_error_body(self, vendor_error: VendorError) -> Mapping[str, Any]:
        name, sentence = _ERRORS.get(
            vendor_error.status, ("InternalServerError", "Internal server error")
        )
        kind = vendor_error.error or name
        return {
            "error": {
                "message": vendor_error.sentence or sentence,
                "type": kind,
                "param": None,
                "code": vendor_error.status,
            }
        }


def _read_message(message: Mapping[str, Any]) -> Message:
    text = extract_text(message.get("content"))
    match message.get("role"):
        case "system" | "developer":
            return Message(role="system", text=text)
        case "user":
            return Message(role="user", text=text)
        case "tool":
            return build_answer(str(message.get("tool_call_id")), text)
        case "assistant":
            call_fields = [
                (str(call.get("id")), call.get("function") or {})
                for call in message.get("tool_calls") or ()
            ]
            calls = [
                build_call(id, str(function.get("name")), function.get("arguments"))
                for id, function in call_fields
            ]
            return build_turn(text, calls, keys=[])
        case role:
            raise VendorError(400, f"Unexpected message role: {role!r}.")


def _build_call_object(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _build_deltas(reply: ModelReply) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for piece in split_text(reply.thinking):
        yield {"reasoning_content": piece}
    for piece in split_text(reply.text):
        yield {"content": piece}
    for index, call in enumerate(reply.calls):
        yield {"tool_calls": [{"index": index, **_build_call_object(call.id, call.name, "")}]}
        for piece in split_text(call.arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _get_finish_reason(reply: ModelReply) -> str:
    if reply.end:
        return "length" if reply.end == "cut" else "content_filter"
    return "tool_calls" if reply.calls else "stop"


def _build_head(request: ModelRequest, reply: ModelReply, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{reply.id}", "object": kind, "created": 1, "model": request.model}


def _build_usage(counts: TokenCounts) -> dict[str, Any]:
    return {
        "prompt_tokens": counts.input,
        "completion_tokens": counts.output,
        "total_tokens": counts.input + counts.output,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }
