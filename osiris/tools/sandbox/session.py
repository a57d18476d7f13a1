"""One workspace in one sandbox: commands run in it one by one, and its work is taken out of it."""

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from osiris.core.errors import Refused, Unavailable
from osiris.core.events import Blocked, Prepared
from osiris.core.ports.sandbox import Export, Limits, Result
from osiris.tools.sandbox.disks.disk import INDEX, LEFT, OWN, Disk, finish_in_thread
from osiris.tools.sandbox.jail import cgroup as cgroups
from osiris.tools.sandbox.jail.bwrap_arguments import View
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.jail_etc import INSIDE_BRIDGE, PYTHON
from osiris.tools.sandbox.jail.output_buffer import Output
from osiris.tools.sandbox.jail.process import Jail, NotBegun, wait_for_ending
from osiris.tools.sandbox.network.proxy_process import ProxyProcess
from osiris.tools.sandbox.workspace.export import MAKE_READABLE, OBJECT_ID, UnreadableWork, collect
from osiris.tools.sandbox.workspace.file_helper_client import JailFiles

MOMENT: Final = 2.0  # seconds for which a command that could not begin is tried again
PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class Ground:
    """What a session stands on: its disk, the view its jails have, where packs are put, the name of its cgroup; the way
    out that its commands have, if they have one; and who is to know that it has ended."""

    disk: Disk
    view: View
    packs: Path
    cgroup: str
    egress: ProxyProcess | None = None
    ended: Callable[[], None] = lambda: None


