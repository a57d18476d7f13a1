"""What the vendors' wires have in common: a question in neutral form, a reply in neutral form, and
a refusal."""

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
    """The vendor answers with an error: an HTTP status, a sentence, and perhaps the vendor's name
    of it."""

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

    The transcript begins with the system's words and a user's. `blocks` is the prompt in the order
    in which it is cached, and `marks` how many blocks each marked prefix has; None where the vendor
    caches unasked.
    """

    model: str
    stream: bool
    body: Mapping[str, Any]
    transcript: Sequence[Message]
    tools: Mapping[str, Mapping[str, Any]]
    blocks: Sequence[str]
    marks: Sequence[int] | None = None

    @property
    def probes(self) -> bool:
        """It asks for nothing but a call of the tool `ready`."""
        return "ready" in self.tools and [message.role for message in self.transcript] == [
            "system",
            "user",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireToolCall:
    """`arguments` is text, mostly JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """What the model says; `id` is unique, and `state` is the seal on its thoughts that only the
    vendor can read."""

    id: str
    state: str
    thinking: str = ""
    text: str = ""
    calls: tuple[WireToolCall, ...] = ()
    end: Literal["", "cut", "refused"] = ""

    def arguments(self, call: WireToolCall) -> Mapping[str, Any]:
        """A call's arguments where the wire has only objects."""
        try:
            whole = json.loads(call.arguments)
        except ValueError:
            whole = from_json(call.arguments, allow_partial=True) if self.end == "cut" else None
        return whole if isinstance(whole, dict) else {"unreadable": call.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens; `cached` and `written` are parts of `input`."""

    input: int
    cached: int
    written: int
    output: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRecord:
    """How a reply is known when it comes back, and what must be in it then, by what it is
    called."""

    keys: frozenset[str]
    states: Mapping[str, str] = field(default_factory=dict)


class VendorApi(Protocol):
    """One vendor's API: pure translation, no conversation is remembered here."""

    vendor: str
    key: str
    model: str
    call_prefix: str
    answers_anywhere: bool
    """Whether a tool's answer may stand behind other messages."""

    def serves(self, path: str) -> bool:
        """Whether this is the path of a model request."""
        ...

    def admits(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether the key is right."""
        ...

    def ask(self, path: str, body: Mapping[str, Any]) -> ModelRequest:
        """Raises Denied when the request is not lawful."""
        ...

    def kept(self, ask: ModelRequest, reply: ModelReply) -> ReplyRecord: ...

    def whole(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Mapping[str, Any]:
        """The reply as one JSON."""
        ...

    def frames(self, ask: ModelRequest, reply: ModelReply, counts: Counts) -> Iterator[str]:
        """The reply as server-sent events."""
        ...

    def no_key(self, headers: Mapping[str, str]) -> VendorError: ...

    def no_model(self, model: str) -> VendorError: ...

    def full(self) -> VendorError:
        """The prompt is too long."""
        ...

    def error(self, denied: VendorError) -> Mapping[str, Any]:
        """The body of an error."""
        ...


def canonical(value: Any) -> str:
    """One text for each JSON value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def pieces(text: str, most: int = 4) -> list[str]:
    """The text in `most` pieces, wherever that cuts it."""
    size = max(1, -(-len(text) // most))
    return [text[at : at + size] for at in range(0, len(text), size)]


def text_of(content: Any) -> str:
    """The words in a content field: a text, or parts with texts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        str(part.get("text") or part.get("refusal") or "")
        for part in parts
        if isinstance(part, dict)
    )


def said(
    text: str, calls: Iterable[ToolCall], keys: Iterable[str], states: Iterable[str] = ()
) -> Message:
    """An assistant's turn that came back, with what it is known by and the states in it."""
    known = {"keys": list(keys), "states": list(states)}
    return Message(role="assistant", text=text, calls=tuple(calls), state=known)


def answered(call: str, text: str) -> Message:
    """A tool's answer; behind "exit code N in" there is a command that the harness saw."""
    ran = None
    words = text[:40].split()
    if words[:2] == ["exit", "code"] and words[3:4] == ["in"] and words[2].lstrip("-").isdigit():
        ran = CommandRan(command="", exit_code=int(words[2]), seconds=0)
    return Message(role="tool", text=text, call=call, ran=ran)


def call_of(id: str, name: str, arguments: Any) -> ToolCall:
    """A call that came back; arguments that are no object are none."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    return ToolCall(id=id, name=name, args=arguments if isinstance(arguments, dict) else {})


def transcript(messages: Iterable[Message]) -> list[Message]:
    """The messages, with what the system says at the beginning as one. Raises Denied when no user
    speaks then."""
    rest = list(messages)
    system = []
    while rest and rest[0].role == "system":
        system.append(rest.pop(0).text)
    if not rest or rest[0].role != "user":
        raise VendorError(400, "the first message must be the user's")
    if rest[-1].role == "assistant":
        raise VendorError(400, "the last message must not be the assistant's")
    return [Message(role="system", text="\n\n".join(system)), *rest]


def listed(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A field that is a list of objects. Raises Denied when it is not."""
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise VendorError(400, f"{name} must be a list of objects")
    return value
