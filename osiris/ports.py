"""What the parts ask of each other, in as few methods as they need. `bootstrap` joins them."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from osiris.events import CommandRan, Event, FileChange, IssueRef, Usage
from osiris.sandboxing import Export
from osiris.task import Task

# ── the conversation with a model ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What a model wants done; `broken` says why its arguments cannot be read, and then nothing may be done."""

    id: str
    name: str
    args: Mapping[str, Any]
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One line of a transcript; `call` names the tool call that a `tool` message answers.

    `ran` is the command the harness saw behind a tool's answer. Of a reply, `model` is who said it (VENDOR:MODEL),
    `end` why it is not whole (cut at the vendor's limit, or refused), and `state` its form at the vendor, which goes
    back to the vendor verbatim: signatures and encrypted thoughts are in it.
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


Kind = Literal["text", "thinking", "call", "again"]
"""What a piece of a reply is; "again": what came of this reply is void, it is said once more."""

Hear = Callable[[Kind, str], None]
"""Is told each piece of a reply as it comes."""


def deaf(kind: Kind, text: str) -> None:
    """Hear nothing."""


class Brain(Protocol):
    """A model; `priced` says whether it is known what it costs."""

    @property
    def priced(self) -> bool: ...

    async def reply(self, transcript: Sequence[Message], tools: Sequence[ToolSpec], hear: Hear = deaf) -> Message:
        """The next assistant message.

        Raises Unavailable (come back later), RunEnded (somebody must mend something first, or it never will), or
        Refused.
        """


Choose = Callable[[str], Awaitable[Brain]]
"""VENDOR:MODEL ("" for the operator's) -> its brain. Raises Refused when there is no such model, or it cannot work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a reply that is under way: the reply that will be message `seq` of `run`."""

    run: str
    seq: int
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """The journal of task number `task` has a new last line, number `seq`."""

    task: int
    seq: int


News = Delta | Noted


class Journal(Protocol):
    """Where news go as they come, for people who watch. What is lost here is in the database soon after."""

    def hear(self, news: News) -> None: ...


class Toolbox(Protocol):
    """The tools of one run."""

    def specs(self) -> Sequence[ToolSpec]: ...

    async def call(self, name: str, args: Mapping[str, Any]) -> ToolAnswer:
        """Use a tool. What goes wrong inside it is its answer; raises RunEnded when the tool ends the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A run's files, put away off this machine: `commit` holds them as they were after `steps` messages."""

    commit: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run that this worker goes on with.

    `base` is the commit it stands on (the first one given), `seconds` its active time so far; `here` says whether this
    machine was the last to work on it, so that its workspace is what it was.
    """

    base: str
    seconds: float
    here: bool
    kept: Kept | None


class Transcripts(Protocol):
    """The append-only record of runs, in the database. Only who began a run last may add to it: else it is Fenced."""

    async def begin(self, run: str, issue: IssueRef, purpose: str, base: str) -> Begun:
        """Take a run over, and note its begin if it is new."""

    async def load(self, run: str) -> list[Message]: ...

    async def append(self, run: str, seq: int, message: Message, seconds: float) -> None:
        """Store message number `seq` (from 0), add `seconds` to the run's active time, and commit.

        Storing the same number again changes nothing.
        """

    async def keep(self, run: str, kept: Kept) -> None:
        """Note where a run's files were put away."""

    async def end(self, run: str, outcome: str) -> None:
        """Note a run's end. Anybody may: a run that is stopped need not be under way."""


# ── how a run ends ────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── hands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """Where work starts: a commit of a repository that this machine has a mirror of.

    `trusted` is the end of the default branch: what people merged, and no agent wrote alone.
    """

    commit: str
    trusted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Work the host took over and checked: a tree in the host's own repository, and what it changes.

    `size` is how many bytes it added to that repository.
    """

    tree: str
    files: tuple[FileChange, ...]
    size: int


class Desk(Protocol):
    """The host's own repositories, which no sandbox sees; it holds no credential."""

    async def take(self, repo: str, base: str, export: Export, deny: Sequence[str]) -> Taken:
        """Import a stranger's pack and hold it against policy. Raises Refused with the sentence for the person."""

    async def instructions(self, repo: str, commit: str) -> Mapping[str, str]:
        """The repository's own instructions for agents at `commit`: path -> text, capped.

        What was cut or left out is said in a text.
        """

    async def read(self, repo: str, commit: str, path: str) -> str:
        """The text of a file at `commit`, capped; "" when there is none. Raises Refused when it cannot be read."""

    async def fingerprint(self, repo: str, commit: str) -> str:
        """What changes with the packages that a repository needs: its lock files and the like, or else all of it."""


class Vault(Protocol):
    """Where the files of a run are put away, so that another machine can go on with it. It is no place of the agent."""

    async def keep(self, repo: str, run: str, tree: str, base: str, before: str) -> str:
        """Put a tree of the host's own repository away, after what was put away `before` ("": nothing yet).

        Returns its commit. Raises Fenced when another worker put something away since; Refused, and Unavailable.
        """

    async def fetch(self, repo: str, run: str) -> None:
        """Bring what was put away to this machine. Raises Refused when it is not there, and Unavailable."""

    async def drop(self, repo: str, runs: Collection[str]) -> None:
        """Throw away what was put away for some runs; fine when there is nothing. Raises Refused or Unavailable."""


# ── durability ────────────────────────────────────────────────────────────────────────────────────────────────────


class Inbox(Protocol):
    async def accept(self, source: str, delivery: str, kind: str, body: bytes) -> None:
        """Store what happened, commit, wake a worker. The same (source, delivery) again changes nothing.

        Raises Unavailable when the database did not take it.
        """

    async def note(self, key: str, event: Event) -> None:
        """Accept a fact of our own, known by `key`."""


class Tasks(Protocol):
    """The tasks, to look at."""

    async def get(self, issue: IssueRef) -> Task | None: ...

    async def by_pull(self, repo: str, pull: int) -> Task | None: ...


@dataclass(frozen=True, slots=True)
class Figure:
    """Something counted, for who watches over Osiris; `label` and `value` say of which."""

    name: str
    count: float
    label: str = ""
    value: str = ""


class Records(Protocol):
    """What the database knows, for who compares it with GitHub."""

    async def living(self) -> Sequence[tuple[Task, float]]:
        """Every task that has not ended, and when it was made (seconds since 1970)."""

    async def missing(self, source: str, deliveries: Collection[str]) -> set[str]:
        """Those of some deliveries of a source that never came into the inbox."""

    async def recall(self, name: str) -> str:
        """What was remembered under a name; "" when nothing was."""

    async def remember(self, name: str, value: str) -> None: ...

    async def rename(self, old: str, new: str) -> None:
        """A repository has another name from now on, in all that is known of it."""


class Pace(Protocol):
    """Leave to write to GitHub: through each account one at a time, and no faster than GitHub allows."""

    def turn(self, account: str) -> AbstractAsyncContextManager[None]:
        """Wait for leave to send one write through the installation of `account`; the block is the sending.

        Raises Unavailable when the wait would be long (`retry_in` says how long), and Fenced when this worker no longer
        holds its lease: then nothing may be sent.
        """

    def insist(self) -> None:
        """The last look before a write is sent. Raises Fenced when this worker may have been taken for dead."""

    async def hold(self, account: str, seconds: float) -> None:
        """GitHub asked for a pause: no worker gets leave to write through `account` for so many seconds."""


class Wake(Protocol):
    """A hint that the database holds something due. Losing one costs time, never work."""

    def wake(self) -> None:
        """Tell every worker, on this machine and on others."""

    async def wait(self, timeout: float) -> None:
        """Return when woken, or after `timeout` seconds."""
