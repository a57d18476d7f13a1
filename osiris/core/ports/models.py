"""Ports to language models: the conversation, the tools, and the outcomes of a run."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from osiris.core.work import CommandRan, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that a model makes; `broken` is why its arguments cannot be read: it is not executed
    then."""

    id: str
    name: str
    args: Mapping[str, Any]
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a transcript; `call` is the id of the tool call that a `tool` message answers.

    `ran` is the command that Osiris saw behind a tool's answer, and `left_out` what a brief does
    not have, in sentences for people. Of a reply, `model` is its author
    (VENDOR:MODEL), `end` why it is incomplete (cut at the vendor's limit, or refused), and `state`
    the vendor's own form of it, which goes back to the vendor verbatim with its signatures and
    encrypted reasoning.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    calls: tuple[ToolCall, ...] = ()
    call: str = ""
    ran: CommandRan | None = None
    left_out: tuple[str, ...] = ()
    model: str = ""
    end: Literal["", "cut", "refused"] = ""
    usage: Usage = field(default_factory=Usage)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool; the model gets its name, description and `parameters`, a JSON Schema.

    A call of a `repeatable` tool may be repeated after a crash: it then does nothing twice. A call
    of one that `edits_files` makes what earlier commands showed out of date. A call of one that
    `ends_run` ends the run with an outcome.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    repeatable: bool = False
    edits_files: bool = False
    ends_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    text: str
    ran: CommandRan | None = None


DeltaKind = Literal["text", "thinking", "call", "restart"]
"""The kind of a piece of a reply; "restart": the pieces so far are void, the reply starts again."""


OnDelta = Callable[[DeltaKind, str], None]
"""A callback for each piece of a reply as it comes."""


def ignore_deltas(kind: DeltaKind, text: str) -> None:
    """Do nothing with a piece of a reply."""


class LanguageModel(Protocol):
    """A language model; `is_priced` is False when its price is unknown."""

    @property
    def is_priced(self) -> bool: ...

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        """Return the next assistant message.

        Raises Unavailable (try later), RunEnded (a person must change something first, or it never
        will), or Refused.
        """


SelectModel = Callable[[str], Awaitable[LanguageModel]]
"""VENDOR:MODEL ("" for the operator's choice) -> the model. Raises Refused when it does not exist
or cannot work."""


class Toolbox(Protocol):
    """The tools of one run."""

    def list_tools(self) -> Sequence[ToolSpec]: ...

    async def call_tool(self, name: str, args: Mapping[str, Any]) -> ToolAnswer:
        """Call a tool. An error inside it is its answer; raises RunEnded when the tool ends the
        run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The model reports that it is finished; `summary` is in its own words."""

    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The model proposes a plan, which a person is to approve."""

    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The model asks a person a question, without whose answer it cannot go on."""

    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """The run cannot be finished; `reason` is half a sentence for a person."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentBudget:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Halted:
    """The run waits until a person changes something outside of it; `reason` is half a sentence."""

    reason: str


Outcome = Submitted | Planned | Asked | GaveUp | SpentBudget | Halted
