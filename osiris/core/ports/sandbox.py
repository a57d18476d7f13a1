"""What Osiris asks of a place where commands of strangers may run.

No path and no process of this machine is in it, so that containers or another machine can stand
behind it as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Protocol

from osiris.core.work import Blocked, Prepared

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What one session may use: sizes in bytes, times in seconds. `memory` and `processes` hold for
    all that runs in it together, `disk` and `inodes` for all its files, the others for each
    command."""

    memory: int = 2 * GIB
    processes: int = 256
    cpu_seconds: int = 600
    open_files: int = 1024
    file_size: int = 512 * MIB
    disk: int = 2 * GIB
    inodes: int = 200_000
    shared_memory: int = 64 * MIB
    output: int = 256 * KIB
    kept_output: int = 8 * MIB
    pack: int = 64 * MIB
    scratch: int = 512 * MIB
    open_seconds: float = 120
    setup_seconds: float = 1200
    export_seconds: float = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a workspace is got ready: `commands` of the base branch, run in its files, with a way out
    to the package registries and to `hosts`, before anybody else's words are near. What comes of
    it, the files that git does not know and the home, is kept for all that have the same `key`."""

    commands: tuple[str, ...]
    hosts: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a new session is made of: a clone of `repo` at commit `base`, with the files of commit
    `files`, if that is given, as changes on top; got ready by `setup` in the files of commit
    `trusted`, the end of the base branch; with a way out to `hosts` alone, in most cases to
    none."""

    repo: str
    base: str
    trusted: str
    files: str = ""
    setup: Setup | None = None
    hosts: tuple[str, ...] = ()
    limits: SandboxLimits = field(default_factory=SandboxLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a sandboxed command did. `exit_code` is None when it was killed; `output` is stdout and
    stderr together, cut to head and tail when `total` bytes were too many; `blocked` is where it
    wanted to go and could not."""

    exit_code: int | None
    output: bytes
    total: int
    timed_out: bool
    out_of_memory: bool
    seconds: float
    blocked: tuple[Blocked, ...] = ()

    @property
    def truncated(self) -> bool:
        return self.total > len(self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The work of a session as a stranger's push: `pack` is a thin pack of what is new in `tree`
    against the base. It is a file of no name: closing it is all that it needs."""

    tree: str
    pack: IO[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One thing a machine was asked to do; `fix` says what to do when it failed. One that is
    `needed` forbids all runs when it fails, another makes the sandbox a weak one. `passing`: it
    failed for want of time or memory, and may go well in a moment."""

    name: str
    ok: bool
    needed: bool = True
    detail: str = ""
    fix: str = ""
    passing: bool = False


class Files(Protocol):
    """The files of a session, each question answered inside of it. A path is relative to the
    workspace; the answer is text for a model, and begins with `error: ` when it could not be done.
    Raises Unavailable when nothing answers."""

    async def read(self, path: str, start: int, lines: int) -> str: ...

    async def write(self, path: str, content: bytes) -> str: ...

    async def edit(self, path: str, old: bytes, new: bytes) -> str: ...

    async def list(self, path: str) -> str: ...

    async def search(self, pattern: str, path: str) -> str: ...


class Session(Protocol):
    """One workspace in one sandbox."""

    @property
    def files(self) -> Files: ...

    @property
    def prepared(self) -> Prepared: ...

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = ".",
        stdin: bytes = b"",
        timeout: float = 120,
        keep_as: str = "",
    ) -> Result:
        """Run a command in folder `cwd` of the workspace, for at most `timeout` seconds; everything
        it started dies with it.

        With `keep_as`, the full output (up to the session's cap) is kept as that file name below
        /tmp/outputs inside.
        """

    async def export(self, base: str) -> Export:
        """Take the workspace as a pack against commit `base`. Raises Refused or Unavailable."""

    async def seal(self) -> None:
        """The workspace is as it should be: from now on the session is found again, before a crash
        loses it."""

    async def destroy(self) -> None:
        """End the session and remove what it left; twice is fine."""


class Sandbox(Protocol):
    """A place where commands of strangers may run."""

    async def create(self, name: str, plan: Plan) -> tuple[Session, bool]:
        """The session `name`, made as `plan` says when there is none; and whether it is new.

        One that was never sealed is thrown away, and made anew. Raises Refused when there is no
        safe sandbox on this machine or the plan cannot be followed, NeedsOperator when the set-up
        fails, Unavailable when it cannot be made now.
        """

    async def remove(self, name: str) -> None:
        """Throw a session away by its name; fine if there is none."""

    def names(self) -> Sequence[str]:
        """The sessions that are on this machine."""

    async def probe(self) -> Sequence[Probe]:
        """What this machine can do, each found out by doing it."""