class OpenSession:
    """Implements `sandboxing.Session`. One jail always stands ready for the next command, so that setting it up (6 ms)
    falls into the time in which the model thinks."""

    def __init__(self, ground: Ground, cgroup: Cgroup | None, prepared: Prepared, *, untouched: bool = False) -> None:
        self._ground = ground
        self._cgroup = cgroup
        self._next: asyncio.Task[Jail | None] | None = None
        self._closed = False
        self._untouched = untouched
        self._prepared = prepared
        self._files = JailFiles(self._run)
        if ground.egress is not None:
            ground.egress.start(ground.disk.uid)  # it takes a moment until it serves

    @property
    def files(self) -> JailFiles:
        return self._files

    @property
    def prepared(self) -> Prepared:
        return self._prepared

    @property
    def limits(self) -> Limits:
        return self._ground.view.limits

    @property
    def cgroup(self) -> Cgroup | None:
        return self._cgroup

    @property
    def unreachable(self) -> bool:
        """Whether a command wanted to reach a host that it may reach, and that did not answer."""
        return self._ground.egress is not None and self._ground.egress.unreachable

    def forget_unreachable(self) -> None:
        """The next command is to be asked about that for itself."""
        if self._ground.egress is not None:
            self._ground.egress.forget_unreachable()

    async def run(
        self, argv: Sequence[str], *, cwd: str = ".", stdin: bytes = b"", timeout: float = 120, keep_as: str = ""
    ) -> Result:
        """Run a command in the jail, in folder `cwd` of /workspace, for at most `timeout` seconds; everything it
        started dies with it.

        Raises Unavailable when the sandbox itself failed, Refused when the session is closed.
        """
        if keep_as and (not PLAIN_NAME.fullmatch(keep_as) or keep_as.startswith(".")):
            raise Refused(f"{keep_as!r} cannot name an output")
        limits = self._ground.view.limits
        output = Output(limits.output, limits.kept_output if keep_as else 0)
        async with self._way_out() as blocked:
            words = [PYTHON, "-I", "-S", INSIDE_BRIDGE, *argv] if self._ground.egress else argv
            result = await self._run(words, stdin, timeout, output=output, cwd=cwd)
        if keep_as:
            self._keep(keep_as, bytes(output.kept))
        return replace(result, blocked=tuple(blocked))

    async def export(self, base: str) -> Export:
        """Take the workspace as a pack against commit `base`, from a fresh read-only jail.

        Raises Refused or Unavailable.
        """
        if self._closed:
            raise Refused("this sandbox session is closed")
        if not OBJECT_ID.fullmatch(base):
            raise Refused(f"{base!r} is not the id of a commit")
        try:
            return await self._collect(base)
        except UnreadableWork:
            await self._run(["/bin/bash", "-c", MAKE_READABLE], b"", self.limits.export_seconds)
            return await self._collect(base)

    async def _collect(self, base: str) -> Export:
        return await collect(self.read_only(), base, packs=self._ground.packs, cgroup=self._cgroup)

    def read_only(self, *, home: bool = False) -> View:
        """What a jail of ours sees that takes something out: the workspace (and the home), and the trusted index."""
        ground, keep = self._ground, self._ground.disk.folder / "keep"
        extra = [(keep / INDEX, "/base.index", False)]
        if (self._ground.disk.keep / LEFT).is_file():
            extra.append((keep / OWN, "/base.own", False))
            extra.append((keep / LEFT, "/base.left", False))
        if home and ground.view.home:
            extra.append((ground.view.home, "/home/agent", False))
        return replace(
            ground.view,
            work_writable=False,
            tmp=None,
            home=None,
            toolchains=(),
            way_out=None,
            extra=tuple(extra),
            limits=replace(ground.view.limits, file_size=ground.view.limits.pack),
        )

    async def seal(self) -> None:
        """From now on the session is found again by its name. Sealing twice is fine."""
        self._ground.disk.seal()

    async def destroy(self) -> None:
        """End the session and remove what it left; twice is fine."""
        if self._closed:
            return
        self._closed = True
        await self._stand_down()
        await wait_for_ending()
        await finish_in_thread(self._ground.disk.remove)
        await remove_cgroup(self._ground.cgroup)
        self._ground.ended()

    # ── one command ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(
        self, argv: Sequence[str], stdin: bytes, timeout: float, *, output: Output | None = None, cwd: str = "."
    ) -> Result:
        if self._closed:
            raise Refused("this sandbox session is closed")
        if not argv or any("\0" in word for word in [*argv, cwd]):
            raise Refused("a command needs words, and none of them may hold a NUL byte")
        self._settle()
        self._ground.disk.open_up()
        output = output or Output(self._ground.view.limits.output)
        until = time.monotonic() + MOMENT
        while True:
            try:
                return await self._run_now(argv, stdin, timeout, output, cwd)
            except NotBegun:
                if time.monotonic() > until:
                    raise
            output.forget()
            await asyncio.sleep(0.05)

    async def _run_now(self, argv: Sequence[str], stdin: bytes, timeout: float, output: Output, cwd: str) -> Result:
        """Raises NotBegun, when it may be tried again: after many short commands the kernel still counts processes that
        are gone, and the session has reached its limit of them."""
        jail = await self._jail()
        killed = self._cgroup.out_of_memory() if self._cgroup else 0
        try:
            self._prepare()  # while this one runs: 6.4 ms from command to command instead of 13
            result = await jail.run(argv, stdin, timeout, output, cwd=cwd)
        finally:
            jail.discard()
        if self._cgroup and self._cgroup.out_of_memory() > killed:
            return replace(result, out_of_memory=True)
        return result

    def _settle(self) -> None:
        if not self._untouched:
            return
        self._untouched = False
        try:
            self._ground.disk.settle()
        except OSError as error:
            raise Unavailable(f"the session's disk cannot be used: {error.strerror}") from None

    @contextlib.asynccontextmanager
    async def _way_out(self) -> AsyncIterator[list[Blocked]]:
        """Let one command out, if it may; what it was not let through to is in the list when it is over."""
        blocked: list[Blocked] = []
        if self._ground.egress is None or self._ground.view.way_out is None:
            yield blocked
            return
        async with self._ground.egress.listening():
            yield blocked
        blocked += self._ground.egress.take_blocked()

    # ── the jail that stands ready ────────────────────────────────────────────────────────────────────────────────

    def _prepare(self) -> None:
        if self._next is None and not self._closed:
            self._next = asyncio.get_running_loop().create_task(self._set_up_early())

    async def _set_up_early(self) -> Jail | None:
        """None when it failed: the next command tries again, and is the one to say so."""
        try:
            return await self._set_up()
        except Unavailable:
            return None

    async def _set_up(self) -> Jail:
        with contextlib.ExitStack() as failed:
            jail = Jail(self._ground.view, self._cgroup)
            failed.callback(jail.discard)
            await jail.ready()
            failed.pop_all()
        return jail

    async def _jail(self) -> Jail:
        """The jail that stands ready, or a new one when it does not live any more."""
        task, self._next = self._next, None
        jail = await task if task else None
        if jail and jail.alive:
            return jail
        if jail:
            jail.discard()
        return await self._set_up()

    async def _stand_down(self) -> None:
        task, self._next = self._next, None
        if task:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if jail := await task:
                    jail.discard()

    # ── outputs ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, name: str, content: bytes) -> None:
        """Put a file into the session's /tmp/outputs. A link made by the agent is never followed: the folder is opened
        as itself, the file is made new and moved into place. What the agent made impossible is left out."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            top = _opened(opened, self._ground.disk.here / "tmp", flags)
            with contextlib.suppress(FileExistsError):
                os.mkdir("outputs", 0o755, dir_fd=top)
                self._give("outputs", top)
            folder = _opened(opened, "outputs", flags, dir_fd=top)
            temporary = f".{secrets.token_hex(8)}"
            new = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
            with open(new, "wb") as file:
                file.write(content)
            self._give(temporary, folder)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _give(self, name: str, folder: int) -> None:
        uid = self._ground.disk.uid
        if uid is not None:
            os.chown(name, uid, uid, dir_fd=folder, follow_symlinks=False)


def _opened(stack: contextlib.ExitStack, path: Path | str, flags: int, dir_fd: int | None = None) -> int:
    fd = os.open(path, flags, dir_fd=dir_fd)
    stack.callback(os.close, fd)
    return fd


async def remove_cgroup(name: str) -> None:
    """Dead processes leave a cgroup a moment after they are gone, so this asks again for up to two seconds."""
    for _ in range(100):
        group = cgroups.find(name)
        if group is None or await asyncio.to_thread(group.remove):
            return
        await asyncio.sleep(0.02)
