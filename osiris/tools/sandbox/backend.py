"""The sandbox of this machine: makes sessions, finds them again after a crash, and says whether it is safe."""

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from osiris.core.errors import Refused, TooSlow, Unavailable
from osiris.core.events import Prepared
from osiris.core.ports.sandbox import Limits, Plan, Probe, Session
from osiris.tools.sandbox.disks.checkout_cache import Layers
from osiris.tools.sandbox.disks.disk import DEVICES, ETC, INDEX, TERMINALS, USR, Disk, finish_in_thread
from osiris.tools.sandbox.disks.image_disk import HOST_USR, ImageDisk
from osiris.tools.sandbox.disks.tmpfs_disk import HeldDisk
from osiris.tools.sandbox.jail import cgroup as cgroups
from osiris.tools.sandbox.jail import jail_etc
from osiris.tools.sandbox.jail.bwrap_arguments import View
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.orphans import end_orphans
from osiris.tools.sandbox.jail.process import dropped_uid, leave_no_cores, wait_for_ending
from osiris.tools.sandbox.network.network_access import Ways
from osiris.tools.sandbox.options import Options
from osiris.tools.sandbox.probes import capabilities as machine
from osiris.tools.sandbox.session import PLAIN_NAME, Ground, OpenSession, remove_cgroup
from osiris.tools.sandbox.users import SHARED, Users, owner, release_user
from osiris.tools.sandbox.workspace.checkout import Filling, check_out, copy_index
from osiris.tools.sandbox.workspace.export import OBJECT_ID
from osiris.tools.sandbox.workspace.setup_cache import Setups

NEW: Final = "@new-"  # of a session for a set-up
PREPARED: Final = TypeAdapter(Prepared)


