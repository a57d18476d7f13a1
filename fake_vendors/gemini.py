"""Google's Gemini API: generateContent and streamGenerateContent."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    402: ("FAILED_PRECONDITION", "Please enable billing on your project in Google AI Studio."),
    403: ("PERMISSION_DENIED", "The caller does not have permission"),
    404: ("NOT_FOUND", "Requested entity was not found."),
    429: (
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    500: ("INTERNAL", "An internal error has occurred. Please retry."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}
_PATH = re.compile(
    r"/google/v1(?:beta|alpha)?/models/[^/:]+:(generateContent|streamGenerateContent)"
)
_RPC = "type.googleapis.com/google.rpc"
_SERVICE = "generativelanguage.googleapis.com"


class Gemini:
    vendor = "google"
    key = "AIzaSyCanary0123456789abcdef"
    model = "gemini-3-pro-preview"
    call_prefix = ""
    answers_anywhere = False

    def matches_path(self, path: str) -> bool:
        return _PATH.fullmatch(path) is not None

    def accepts_key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return self.key in (headers.get("x-goog-api-key"), query.get("key"))

    def parse_request(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        model, method = path.rpartition("/")[2].split(":")
        contents = read_list(body, "contents")
        tools = read_list(body, "tools")
        system = body.get("systemInstruction") or {}
        messages = [Message(role="system", text=extract_text(system.get("parts")))]
        for number, content in enumerate(contents):
            messages += _read_content(content, number, messages[-1])
        functions = [
            function for tool in tools for function in tool.get("functionDeclarations", ())
        ]
        return ModelRequest(
            model=model,
            stream=method == "streamGenerateContent",
            body=body,
            transcript=build_transcript(messages),
            tools={str(tool.get("name")): _get_schema(tool) for tool in functions},
            blocks=[dump_canonical(part) for part in [*tools, system, *_list_parts(contents)]],
        )

    def build_record(self, request: ModelRequest, reply: ModelReply) -> ReplyRecord:
        states = {"thoughtSignature": reply.state} if reply.thinking and reply.calls else {}
        return ReplyRecord(
            keys=frozenset([reply.state, *(call.id for call in reply.calls)]), states=states
        )

    def build_body(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Mapping[str, Any]:
        parts = [part for parts in _build_parts(request, reply, max_pieces=1) for part in parts]
        return self._build_chunk(request, reply, parts, counts, is_last=True)

    def build_frames(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Iterator[str]:
        for parts in _build_parts(request, reply, max_pieces=4):
            chunk = self._build_chunk(request, reply, parts, counts, is_last=False)
            yield f"data: {dump_compact(chunk)}\r\n\r\n"
        last_chunk = self._build_chunk(request, reply, [], counts, is_last=True)
        yield f"data: {dump_compact(last_chunk)}\r\n\r\n"

    def _build_chunk(
        self,
        request: ModelRequest,
        reply: ModelReply,
        parts: Sequence[Mapping[str, Any]],
        counts: TokenCounts,
        *,
        is_last: bool,
    ) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model"}, "index": 0}
        if parts:
            candidate["content"]["parts"] = list(parts)
        if is_last:
            candidate["finishReason"] = {"": "STOP", "cut": "MAX_TOKENS", "refused": "SAFETY"}[
                reply.end
            ]
        return {
            "candidates": [candidate],
            "usageMetadata": _build_usage(counts),
            "modelVersion": request.model,
            "responseId": reply.id,
        }

    def build_key_error(self, headers: Mapping[str, str]) -> VendorError:
        return VendorError(
            400, "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"
        )

    def build_model_error(self, model: str) -> VendorError:
        advice = "Call ListModels to see the list of available models and their supported methods."
        sentence = (
            f"models/{model} is not found for API version v1beta, or is not supported for"
            " generateContent."
        )
        return VendorError(404, f"{sentence} {advice}")

    def build_context_error(self) -> VendorError:
        return VendorError(
            400,
            "The input token count (1100000) exceeds the maximum number of tokens allowed"
            " (1048576).",
        )

    def build_error_body(self, vendor_error: VendorError) -> Mapping[str, Any]:
        status, sentence = _ERRORS.get(vendor_error.status, ("UNKNOWN", "Unknown error."))
        if (
            vendor_error.error
            and vendor_error.error.isupper()
            and vendor_error.error != "API_KEY_INVALID"
        ):
            status = vendor_error.error
        error = {
            "code": vendor_error.status,
            "message": vendor_error.sentence or sentence,
            "status": status,
        }
        details = list(_build_details(vendor_error))
        return {"error": {**error, "details": details} if details else error}


def _build_details(vendor_error: VendorError) -> Iterator[dict[str, Any]]:
    if vendor_error.error == "API_KEY_INVALID":
        info = {
            "reason": vendor_error.error,
            "domain": "googleapis.com",
            "metadata": {"service": _SERVICE},
        }
        yield {"@type": f"{_RPC}.ErrorInfo", **info}
    if "PerDay" in vendor_error.error:
        violation = {
            "quotaMetric": f"{_SERVICE}/generate_content_requests",
            "quotaId": vendor_error.error,
        }
        yield {"@type": f"{_RPC}.QuotaFailure", "violations": [violation]}
    if vendor_error.retry_after is not None:
        yield {"@type": f"{_RPC}.RetryInfo", "retryDelay": f"{vendor_error.retry_after:g}s"}


def _get_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return (
        _get_either(tool, "parametersJsonSchema", "parameters_json_schema")
        or tool.get("parameters")
        or {}
    )


def _get_either(value: Mapping[str, Any], camel: str, snake: str) -> Any:
    """Return a field by either of its names: Google accepts both, and its SDK sends both."""
    return value.get(camel) or value.get(snake)


def _list_parts(contents: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
    for content in contents:
        for part in content.get("parts") or ():
            yield [content.get("role"), part]


def _read_content(content: Mapping[str, Any], number: int, previous: Message) -> Iterator[Message]:
    parts = read_list(content, "parts")
    if not parts:
        raise VendorError(400, f"contents[{number}].parts must not be empty.")
    match content.get("role", "user"):
        case "model":
            yield _read_turn(parts, number)
        case "user" | "function":
            open_calls = [(call.name, call.id) for call in previous.calls]
            for part in parts:
                if answer := part.get("functionResponse"):
                    yield _read_answer(answer, open_calls)
                else:
                    yield Message(role="user", text=str(part.get("text", "")))
        case role:
            raise VendorError(400, f"Please use a valid role: user, model. {role!r} is none.")


def _read_answer(answer: Mapping[str, Any], open_calls: list[tuple[str, str]]) -> Message:
    """Read an answer. Without an id, it belongs to the first open call of its name."""
    ids_of_name = [id for name, id in open_calls if name == answer.get("name")]
    call = str(answer.get("id") or (ids_of_name[0] if ids_of_name else answer.get("name")))
    open_calls[:] = [(name, id) for name, id in open_calls if id != call]
    response = answer.get("response")
    values = list(response.values()) if isinstance(response, dict) else [response]
    single_value = values[0] if len(values) == 1 else None
    return build_answer(
        call, single_value if isinstance(single_value, str) else dump_canonical(response)
    )


def _read_turn(parts: Sequence[Mapping[str, Any]], number: int) -> Message:
    calls = [part["functionCall"] for part in parts if part.get("functionCall")]
    signatures = [
        _normalize_signature(part["thoughtSignature"])
        for part in parts
        if part.get("thoughtSignature")
    ]
    calls_by_id = [
        (str(call.get("id") or f"{number}-{index}"), call) for index, call in enumerate(calls)
    ]
    return build_turn(
        "".join(
            str(part["text"]) for part in parts if part.get("text") and not part.get("thought")
        ),
        [build_call(id, str(call.get("name")), call.get("args")) for id, call in calls_by_id],
        keys=signatures,
        states=[
            _normalize_signature(part.get("thoughtSignature"))
            for part in parts
            if part.get("functionCall")
        ],
    )


def _normalize_signature(signature: Any) -> str:
    """Return a signature in one alphabet of base64: the bytes may come in either."""
    return str(signature).replace("-", "+").replace("_", "/")


def _build_parts(
    request: ModelRequest, reply: ModelReply, max_pieces: int
) -> Iterator[list[dict[str, Any]]]:
    """Return the parts of the reply, grouped by chunk."""
    thinking = (request.body.get("generationConfig") or {}).get("thinkingConfig") or {}
    if _get_either(thinking, "includeThoughts", "include_thoughts"):
        for piece in split_text(reply.thinking, max_pieces):
            yield [{"text": piece, "thought": True}]
    for piece in split_text(reply.text, max_pieces):
        yield [{"text": piece}]
    for number, call in enumerate(reply.calls):
        part: dict[str, Any] = {
            "functionCall": {
                "id": call.id,
                "name": call.name,
                "args": dict(reply.parse_arguments(call)),
            }
        }
        yield (
            [{**part, "thoughtSignature": reply.state}] if reply.thinking and not number else [part]
        )


def _build_usage(counts: TokenCounts) -> dict[str, Any]:
    usage = {
        "promptTokenCount": counts.input,
        "candidatesTokenCount": counts.output,
        "totalTokenCount": counts.input + counts.output,
    }
    return {**usage, "cachedContentTokenCount": counts.cached} if counts.cached else usage
