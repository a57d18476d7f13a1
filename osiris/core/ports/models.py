"""Language models: the conversation, the tools, and how a run ends."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from osiris.core.work import CommandRan, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What a model wants done; `broken` says why its arguments cannot be read, and then nothing may
    be done."""

    id: str
    name: str
    args: Mapping[str, Any]
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One line of a transcript; `call` names the tool call that a `tool` message answers.

    `ran` is the command the harness saw behind a tool's answer. Of a reply, `model` is who said it
    (VENDOR:MODEL), `end` why it is not whole (cut at the vendor's limit, or refused), and `state`
    its form at the vendor, which goes back to the vendor verbatim: signatures and encrypted
    thoughts are in it.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    calls: tuple[ToolCall, ...] = ()
    call: str = ""
    ran: CommandRan | None = None
    model: str = ""
    end: Literal["", "cut", "refused"] = ""
    usage: Usage = field(default_factory=Usage)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool as the model sees it; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    text: str
    ran: CommandRan | None = None


DeltaKind = Literal["text", "thinking", "call", "restart"]
"""What a piece of a reply is; "restart": what came of this reply is void, it is said once more."""


OnDelta = Callable[[DeltaKind, str], None]
"""Is told each piece of a reply as it comes."""


def ignore_deltas(kind: DeltaKind, text: str) -> None:
    """Hear nothing."""


class LanguageModel(Protocol):
    """A model; `priced` says whether it is known what it costs."""

    @property
    def is_priced(self) -> bool: ...

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        """The next assistant message.

        Raises Unavailable (come back later), RunEnded (somebody must mend something first, or it
        never will), or Refused.
        """


SelectModel = Callable[[str], Awaitable[LanguageModel]]
"""VENDOR:MODEL ("" for the operator's) -> its brain. Raises Refused when there is no such model, or
it cannot work."""


class Toolbox(Protocol):
    """The tools of one run."""

    def list_tools(self) -> Sequence[ToolSpec]: ...

    async def call_tool(self, name: str, args: Mapping[str, Any]) -> ToolAnswer:
        """Use a tool. What goes wrong inside it is its answer; raises RunEnded when the tool ends
        the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The model says it is finished; `summary` is in its own words."""

    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """The run cannot be finished; `reason` is half a sentence for a person."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentBudget:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Halted:
    """The run waits for a person to mend something outside of it; `reason` is half a sentence."""

    reason: str


Outcome = Submitted | GaveUp | SpentBudget | Halted
