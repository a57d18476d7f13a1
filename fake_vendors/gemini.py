"""Google's wire: the Gemini API's generateContent and streamGenerateContent."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    def serves(self, path: str) -> bool:
        return _PATH.fullmatch(path) is not None

    def admits(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        return self.key in (headers.get("x-goog-api-key"), query.get("key"))

    def ask(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        model, verb = path.rpartition("/")[2].split(":")
        contents = listed(body, "contents")
        tools = listed(body, "tools")
        system = body.get("systemInstruction") or {}
        heard = [Message(role="system", text=text_of(system.get("parts")))]
        for number, content in enumerate(contents):
            heard += _read(content, number, heard[-1])
        offered = [function for tool in tools for function in tool.get("functionDeclarations", ())]
        return ModelRequest(
            model=model,
            stream=verb == "streamGenerateContent",
            body=body,
            transcript=transcript(heard),
            tools={str(tool.get("name")): _schema(tool) for tool in offered},
            blocks=[canonical(part) for part in [*tools, system, *_parts(contents)]],
        )

    def kept(self, ask: ModelRequest, reply: ModelReply) -> ReplyRecord:
        states = {"thoughtSignature": reply.state} if reply.thinking and reply.calls else {}
        return ReplyRecord(
            keys=frozenset([reply.state, *(call.id for call in reply.calls)]), states=states
        )

    def whole(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Mapping[str, Any]:
        parts = [part for parts in _said(ask, reply, most=1) for part in parts]
        return self._chunk(ask, reply, parts, counts, last=True)

    def frames(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Iterator[str]:
        for parts in _said(ask, reply, most=4):
            yield f"data: {compact(self._chunk(ask, reply, parts, counts, last=False))}\r\n\r\n"
        yield f"data: {compact(self._chunk(ask, reply, [], counts, last=True))}\r\n\r\n"

    def _chunk(
        self,
        ask: ModelRequest,
        reply: ModelReply,
        parts: Sequence[Mapping[str, Any]],
        counts: Counts,
        *,
        last: bool,
    ) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model"}, "index": 0}
        if parts:
            candidate["content"]["parts"] = list(parts)
        if last:
            candidate["finishReason"] = {"": "STOP", "cut": "MAX_TOKENS", "refused": "SAFETY"}[
                reply.end
            ]
        return {
            "candidates": [candidate],
            "usageMetadata": _usage(counts),
            "modelVersion": ask.model,
            "responseId": reply.id,
        }

    def no_key(self, headers: Mapping[str, str]) -> VendorError:
        return VendorError(
            400, "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"
        )

    def no_model(self, model: str) -> VendorError:
        there = "Call ListModels to see the list of available models and their supported methods."
        sentence = (
            f"models/{model} is not found for API version v1beta, or is not supported for"
            " generateContent."
        )
        return VendorError(404, f"{sentence} {there}")

    def full(self) -> VendorError:
        return VendorError(
            400,
            "The input token count (1100000) exceeds the maximum number of tokens allowed"
            " (1048576).",
        )

    def error(self, denied: VendorError) -> Mapping[str, Any]:
        status, sentence = _ERRORS.get(denied.status, ("UNKNOWN", "Unknown error."))
        if denied.error and denied.error.isupper() and denied.error != "API_KEY_INVALID":
            status = denied.error
        error = {"code": denied.status, "message": denied.sentence or sentence, "status": status}
        details = list(_details(denied))
        return {"error": {**error, "details": details} if details else error}


def _details(denied: VendorError) -> Iterator[dict[str, Any]]:
    if denied.error == "API_KEY_INVALID":
        info = {
            "reason": denied.error,
            "domain": "googleapis.com",
            "metadata": {"service": _SERVICE},
        }
        yield {"@type": f"{_RPC}.ErrorInfo", **info}
    if "PerDay" in denied.error:
        violation = {
            "quotaMetric": f"{_SERVICE}/generate_content_requests",
            "quotaId": denied.error,
        }
        yield {"@type": f"{_RPC}.QuotaFailure", "violations": [violation]}
    if denied.retry_after is not None:
        yield {"@type": f"{_RPC}.RetryInfo", "retryDelay": f"{denied.retry_after:g}s"}


def _schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return (
        _either(tool, "parametersJsonSchema", "parameters_json_schema")
        or tool.get("parameters")
        or {}
    )


def _either(value: Mapping[str, Any], camel: str, snake: str) -> Any:
    """A field by either of its names: Google takes both, and its SDK sends both."""
    return value.get(camel) or value.get(snake)


def _parts(contents: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
    for content in contents:
        for part in content.get("parts") or ():
            yield [content.get("role"), part]


def _read(content: Mapping[str, Any], number: int, before: Message) -> Iterator[Message]:
    parts = listed(content, "parts")
    if not parts:
        raise VendorError(400, f"contents[{number}].parts must not be empty.")
    match content.get("role", "user"):
        case "model":
            yield _turn(parts, number)
        case "user" | "function":
            open_calls = [(call.name, call.id) for call in before.calls]
            for part in parts:
                if answer := part.get("functionResponse"):
                    yield _answer(answer, open_calls)
                else:
                    yield Message(role="user", text=str(part.get("text", "")))
        case role:
            raise VendorError(400, f"Please use a valid role: user, model. {role!r} is none.")


def _answer(answer: Mapping[str, Any], open_calls: list[tuple[str, str]]) -> Message:
    """Without an id it is the answer to the first open call of its name."""
    named = [id for name, id in open_calls if name == answer.get("name")]
    call = str(answer.get("id") or (named[0] if named else answer.get("name")))
    open_calls[:] = [(name, id) for name, id in open_calls if id != call]
    response = answer.get("response")
    values = list(response.values()) if isinstance(response, dict) else [response]
    alone = values[0] if len(values) == 1 else None
    return answered(call, alone if isinstance(alone, str) else canonical(response))


def _turn(parts: Sequence[Mapping[str, Any]], number: int) -> Message:
    calls = [part["functionCall"] for part in parts if part.get("functionCall")]
    signed = [_plain(part["thoughtSignature"]) for part in parts if part.get("thoughtSignature")]
    named = [(str(call.get("id") or f"{number}-{at}"), call) for at, call in enumerate(calls)]
    return said(
        "".join(
            str(part["text"]) for part in parts if part.get("text") and not part.get("thought")
        ),
        [call_of(id, str(call.get("name")), call.get("args")) for id, call in named],
        keys=signed,
        states=[_plain(part.get("thoughtSignature")) for part in parts if part.get("functionCall")],
    )


def _plain(signature: Any) -> str:
    """Bytes may come in either alphabet of base64."""
    return str(signature).replace("-", "+").replace("_", "/")


def _said(ask: ModelRequest, reply: ModelReply, most: int) -> Iterator[list[dict[str, Any]]]:
    """The parts of the reply, as many at a time as one chunk has."""
    thinking = (ask.body.get("generationConfig") or {}).get("thinkingConfig") or {}
    if _either(thinking, "includeThoughts", "include_thoughts"):
        for piece in pieces(reply.thinking, most):
            yield [{"text": piece, "thought": True}]
    for piece in pieces(reply.text, most):
        yield [{"text": piece}]
    for number, call in enumerate(reply.calls):
        part: dict[str, Any] = {
            "functionCall": {"id": call.id, "name": call.name, "args": dict(reply.arguments(call))}
        }
        yield (
            [{**part, "thoughtSignature": reply.state}] if reply.thinking and not number else [part]
        )


def _usage(counts: Counts) -> dict[str, Any]:
    usage = {
        "promptTokenCount": counts.input,
        "candidatesTokenCount": counts.output,
        "totalTokenCount": counts.input + counts.output,
    }
    return {**usage, "cachedContentTokenCount": counts.cached} if counts.cached else usage
