"""Failures of a vendor. Each replaces one scripted answer; afterwards the script continues."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Status:
    """An answer with an HTTP error.

    `error` is the vendor's own name of the error (its type, code, or status), or, if it contains a
    blank, the vendor's sentence. Without it, the usual error of the code is sent. For Google, a
    name with "PerDay" in it is the quota that is used up.
    """

    code: int
    error: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class ContextFull:
    """An error because the prompt is longer than the model's context window."""


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer until the client leaves."""


@dataclass(frozen=True, slots=True)
class HangMidway:
    """A reply that begins, stops in the middle of its tool call, and never continues."""


@dataclass(frozen=True, slots=True)
class BreakMidway:
    """A reply that begins, and whose connection is cut in the middle of its tool call."""


@dataclass(frozen=True, slots=True)
class Empty:
    """A valid reply without content."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal of the vendor. `text` is its reason, as far as the vendor's API has a field for
    it."""

    text: str


@dataclass(frozen=True, slots=True)
class BadArguments:
    """A call whose arguments are not JSON. Google's arguments are objects: there the text is in an
    unknown field."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CutInCall:
    """A reply that ends at its maximum length, in the middle of a call's arguments.

    Google's arguments are objects: there only the complete fields are present.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class UnknownTool:
    """A call of a tool that was not offered."""

    name: str


@dataclass(frozen=True, slots=True)
class Say:
    """A text without a tool call."""

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
