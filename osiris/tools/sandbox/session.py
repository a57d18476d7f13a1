"""A session: one workspace in the sandbox, in which commands run one by one, and the export of its
work."""

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
from osiris.core.ports.sandbox import Export, Result, SandboxLimits
from osiris.core.work import Blocked, Prepared
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

START_RETRY: Final = 2.0  # seconds for which a command that could not start is tried again
PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class SessionResources:
    """The resources of a session: its disk, the specification of its jails, the folder for packs,
    the name of its cgroup, the egress proxy if its commands have network access, and the callback
    for its end."""

    disk: Disk
    spec: JailSpec
    packs: Path
    cgroup: str
    proxy: ProxyProcess | None = None
    on_end: Callable[[], None] = lambda: None


class BubblewrapSession:
    """A session; implements `osiris.core.ports.sandbox.Session`. It prepares the jail of the next
    command in advance, so that the set-up (6 ms) happens while the model works."""

    def __init__(
        self,
        resources: SessionResources,
        cgroup: Cgroup | None,
        prepared: Prepared,
        *,
        untouched: bool = False,
    ) -> None:
        self._resources = resources
        self._cgroup = cgroup
        self._next_jail: asyncio.Task[Jail | None] | None = None
        self._closed = False
        self._untouched = untouched
        self._prepared = prepared
        self._files = JailFiles(self._run_with_retry)
        if resources.proxy is not None:
            resources.proxy.start(resources.disk.uid)  # it is ready only after a moment

    @property
    def files(self) -> JailFiles:
        return self._files

    @property
    def prepared(self) -> Prepared:
        return self._prepared

    @property
    def limits(self) -> SandboxLimits:
        return self._resources.spec.limits

    @property
    def cgroup(self) -> Cgroup | None:
        return self._cgroup

    def describe_shortage(self) -> str:
        """Return what the session's disk has no room for; "" when it has room."""
        return self._resources.disk.describe_shortage()

    @property
    def unreachable(self) -> bool:
        """Return whether a command tried to reach an allowed host that did not answer."""
        return self._resources.proxy is not None and self._resources.proxy.unreachable

    def forget_unreachable(self) -> None:
        """Reset `unreachable`, so that it then describes the next command only."""
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
        """Run a command in a jail, in folder `cwd` of /workspace, for at most `timeout` seconds;
        every process that it started dies with it.

        Raises Unavailable when the sandbox itself failed, Refused when the session is closed.
        """
        if keep_as and (not PLAIN_NAME.fullmatch(keep_as) or keep_as.startswith(".")):
            raise Refused(f"{keep_as!r} cannot name an output")
        limits = self._resources.spec.limits
        output = OutputBuffer(limits.output, limits.kept_output if keep_as else 0)
        async with self._open_network() as blocked:
            words = [PYTHON, "-I", "-S", INSIDE_BRIDGE, *argv] if self._resources.proxy else argv
            result = await self._run_with_retry(words, stdin, timeout, output=output, cwd=cwd)
        if keep_as:
            self._write_output(keep_as, bytes(output.prefix))
        return replace(result, blocked=tuple(blocked))

    async def export(self, base: str) -> Export:
        """Export the workspace as a pack against commit `base`, from a new read-only jail.

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
        """Return the specification of a jail that exports something: it sees the workspace (and the
        home), and the trusted index."""
        resources = self._resources
        keep = self._resources.disk.folder / "keep"
        extra = [(keep / INDEX, "/base.index", False)]
        if (self._resources.disk.host_only / LEFT).is_file():
            extra.append((keep / OWN, "/base.own", False))
            extra.append((keep / LEFT, "/base.left", False))
        if home and resources.spec.home:
            extra.append((resources.spec.home, "/home/agent", False))
        return replace(
            resources.spec,
            work_writable=False,
            tmp=None,
            home=None,
            toolchains=(),
            proxy_folder=None,
            extra=tuple(extra),
            limits=replace(resources.spec.limits, file_size=resources.spec.limits.pack),
        )

    async def seal(self) -> None:
        """Seal the session: from now on it is reopened by its name. May be called twice."""
        self._resources.disk.seal()

    async def destroy(self) -> None:
        """End the session and remove all that it left; may be called twice."""
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
        output = output or OutputBuffer(self._resources.spec.limits.output)
        until = time.monotonic() + START_RETRY
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
        """Run a command in the prepared jail, or in a new one.

        Raises JailStartFailed when it may be tried again: after many short commands the kernel
        still counts ended processes, and the session has reached its limit of processes.
        """
        jail = await self._take_jail()
        killed = self._cgroup.count_oom_kills() if self._cgroup else 0
        try:
            # prepared while this one runs: 6.4 ms from command to command instead of 13
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
        """Give one command its network access, if it has any. After the block the list contains the
        refused connections."""
        blocked: list[Blocked] = []
        if self._resources.proxy is None or self._resources.spec.proxy_folder is None:
            yield blocked
            return
        async with self._resources.proxy.listen_for_jails():
            yield blocked
        blocked += self._resources.proxy.take_blocked()

    # ── the prepared jail ────────────────────────────────────────────────────────────────

    def _prepare_next_jail(self) -> None:
        if self._next_jail is None and not self._closed:
            self._next_jail = asyncio.get_running_loop().create_task(self._start_next_jail())

    async def _start_next_jail(self) -> Jail | None:
        """Return the next jail; None when it failed: the next command tries again and reports the
        failure."""
        try:
            return await self._start_jail()
        except Unavailable:
            return None

    async def _start_jail(self) -> Jail:
        with contextlib.ExitStack() as failed:
            jail = Jail(self._resources.spec, self._cgroup)
            failed.callback(jail.discard)
            await jail.wait_until_ready()
            failed.pop_all()
        return jail

    async def _take_jail(self) -> Jail:
        """Return the prepared jail, or a new one when it has ended."""
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
        """Write a file into the session's /tmp/outputs.

        A link made by the agent is never followed: the folder is opened without following links,
        and a new file is created and moved into place. When the agent has made this impossible,
        the file is left out.
        """
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
    """Remove a cgroup. The kernel counts dead processes for a moment, so this retries for up to two
    seconds."""
    for _ in range(100):
        group = cgroups.find_cgroup(name)
        if group is None or await asyncio.to_thread(group.remove):
            return
        await asyncio.sleep(0.02)
