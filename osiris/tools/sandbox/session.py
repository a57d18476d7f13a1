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
from osiris.core.ports.sandbox import Export, Result, SandboxLimits
from osiris.tools.sandbox.disks.disk import INDEX, LEFT, OWN, Disk, finish_in_thread
from osiris.tools.sandbox.jail import cgroup as cgroups
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.jail_etc import INSIDE_BRIDGE, PYTHON
from osiris.tools.sandbox.jail.output_buffer import OutputBuffer
from osiris.tools.sandbox.jail.process import Jail, JailStartFailed, wait_for_jails
from osiris.tools.sandbox.network.proxy_process import ProxyProcess
from osiris.tools.sandbox.workspace.export import (
    MAKE_READABLE,
    OBJECT_ID,
    UnreadableWork,
    export_workspace,
)
from osiris.tools.sandbox.workspace.file_helper_client import JailFiles

MOMENT: Final = 2.0  # seconds for which a command that could not begin is tried again
PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class SessionResources:
    """What a session stands on: its disk, the view its jails have, where packs are put, the name of
    its cgroup; the way out that its commands have, if they have one; and who is to know that it has
    ended."""

    disk: Disk
    view: JailSpec
    packs: Path
    cgroup: str
    proxy: ProxyProcess | None = None
    on_end: Callable[[], None] = lambda: None


