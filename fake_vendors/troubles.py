"""What can go wrong at a vendor. Each one takes the place of one scripted answer; the script goes
on after it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Status:
    """An answer with an HTTP error.

    `error` is the vendor's own name of it (its type, code, or status), or, with a blank in it, the
    vendor's sentence; without one it is the usual one of the code. At Google a name with "PerDay"
    in it is the quota that is used up.
    """

    code: int
    error: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class ContextFull:
    """The prompt is longer than the model takes."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Nothing is sent until the client leaves."""


@dataclass(frozen=True, slots=True)
class HangMidway:
    """The scripted reply begins, stops in the middle of its tool call, and nothing more is sent."""


@dataclass(frozen=True, slots=True)
class BreakMidway:
    """The scripted reply begins, and the connection is cut in the middle of its tool call."""


@dataclass(frozen=True, slots=True)
class Empty:
    """A lawful reply with nothing in it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The vendor withholds the reply; `text` is what it says, as far as its wire has a place for
    that."""

    text: str


@dataclass(frozen=True, slots=True)
class BadArguments:
    """A call with these arguments, which are not JSON. Google's are objects: there they stand in a
    strange field."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CutInCall:
    """The reply ends at its greatest length, in the middle of a call's arguments.

    Google's are objects: there only the fields that were whole are in them.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class UnknownTool:
    """A call of a tool that nobody offered."""

    name: str


@dataclass(frozen=True, slots=True)
class Say:
    """Words and no tool call."""

    text: str


Trouble = (
    Status
    | ContextFull
    | Hang
    | HangMidway
    | BreakMidway
    | Empty
    | Refusal
    | BadArguments
    | CutInCall
    | UnknownTool
    | Say
)