class Bubblewrap:
    """Implements `sandboxing.Sandbox` with bubblewrap. `root` holds the sessions' disks; `mirror_of` says where the
    mirror of a repository is; `probes` are what another one of this process has found out about this machine."""

    def __init__(
        self,
        root: Path,
        mirror_of: Callable[[str], Path],
        options: Options | None = None,
        probes: Sequence[Probe] = (),
    ) -> None:
        self._root, self._mirror_of, self._options = root.absolute(), mirror_of, options or Options()
        leave_no_cores()
        self._uid = dropped_uid()
        self._probed = probes
        self._bounds: Sequence[Probe] = ()
        self._probing = asyncio.Lock()
        self._for_setups = set[str]()
        for chain in self._options.toolchains:
            if not chain.is_absolute():
                raise Refused(f"the toolchain {chain} must be an absolute path")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._root.chmod(0o711)
            self._etc = jail_etc.prepare(self._root)
            self._setups = Setups(self._root, self._options.cache)
        except OSError as error:
            raise Refused(f"the sandbox cannot use its folder {self._root}: {error.strerror}") from None
        self._layers = Layers(self._root, self._options.cache, uid=self._uid)
        self._ways = Ways(self._root, self._options)
        self._users = Users(self._root / "@disks")

    async def create(self, name: str, plan: Plan) -> tuple[Session, bool]:
        """The session `name`, found again or made new as `plan` says; and whether it is new. It is found once it was
        sealed.

        Raises Refused when this machine has no safe sandbox, or the plan cannot be followed, Mendable when its set-up
        fails, Unavailable when this cannot be done now.
        """
        disk = self._disk(name)
        weakness = await self._insist()
        if await finish_in_thread(disk.find):
            self._end_processes(name)
            view = await self._view(disk, plan)
            return self._session(disk, view, PREPARED.validate_python(disk.notes)), False
        self._check(plan)
        await self.remove(name)
        setup = await self._setups.get(plan, self._salt, lambda: self._for_setup(plan))
        prepared = Prepared(weakness=weakness)
        if setup:
            prepared = Prepared(commands=setup.commands, cached=setup.cached, weakness=weakness)
        return await self._make(disk, plan, prepared, setup.tar if setup else None), True

    async def probe(self) -> list[Probe]:
        """What this machine can do, each found out by doing it; takes about a second."""
        await asyncio.to_thread(end_orphans)
        ask = partial(machine.run, self._root, self._etc, weak=self._options.weak, bounds=self._bounds)
        found = await asyncio.to_thread(ask)
        self._bounds = machine.bounds_that_hold(found)
        self._probed = found if all(probe.ok for probe in found if probe.needed) else ()
        return found

    async def remove(self, name: str) -> None:
        """Throw the session `name` away, whoever left it; fine when there is none."""
        disk = self._disk(name)
        self._end_processes(name)
        await wait_for_ending()
        await finish_in_thread(disk.remove)
        await remove_cgroup(self._group(name))
        self._ways.forget(name)

    def names(self) -> list[str]:
        """The sessions that exist on disk, and what a killed worker left of one that was made for a set-up."""
        found = {entry.name for entry in os.scandir(self._root)} - self._for_setups
        return sorted(name for name in found if PLAIN_NAME.fullmatch(name.removeprefix(NEW)))

    # ── making ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _make(
        self, disk: Disk, plan: Plan, prepared: Prepared, setup: Path | None = None, *, for_setup: bool = False
    ) -> OpenSession:
        async with contextlib.AsyncExitStack() as failed:
            failed.push_async_callback(self.remove, disk.folder.name)
            filling = Filling(base=plan.base, files=plan.files, setup=setup)
            if isinstance(disk, ImageDisk):
                await finish_in_thread(self._claim_user, disk)
                layer = await self._layers.get(plan.repo, plan.trusted, self._salt, partial(self._fill_layer, plan))
                await finish_in_thread(disk.make_over, layer, plan.limits)
                filling = replace(filling, index=layer.keep / INDEX)
            else:
                await finish_in_thread(disk.make, plan.limits)
            view = await self._view(disk, plan, for_setup=for_setup)
            if filling.index and filling == Filling(base=plan.trusted, index=filling.index):
                copy_index(filling.index, disk)
            else:
                await self._check_out(view, disk, filling)
            disk.close(PREPARED.dump_python(prepared, mode="json"))
            session = self._session(disk, view, prepared, untouched=not plan.files)
            failed.pop_all()
        return session

    async def _fill_layer(self, plan: Plan, disk: ImageDisk) -> None:
        await finish_in_thread(self._claim_user, disk)
        await finish_in_thread(disk.make, plan.limits)
        try:
            await self._check_out(await self._view(disk, plan), disk, Filling(base=plan.trusted))
            disk.close({})
        finally:
            await remove_cgroup(self._group(disk.folder.name))
        release_user(disk.image)

    def _claim_user(self, disk: ImageDisk) -> None:
        """Raises Unavailable."""
        disk.reserve()
        disk.uid = self._users.claim(disk.image) if self._apart else SHARED

    async def _for_setup(self, plan: Plan) -> OpenSession:
        """A session of the base branch, with the way out of a set-up, that nobody finds again."""
        disk = self._disk(f"{NEW}{secrets.token_hex(8)}")
        self._for_setups.add(disk.folder.name)
        plan = replace(plan, base=plan.trusted, files="", setup=None, hosts=plan.setup.hosts if plan.setup else ())
        return await self._make(disk, plan, Prepared(), for_setup=True)

    async def _check_out(self, view: View, disk: Disk, filling: Filling) -> None:
        try:
            await check_out(view, disk, self._cgroup(disk.folder.name, view.limits), filling)
        except Unavailable as error:
            if "find source path" in str(error):
                raise Refused(_unreachable(view, str(error))) from error
            raise

    def _session(self, disk: Disk, view: View, prepared: Prepared, *, untouched: bool = False) -> OpenSession:
        group = self._group(disk.folder.name)
        ended = partial(self._ended, disk.folder.name)
        ground = Ground(disk, view, self._root / "@packs", group, self._ways.egress(disk.folder.name), ended)
        return OpenSession(ground, self._cgroup(disk.folder.name, view.limits), prepared, untouched=untouched)

    def _ended(self, name: str) -> None:
        self._ways.forget(name)
        self._for_setups.discard(name)

    def _cgroup(self, name: str, limits: Limits) -> Cgroup | None:
        """An ordinary user's disk is memory, which the kernel counts to those who write there."""
        if self._uid is None:
            limits = replace(limits, memory=limits.memory + limits.disk)
        return cgroups.make(self._group(name), limits)

    async def _view(self, disk: Disk, plan: Plan, *, for_setup: bool = False) -> View:
        way = await self._ways.open(disk.folder.name, plan.hosts, for_setup=for_setup)
        return View(
            etc=disk.own(ETC) or self._etc,
            usr=disk.own(USR) or HOST_USR,
            devices=disk.own(DEVICES),
            terminals=disk.own(TERMINALS),
            uid=disk.uid,
            work=disk.folder / "work",
            tmp=disk.folder / "tmp",
            home=disk.folder / "home",
            mirror=self._mirror_of(plan.repo).absolute(),
            toolchains=self._options.toolchains,
            way_out=way.folder if way else None,
            environment=way.environment if way else {},
            cargo=way.cargo if way else None,
            enter=disk.enter,
            limits=plan.limits,
        )

    # ── what must hold first ──────────────────────────────────────────────────────────────────────────────────────

    async def _insist(self) -> str:
        """Fail closed: no commands of strangers on a machine that cannot hold them. What is missing that the operator
        goes without."""
        async with self._probing:
            found = self._probed or await self.probe()
        lacks = []
        for probe in found:
            if probe.ok:
                continue
            if probe.needed and probe.passing:
                raise TooSlow(f"the sandbox of this machine could not be tried: {probe.name}: {probe.detail}")
            if probe.needed:
                raise Refused(f"there is no safe sandbox on this machine: {probe.name}: {probe.detail}. {probe.fix}")
            lacks.append(probe.name)
        return ", ".join(lacks)

    def _check(self, plan: Plan) -> None:
        for commit in filter(None, (plan.base, plan.trusted, plan.files)):
            if not OBJECT_ID.fullmatch(commit):
                raise Refused(f"{commit!r} is not the id of a commit")
        if not (self._mirror_of(plan.repo) / "HEAD").is_file():
            raise Refused(f"the mirror {self._mirror_of(plan.repo)} is missing")

    def _disk(self, name: str) -> Disk:
        if not PLAIN_NAME.fullmatch(name.removeprefix(NEW)) or name in (".", ".."):
            raise Refused(f"{name!r} cannot name a session")
        if self._uid is None:
            return HeldDisk(self._root, name, uid=None, etc=self._etc)
        disk = ImageDisk(self._root, name, uid=self._uid, etc=self._etc)
        disk.uid = owner(disk.image)
        return disk

    @property
    def _apart(self) -> bool:
        """Whether each session has a user of its own."""
        return any(probe.name == machine.APART and probe.ok for probe in self._probed)

    @property
    def _salt(self) -> str:
        """What kept checkouts and set-ups depend on besides the repository."""
        shared = () if self._uid is None or self._apart else (str(SHARED),)
        return "\0".join([self._etc.name, *shared, *map(str, self._options.toolchains)])

    def _group(self, name: str) -> str:
        return f"osiris-{hashlib.sha256(str(self._root).encode()).hexdigest()[:8]}-{name}"

    def _end_processes(self, name: str) -> None:
        """The second line: jails die with their worker."""
        if group := cgroups.find(self._group(name)):
            group.kill()


def _unreachable(view: View, words: str) -> str:
    who = f"the sandbox's user (uid {view.uid})" if view.uid is not None else "the sandbox"
    return f"{who} cannot reach what it needs ({words}); make the folders above {view.mirror} searchable (chmod 711)"
