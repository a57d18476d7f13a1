"""The sandbox of this machine: opens sessions, finds them again after a crash, and says whether it is safe."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from osiris.errors import Refused, TooSlow, Unavailable
from osiris.ports import Probe, Session
from osiris.tools import cgroup as cgroups
from osiris.tools import etc, probes
from osiris.tools.bubblewrap import dropped_uid
from osiris.tools.collect import OBJECT_ID
from osiris.tools.disk import Disk
from osiris.tools.limits import Limits
from osiris.tools.session import PLAIN_NAME, Ground, OpenSession, remove_cgroup
from osiris.tools.view import View

__all__ = ["Bubblewrap", "Limits"]


class Bubblewrap:
    """Implements `ports.Sandbox` with bubblewrap. `root` holds the sessions' disks; `toolchains` are folders of this
    machine that jails see read-only at the same place, with their `bin` in front of PATH."""

    def __init__(self, root: Path, *, toolchains: Sequence[Path] = (), limits: Limits | None = None) -> None:
        self._root = root.absolute()
        self._toolchains = tuple(toolchains)
        self._limits = limits or Limits()
        self._uid = dropped_uid()
        self._good: list[Probe] = []
        for chain in self._toolchains:
            if not chain.is_absolute():
                raise Refused(f"the toolchain {chain} must be an absolute path")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._root.chmod(0o711)
            self._etc = etc.prepare(self._root)
        except OSError as error:
            raise Refused(f"the sandbox cannot use its folder {self._root}: {error.strerror}") from None

    async def open(self, name: str, *, mirror: Path, base: str, files: str = "") -> tuple[Session, bool]:
        """The session `name`, found again or made new with a clone of `mirror` at commit `base`; and whether it is new.
        It is found once it was sealed.

        The files of a new one are those of commit `files`, if it is given, as changes on top of `base`. Raises Refused
        when this machine has no safe sandbox, or the mirror or the commit cannot be used, Unavailable when it was too
        slow.
        """
        disk = self._disk(name)
        await self._insist()
        found = await asyncio.to_thread(disk.find)
        if found:
            self._end_processes(name)
            return self._session(name, disk, mirror), False
        for commit in filter(None, (base, files)):
            if not OBJECT_ID.fullmatch(commit):
                raise Refused(f"{commit!r} is not the id of a commit")
        if not (mirror / "HEAD").is_file():
            raise Refused(f"the mirror {mirror} is missing")
        await self.remove(name)
        return await self._make(name, disk, mirror, (base, files)), True

    async def probe(self) -> list[Probe]:
        """What this machine can do, each found out by doing it; takes a few hundred milliseconds at most."""
        found = await asyncio.to_thread(probes.run, self._root, self._etc, self._limits)
        if all(probe.ok for probe in found if probe.needed):
            self._good = found
        return found

    async def remove(self, name: str) -> None:
        """Throw the session `name` away, whoever left it; fine when there is none."""
        disk = self._disk(name)
        self._end_processes(name)
        await asyncio.to_thread(disk.remove)
        await remove_cgroup(self._group(name))

    def names(self) -> list[str]:
        """The sessions that exist on disk."""
        return sorted(entry.name for entry in os.scandir(self._root) if PLAIN_NAME.fullmatch(entry.name))

    async def _make(self, name: str, disk: Disk, mirror: Path, commits: tuple[str, str]) -> OpenSession:
        bounded = any(probe.name == probes.BOUNDED_DISK and probe.ok for probe in self._good)
        async with contextlib.AsyncExitStack() as failed:
            failed.push_async_callback(self.remove, name)
            await asyncio.to_thread(disk.make, self._limits, bounded=bounded)
            session = self._session(name, disk, mirror)
            try:
                await session.check_out(*commits)
            except Unavailable as error:
                if "find source path" in str(error):
                    raise Refused(self._unreachable(mirror, str(error))) from error
                raise
            failed.pop_all()
        return session

    def _session(self, name: str, disk: Disk, mirror: Path) -> OpenSession:
        view = View(
            etc=self._etc,
            work=disk.folder / "work",
            tmp=disk.folder / "tmp",
            home=disk.folder / "home",
            mirror=mirror.absolute(),
            toolchains=self._toolchains,
            limits=self._limits,
        )
        ground = Ground(disk, view, self._root / "@packs", self._group(name), self._uid)
        return OpenSession(ground, cgroups.make(self._group(name), self._limits))

    async def _insist(self) -> None:
        """Fail closed: no commands of strangers on a machine that cannot hold them."""
        for probe in self._good or await self.probe():
            if not probe.needed or probe.ok:
                continue
            if probe.passing:
                raise TooSlow(f"the sandbox of this machine could not be tried: {probe.name}: {probe.detail}")
            raise Refused(f"there is no safe sandbox on this machine: {probe.name}: {probe.detail}. {probe.fix}")

    def _disk(self, name: str) -> Disk:
        if not PLAIN_NAME.fullmatch(name) or name in (".", ".."):
            raise Refused(f"{name!r} cannot name a session")
        return Disk(self._root, name, uid=self._uid)

    def _group(self, name: str) -> str:
        return f"osiris-{hashlib.sha256(str(self._root).encode()).hexdigest()[:8]}-{name}"

    def _end_processes(self, name: str) -> None:
        """The second line: jails die with their worker, but one that was just starting may have missed it."""
        if group := cgroups.find(self._group(name)):
            group.kill()

    def _unreachable(self, mirror: Path, words: str) -> str:
        who = f"the sandbox's user (uid {self._uid})" if self._uid is not None else "the sandbox"
        return f"{who} cannot reach what it needs ({words}); make the folders above {mirror} searchable (chmod 711)"
