"""The work of a run, as it is stored, shown to people, and written into the evidence."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One changed path, as the host read it from the tree.

    The numbers of lines are None for a binary file, and, with `counted` False, for one whose lines
    were not counted because that would take too long.
    """

    path: str
    status: Literal["added", "modified", "deleted"]
    additions: int | None
    deletions: int | None
    counted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A host and port that a command wanted to reach, how often, and why that was not let
    through."""

    host: str
    port: int
    times: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRan:
    """One command the harness saw in the sandbox; `exit_code` None: it was cut off."""

    command: str
    exit_code: int | None
    seconds: float
    blocked: tuple[Blocked, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """How a workspace was got ready: the commands of the set-up, whether their result was one of an
    earlier run, and what the sandbox of that machine lacks ("": nothing).

    `blocked` and `more_blocked` are as in Work.
    """

    commands: tuple[CommandRan, ...] = ()
    cached: bool = False
    weakness: str = ""
    blocked: tuple[Blocked, ...] = ()
    more_blocked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a model counted, and their price in US dollars; None: no price is known.

    `cached` are those of `input` that the vendor had kept from an earlier request.
    """

    input: int = 0
    cached: int = 0
    output: int = 0
    usd: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run handed in: the model's words, and the facts the harness saw.

    `model` names every model that worked on it; `edited_last` is True when files were changed after
    the last command ran. `commands` are the newest, and `earlier` is how many ran before them.
    `blocked` is what all commands together were not let through to, and `more_blocked` how many
    such rows were left out; in what earlier versions wrote, the rows are with the commands.
    """

    summary: str
    files: tuple[FileChange, ...]
    commands: tuple[CommandRan, ...]
    instructions: tuple[str, ...]
    model: str
    steps: int
    seconds: float
    usage: Usage = field(default_factory=Usage)
    edited_last: bool = False
    prepared: Prepared = field(default_factory=Prepared)
    earlier: int = 0
    blocked: tuple[Blocked, ...] = ()
    more_blocked: int = 0
