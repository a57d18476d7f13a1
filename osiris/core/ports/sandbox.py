"""Ports to the sandbox, in which untrusted commands run.

No path and no process of this machine appears here, so that containers or another machine can
implement it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Protocol

from osiris.core.work import Blocked, Prepared

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
_FILE_SIZE = 8 * KIB  # of the disk for each file: installed packages are small files
_FEWEST_FILES = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Limits of one session: sizes in bytes, times in seconds. `memory` and `processes` hold for
    all its processes together, `disk` and `inodes` (0: as many as fit a disk of that size) for all
    its files, the others for each command."""

    memory: int = 2 * GIB
    processes: int = 256
    cpu_seconds: int = 600
    open_files: int = 1024
    file_size: int = 512 * MIB
    disk: int = 2 * GIB
    inodes: int = 0
    shared_memory: int = 64 * MIB
    output: int = 256 * KIB
    kept_output: int = 8 * MIB
    pack: int = 64 * MIB
    scratch: int = 512 * MIB
    open_seconds: float = 120
    setup_seconds: float = 1200
    export_seconds: float = 60

    @property
    def most_files(self) -> int:
        """Return how many files and folders the disk can hold."""
        return self.inodes or max(_FEWEST_FILES, self.disk // _FILE_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The preparation of a workspace: `commands` of the base branch, run on its files with access
    to the package registries and to `hosts`, before any other person's text is read. Its results,
    the home folder and the files that git does not know, are cached for all workspaces with the
    same `key`."""

    commands: tuple[str, ...]
    hosts: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The content of a new session: a clone of `repo` at commit `base`, with the files of commit
    `files`, if given, as changes on top. `setup` is run on the files of commit `trusted`, the head
    of the base branch. Its commands can reach `hosts` alone, in most cases none."""

    repo: str
    base: str
    trusted: str
    files: str = ""
    setup: Setup | None = None
    hosts: tuple[str, ...] = ()
    limits: SandboxLimits = field(default_factory=SandboxLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a sandboxed command. `exit_code` is None when it was killed; `output` is stdout
    and stderr together, cut to head and tail when it had `total` bytes; `blocked` are the hosts
    that it could not reach."""

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
    """The work of a session, untrusted: `pack` is a thin pack of what is new in `tree` against the
    base. It is an unnamed file; closing it removes it."""

    tree: str
    pack: IO[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One capability of this machine, as tried; `fix` is what to do when it is missing. Without one
    that is `needed` nothing runs; without another the sandbox counts as weak. `passing`: it failed
    for lack of time or memory, and may succeed in a moment."""

    name: str
    ok: bool
    needed: bool = True
    detail: str = ""
    fix: str = ""
    passing: bool = False


class Files(Protocol):
    """The files of a session; each call is answered by a program inside it. A path is relative to
    the workspace. The answer is text for a model, and begins with `error: ` when the call failed.
    Raises Unavailable when nothing answers."""

    async def read(self, path: str, start: int, lines: int) -> str: ...

    async def write(self, path: str, content: bytes) -> str: ...

    async def edit(self, path: str, old: bytes, new: bytes) -> str: ...

    async def list(self, path: str) -> str: ...

    async def search(self, pattern: str, path: str) -> str: ...


class Session(Protocol):
    """One workspace and its limits."""

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
        """Run a command in folder `cwd` of the workspace for at most `timeout` seconds; all its
        processes end with it.

        With `keep_as`, the full output (up to the session's limit) is saved under that name in
        /tmp/outputs inside.
        """

    async def export(self, base: str) -> Export:
        """Return the workspace as a pack against commit `base`. Raises Refused or Unavailable."""

    async def seal(self) -> None:
        """Mark the workspace as complete: from now on the session is found again after a crash."""

    async def destroy(self) -> None:
        """End the session and remove its files; a second call changes nothing."""


class Sandbox(Protocol):
    """A factory of sessions."""

    async def create(self, name: str, plan: Plan) -> tuple[Session, bool]:
        """Return the session `name`, made by `plan` unless it exists, and whether it is new.

        A session that was never sealed is removed and made again. Raises Refused when this machine
        has no safe sandbox or the plan cannot be followed, NeedsOperator when the setup fails,
        Unavailable when it cannot be made now.
        """

    async def remove(self, name: str) -> None:
        """Remove a session by its name, if it exists."""

    def list_sessions(self) -> Sequence[str]:
        """Return the names of the sessions on this machine."""

    async def probe(self) -> Sequence[Probe]:
        """Return the capabilities of this machine, each found by trying it."""
