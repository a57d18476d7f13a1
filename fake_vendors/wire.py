"""Vendor-independent forms of requests, replies and errors, and helpers to build them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic_core import from_json

from osiris.core.ports.models import Message, ToolCall
from osiris.core.work import CommandRan

MISSING, TOOLLESS = "missing", "toolless"
"""Names of models that every vendor has: one that does not exist, and one that cannot call
tools."""


class VendorError(Exception):
    """An error that the vendor answers with: an HTTP status, a sentence, and optionally the
    vendor's name of the error."""

    def __init__(
        self, status: int, sentence: str, error: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.error = error
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A model request.

    The transcript begins with the system's text and a message of the user. `blocks` is the prompt
    in the order in which it is cached. `marks` states how many blocks each marked prefix has; None
    if the vendor caches without marks.
    """

    model: str
    stream: bool
    body: Mapping[str, Any]
    transcript: Sequence[Message]
    tools: Mapping[str, Mapping[str, Any]]
    blocks: Sequence[str]
    marks: Sequence[int] | None = None

    @property
    def is_probe(self) -> bool:
        """True if the request only asks for a call of the tool `ready`."""
        return "ready" in self.tools and [message.role for message in self.transcript] == [
            "system",
            "user",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireToolCall:
    """A tool call; `arguments` is a text, usually JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """A reply of the model. `id` is unique; `state` is the signature of its thoughts, which only
    the vendor can read."""

    id: str
    state: str
    thinking: str = ""
    text: str = ""
    calls: tuple[WireToolCall, ...] = ()
    end: Literal["", "cut", "refused"] = ""

    def parse_arguments(self, call: WireToolCall) -> Mapping[str, Any]:
        """Return the arguments of a call as an object, for APIs that have only objects."""
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = from_json(call.arguments, allow_partial=True) if self.end == "cut" else None
        return arguments if isinstance(arguments, dict) else {"unreadable": call.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Numbers of tokens; `cached` and `written` are parts of `input`."""

    input: int
    cached: int
    written: int
    output: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRecord:
    """The keys by which a reply is recognised when it comes back, and the states that must be in it
    then, by their names."""

    keys: frozenset[str]
    states: Mapping[str, str] = field(default_factory=dict)


class VendorApi(Protocol):
    """The API of one vendor: a pure translation without memory."""

    vendor: str
    key: str
    model: str
    call_prefix: str
    answers_anywhere: bool
    """Whether the answer of a tool may follow other messages."""

    def matches_path(self, path: str) -> bool:
        """Return whether this is the path of a model request."""
        ...

    def accepts_key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Return whether the key is right."""
        ...

    def parse_request(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        """Return the request in neutral form. Raise VendorError if the request is invalid."""
        ...

    def build_record(self, request: ModelRequest, reply: ModelReply) -> ReplyRecord: ...

    def build_body(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Mapping[str, Any]:
        """Return the reply as one JSON object."""
        ...

    def build_frames(
        self, request: ModelRequest, reply: ModelReply, counts: TokenCounts
    ) -> Iterator[str]:
        """Yield the reply as server-sent events."""
        ...

    def build_key_error(self, headers: Mapping[str, str]) -> VendorError: ...

    def build_model_error(self, model: str) -> VendorError: ...

    def build_context_error(self) -> VendorError:
        """Return the error for a prompt that is too long."""
        ...

    def build_error_body(self, vendor_error: VendorError) -> Mapping[str, Any]:
        """Return the body of an error."""
        ...


def dump_canonical(value: Any) -> str:
    """Return the same text for equal JSON values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def dump_compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def split_text(text: str, max_pieces: int = 4) -> list[str]:
    """Return the text in at most `max_pieces` pieces, split anywhere."""
    size = max(1, -(-len(text) // max_pieces))
    return [text[start : start + size] for start in range(0, len(text), size)]


def extract_text(content: Any) -> str:
    """Return the text of a content field, which is a string or a list of parts with texts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        str(part.get("text") or part.get("refusal") or "")
        for part in parts
        if isinstance(part, dict)
    )


def build_turn(
    text: str, calls: Iterable[ToolCall], keys: Iterable[str], states: Iterable[str] = ()
) -> Message:
    """Return a turn of the assistant that a client sent back, with its keys and states."""
    state = {"keys": list(keys), "states": list(states)}
    return Message(role="assistant", text=text, calls=tuple(calls), state=state)


def build_answer(call: str, text: str) -> Message:
    """Return the answer of a tool. A text that begins with "exit code N in" reports a command."""
    ran = None
    words = text[:40].split()
    if words[:2] == ["exit", "code"] and words[3:4] == ["in"] and words[2].lstrip("-").isdigit():
        ran = CommandRan(command="", exit_code=int(words[2]), seconds=0)
    return Message(role="tool", text=text, call=call, ran=ran)


def build_call(id: str, name: str, arguments: Any) -> ToolCall:
    """Return a call that a client sent back. Arguments that are not an object are dropped."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    return ToolCall(id=id, name=name, args=arguments if isinstance(arguments, dict) else {})


def build_transcript(messages: Iterable[Message]) -> list[Message]:
    """Return the messages, with all system messages at the beginning as one. Raise VendorError if
    no message of the user follows."""
    rest = list(messages)
    system = []
    while rest and rest[0].role == "system":
        system.append(rest.pop(0).text)
    if not rest or rest[0].role != "user":
        raise VendorError(400, "the first message must be the user's")
    if rest[-1].role == "assistant":
        raise VendorError(400, "the last message must not be the assistant's")
    return [Message(role="system", text="\n\n".join(system)), *rest]


def read_list(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a field that is a list of objects. Raise VendorError if it is not."""
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise VendorError(400, f"{name} must be a list of objects")
    return value
