"""The work of a run, as it is stored, shown to people, and written into the evidence."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One changed path, as the host read it from the tree.

    The numbers of lines are None for a binary file. They are also None, with `counted` False, where
    counting would take too long.
    """

    path: str
    status: Literal["added", "modified", "deleted"]
    additions: int | None
    deletions: int | None
    counted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A host and port that a command could not reach, how often it tried, and why."""

    host: str
    port: int
    times: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRan:
    """One command that Osiris saw in the sandbox; `exit_code` is None when it was cut off."""

    command: str
    exit_code: int | None
    seconds: float
    blocked: tuple[Blocked, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The preparation of a workspace: the setup commands, whether their result was cached, and what
    the sandbox of that machine lacks ("": nothing).

    `blocked` and `more_blocked` are as in Work.
    """

    commands: tuple[CommandRan, ...] = ()
    cached: bool = False
    weakness: str = ""
    blocked: tuple[Blocked, ...] = ()
    more_blocked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a model counted, and their price in US dollars (None: unknown).

    `cached` are those of `input` that the vendor had stored from an earlier request.
    """

    input: int = 0
    cached: int = 0
    output: int = 0
    usd: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work that a run handed in: the model's words, and what Osiris saw itself.

    `model` names every model that worked on it; `edited_last` is True when files changed after the
    last command. `commands` are the newest commands, and `earlier` is the number of those before
    them. `blocked` is what all commands together could not reach, and `more_blocked` the number of
    rows that were left out. In work that an earlier version stored, these rows are in the commands.
    `left_out` says in sentences what the agent was not shown, or not whole, and what of its work
    was not taken.
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
    left_out: tuple[str, ...] = ()