class BubblewrapSession:
    """Implements `sandboxing.FakeSession`. One jail always stands ready for the next command, so
    that setting it up (6 ms) falls into the time in which the model thinks."""

    def __init__(
        self,
        ground: SessionResources,
        cgroup: Cgroup | None,
        prepared: Prepared,
        *,
        untouched: bool = False,
    ) -> None:
        self._resources = ground
        self._cgroup = cgroup
        self._next_jail: asyncio.Task[Jail | None] | None = None
        self._closed = False
        self._untouched = untouched
        self._prepared = prepared
        self._files = JailFiles(self._run_with_retry)
        if ground.proxy is not None:
            ground.proxy.start(ground.disk.uid)  # it takes a moment until it serves

    @property
    def files(self) -> JailFiles:
        return self._files

    @property
    def prepared(self) -> Prepared:
        return self._prepared

    @property
    def limits(self) -> SandboxLimits:
        return self._resources.view.limits

    @property
    def cgroup(self) -> Cgroup | None:
        return self._cgroup

    @property
    def unreachable(self) -> bool:
        """Whether a command wanted to reach a host that it may reach, and that did not answer."""
        return self._resources.proxy is not None and self._resources.proxy.unreachable

    def forget_unreachable(self) -> None:
        """The next command is to be asked about that for itself."""
        if self._resources.proxy is not None:
            self._resources.proxy.forget_unreachable()

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = ".",
        stdin: bytes = b"",
        timeout: float = 120,
        keep_as: str = "",
    ) -> Result:
        """Run a command in the jail, in folder `cwd` of /workspace, for at most `timeout` seconds;
        everything it started dies with it.

        Raises Unavailable when the sandbox itself failed, Refused when the session is closed.
        """
        if keep_as and (not PLAIN_NAME.fullmatch(keep_as) or keep_as.startswith(".")):
            raise Refused(f"{keep_as!r} cannot name an output")
        limits = self._resources.view.limits
        output = OutputBuffer(limits.output, limits.kept_output if keep_as else 0)
        async with self._open_network() as blocked:
            words = [PYTHON, "-I", "-S", INSIDE_BRIDGE, *argv] if self._resources.proxy else argv
            result = await self._run_with_retry(words, stdin, timeout, output=output, cwd=cwd)
        if keep_as:
            self._write_output(keep_as, bytes(output.prefix))
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
            return await self._export_pack(base)
        except UnreadableWork:
            await self._run_with_retry(
                ["/bin/bash", "-c", MAKE_READABLE], b"", self.limits.export_seconds
            )
            return await self._export_pack(base)

    async def _export_pack(self, base: str) -> Export:
        return await export_workspace(
            self.build_read_only_spec(), base, packs=self._resources.packs, cgroup=self._cgroup
        )

    def build_read_only_spec(self, *, home: bool = False) -> JailSpec:
        """What a jail of ours sees that takes something out: the workspace (and the home), and the
        trusted index."""
        ground = self._resources
        keep = self._resources.disk.folder / "keep"
        extra = [(keep / INDEX, "/base.index", False)]
        if (self._resources.disk.host_only / LEFT).is_file():
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
            proxy_folder=None,
            extra=tuple(extra),
            limits=replace(ground.view.limits, file_size=ground.view.limits.pack),
        )

    async def seal(self) -> None:
        """From now on the session is found again by its name. Sealing twice is fine."""
        self._resources.disk.seal()

    async def destroy(self) -> None:
        """End the session and remove what it left; twice is fine."""
        if self._closed:
            return
        self._closed = True
        await self._discard_next_jail()
        await wait_for_jails()
        await finish_in_thread(self._resources.disk.remove)
        await remove_cgroup(self._resources.cgroup)
        self._resources.on_end()

    # ── one command ───────────────────────────────────────────────────────────────────────────────

    async def _run_with_retry(
        self,
        argv: Sequence[str],
        stdin: bytes,
        timeout: float,
        *,
        output: OutputBuffer | None = None,
        cwd: str = ".",
    ) -> Result:
        if self._closed:
            raise Refused("this sandbox session is closed")
        if not argv or any("\0" in word for word in [*argv, cwd]):
            raise Refused("a command needs words, and none of them may hold a NUL byte")
        self._unfreeze_index()
        self._resources.disk.restore_permissions()
        output = output or OutputBuffer(self._resources.view.limits.output)
        until = time.monotonic() + MOMENT
        while True:
            try:
                return await self._run_in_jail(argv, stdin, timeout, output, cwd)
            except JailStartFailed:
                if time.monotonic() > until:
                    raise
            output.reset()
            await asyncio.sleep(0.05)

    async def _run_in_jail(
        self, argv: Sequence[str], stdin: bytes, timeout: float, output: OutputBuffer, cwd: str
    ) -> Result:
        """Raises NotBegun, when it may be tried again: after many short commands the kernel still
        counts processes that are gone, and the session has reached its limit of them."""
        jail = await self._take_jail()
        killed = self._cgroup.count_oom_kills() if self._cgroup else 0
        try:
            # while this one runs: 6.4 ms from command to command instead of 13
            self._prepare_next_jail()
            result = await jail.run(argv, stdin, timeout, output, cwd=cwd)
        finally:
            jail.discard()
        if self._cgroup and self._cgroup.count_oom_kills() > killed:
            return replace(result, out_of_memory=True)
        return result

    def _unfreeze_index(self) -> None:
        if not self._untouched:
            return
        self._untouched = False
        try:
            self._resources.disk.unfreeze_index()
        except OSError as error:
            raise Unavailable(f"the session's disk cannot be used: {error.strerror}") from None

    @contextlib.asynccontextmanager
    async def _open_network(self) -> AsyncIterator[list[Blocked]]:
        """Let one command out, if it may; what it was not let through to is in the list when it is
        over."""
        blocked: list[Blocked] = []
        if self._resources.proxy is None or self._resources.view.proxy_folder is None:
            yield blocked
            return
        async with self._resources.proxy.listen_for_jails():
            yield blocked
        blocked += self._resources.proxy.take_blocked()

    # ── the jail that stands ready ────────────────────────────────────────────────────────────────

    def _prepare_next_jail(self) -> None:
        if self._next_jail is None and not self._closed:
            self._next_jail = asyncio.get_running_loop().create_task(self._start_next_jail())

    async def _start_next_jail(self) -> Jail | None:
        """None when it failed: the next command tries again, and is the one to say so."""
        try:
            return await self._start_jail()
        except Unavailable:
            return None

    async def _start_jail(self) -> Jail:
        with contextlib.ExitStack() as failed:
            jail = Jail(self._resources.view, self._cgroup)
            failed.callback(jail.discard)
            await jail.wait_until_ready()
            failed.pop_all()
        return jail

    async def _take_jail(self) -> Jail:
        """The jail that stands ready, or a new one when it does not live any more."""
        task = self._next_jail
        self._next_jail = None
        jail = await task if task else None
        if jail and jail.is_alive:
            return jail
        if jail:
            jail.discard()
        return await self._start_jail()

    async def _discard_next_jail(self) -> None:
        task = self._next_jail
        self._next_jail = None
        if task:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if jail := await task:
                    jail.discard()

    # ── outputs ───────────────────────────────────────────────────────────────────────────────────

    def _write_output(self, name: str, content: bytes) -> None:
        """Put a file into the session's /tmp/outputs. A link made by the agent is never followed:
        the folder is opened as itself, the file is made new and moved into place. What the agent
        made impossible is left out."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            top = _open_descriptor(opened, self._resources.disk.host_path / "tmp", flags)
            with contextlib.suppress(FileExistsError):
                os.mkdir("outputs", 0o755, dir_fd=top)
                self._change_owner("outputs", top)
            folder = _open_descriptor(opened, "outputs", flags, dir_fd=top)
            temporary = f".{secrets.token_hex(8)}"
            new = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW,
                0o644,
                dir_fd=folder,
            )
            with open(new, "wb") as file:
                file.write(content)
            self._change_owner(temporary, folder)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _change_owner(self, name: str, folder: int) -> None:
        uid = self._resources.disk.uid
        if uid is not None:
            os.chown(name, uid, uid, dir_fd=folder, follow_symlinks=False)


def _open_descriptor(
    stack: contextlib.ExitStack, path: Path | str, flags: int, dir_fd: int | None = None
) -> int:
    fd = os.open(path, flags, dir_fd=dir_fd)
    stack.callback(os.close, fd)
    return fd


async def remove_cgroup(name: str) -> None:
    """Dead processes leave a cgroup a moment after they are gone, so this asks again for up to two
    seconds."""
    for _ in range(100):
        group = cgroups.find_cgroup(name)
        if group is None or await asyncio.to_thread(group.remove):
            return
        await asyncio.sleep(0.02)
