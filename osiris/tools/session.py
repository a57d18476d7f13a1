"""One workspace in one sandbox: commands run in it one by one, and its work is taken out of it."""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osiris.errors import Refused, TooSlow, Unavailable
from osiris.ports import Export, Result
from osiris.tools import cgroup as cgroups
from osiris.tools.bubblewrap import Jail
from osiris.tools.cgroup import Cgroup
from osiris.tools.collect import OBJECT_ID, collect
from osiris.tools.disk import Disk
from osiris.tools.output import Output
from osiris.tools.view import View

KILLED = 128 + 9  # SIGKILL
PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")

# A clone and not a worktree: a worktree needs a writable mirror, where a planted hook ran as root outside.
CHECKOUT = r"""
git -C /base.git rev-parse -q --git-dir >/dev/null || exit 64
git -C /base.git cat-file -e "$1^{commit}" 2>/dev/null || exit 65
set -e
git clone -q --shared --no-checkout --template= /base.git /workspace
said=$(git checkout -q -b work "$1" -- 2>&1)
case "$said" in *error:*) echo "$said"; exit 66 ;; esac  # on a full disk git says so, and succeeds
cp -p .git/index /keep/index
[ -z "$2" ] || git restore --quiet --source "$2" --worktree --no-overlay -- .
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a session stands on: its disk, the view its jails have, and the name of its cgroup."""

    disk: Disk
    view: View
    packs: Path
    cgroup: str
    uid: int | None


class OpenSession:
    """Implements `ports.Session`. One jail always stands ready for the next command, so that setting it up (6 ms, and
    up to 22 after an idle moment) falls into the time in which the model thinks."""

    def __init__(self, ground: Ground, cgroup: Cgroup | None) -> None:
        self._ground = ground
        self._cgroup = cgroup
        self._next: asyncio.Task[Jail | None] | None = None
        self._closed = False
        self._untouched = False

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 120, keep_as: str = "") -> Result:
        """Run a command in the jail, at /workspace, for at most `timeout` seconds; everything it started dies with it.

        Raises Unavailable when the sandbox itself failed, Refused when the session is closed.
        """
        if self._closed:
            raise Refused("this sandbox session is closed")
        if not argv or any("\0" in word for word in argv):
            raise Refused("a command needs words, and none of them may hold a NUL byte")
        if keep_as and (not PLAIN_NAME.fullmatch(keep_as) or keep_as.startswith(".")):
            raise Refused(f"{keep_as!r} cannot name an output")
        limits = self._ground.view.limits
        output = Output(limits.output, limits.kept_output if keep_as else 0)
        if self._untouched:
            self._untouched = False
            self._ground.disk.settle()
        jail = await self._jail()
        killed = self._cgroup.out_of_memory() if self._cgroup else 0
        try:
            self._prepare()  # while this one runs: 6.4 ms from command to command instead of 13
            result = await jail.run(argv, stdin, timeout, output)
        finally:
            jail.discard()
        if keep_as:
            self._keep(keep_as, bytes(output.kept))
        if self._cgroup and self._cgroup.out_of_memory() > killed:
            return replace(result, out_of_memory=True)
        return result

    async def export(self, base: str) -> Export:
        """Take the workspace as a pack against commit `base`, from a fresh read-only jail.

        Raises Refused or Unavailable.
        """
        if self._closed:
            raise Refused("this sandbox session is closed")
        if not OBJECT_ID.fullmatch(base):
            raise Refused(f"{base!r} is not the id of a commit")
        ground = self._ground
        ground.packs.mkdir(mode=0o700, exist_ok=True)
        view = replace(
            ground.view,
            work_writable=False,
            tmp=None,
            home=None,
            toolchains=(),
            extra=((ground.disk.keep / "index", "/base.index", False),),
            limits=replace(ground.view.limits, file_size=ground.view.limits.pack),
        )
        return await collect(view, base, packs=ground.packs, cgroup=self._cgroup)

    async def seal(self) -> None:
        """From now on the session is found again by its name. Sealing twice is fine."""
        self._ground.disk.seal()

    async def close(self) -> None:
        """End the session and remove what it left; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        await self._stand_down()
        await asyncio.to_thread(self._ground.disk.remove)
        await remove_cgroup(self._ground.cgroup)

    async def check_out(self, base: str, files: str = "") -> None:
        """Fill a new session, with the files of commit `files` if that is given. Raises Refused or Unavailable."""
        ground = self._ground
        view = replace(ground.view, extra=((ground.disk.keep, "/keep", True),), toolchains=())
        jail = Jail(view)
        try:
            await jail.ready(self._cgroup)
            argv = ["/bin/bash", "-c", CHECKOUT, "checkout", base, files]
            result = await jail.run(argv, b"", view.limits.open_seconds, Output(8192))
        finally:
            jail.discard()
        _checked_out(result, ground.view, base)
        if os.listdir(ground.disk.keep) != ["index"] or not _is_plain_file(ground.disk.keep / "index"):
            raise Refused("the checkout left no index, or more than that")
        ground.disk.close()
        self._untouched = not files  # else what differs may have the index's own second
        self._prepare()

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
            jail = Jail(self._ground.view)
            failed.callback(jail.discard)
            await jail.ready(self._cgroup)
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

    def _keep(self, name: str, content: bytes) -> None:
        """Put a file into the session's /tmp/outputs. A link made by the agent is never followed: the folder is opened
        as itself, the file is made new and moved into place. What the agent made impossible is left out."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            top = _opened(opened, self._ground.disk.folder / "tmp", flags)
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
        uid = self._ground.uid
        if uid is not None:
            os.chown(name, uid, uid, dir_fd=folder, follow_symlinks=False)


def _opened(stack: contextlib.ExitStack, path: Path | str, flags: int, dir_fd: int | None = None) -> int:
    fd = os.open(path, flags, dir_fd=dir_fd)
    stack.callback(os.close, fd)
    return fd


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _checked_out(result: Result, view: View, base: str) -> None:
    words = os.fsdecode(result.output).strip()[-300:]
    if result.exit_code == 0:
        return
    if result.timed_out:
        raise TooSlow(f"checking the repository out took longer than {view.limits.open_seconds:g} seconds")
    if result.exit_code is None or result.exit_code == KILLED:
        raise TooSlow("checking the repository out was cut off; this machine may be short of memory")
    if result.exit_code == 64:
        raise Refused(f"the mirror {view.mirror} is not a repository that git can read: {words}")
    if result.exit_code == 65:
        raise Refused(f"the base commit {base} is not in the mirror")
    if result.exit_code == 66 or "No space left" in words:
        raise Refused(f"the repository does not fit on the session's disk of {view.limits.disk >> 20} MiB")
    raise Refused(f"the repository could not be checked out: {words}")


async def remove_cgroup(name: str) -> None:
    """Dead processes leave a cgroup a moment after they are gone, so this asks again for up to two seconds."""
    for _ in range(100):
        group = cgroups.find(name)
        if group is None or await asyncio.to_thread(group.remove):
            return
        await asyncio.sleep(0.02)
