"""The sandbox of this machine: it creates sessions, reopens them after a crash, and probes whether
it is safe."""

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

from osiris.core.errors import LocalTimeout, Refused, Unavailable
from osiris.core.ports.sandbox import Plan, Probe, SandboxLimits, Session
from osiris.core.work import Prepared
from osiris.tools.sandbox.disks.checkout_cache import CheckoutCache
from osiris.tools.sandbox.disks.disk import (
    DEVICES,
    ETC,
    INDEX,
    TERMINALS,
    USR,
    Disk,
    finish_in_thread,
)
from osiris.tools.sandbox.disks.image_disk import HOST_USR, ImageDisk
from osiris.tools.sandbox.disks.tmpfs_disk import TmpfsDisk
from osiris.tools.sandbox.jail import cgroup as cgroups
from osiris.tools.sandbox.jail import jail_etc
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.jail_user import resolve_jail_uid
from osiris.tools.sandbox.jail.orphans import kill_orphans
from osiris.tools.sandbox.jail.process import disable_core_dumps, wait_for_jails
from osiris.tools.sandbox.network.network_access import NetworkAccess
from osiris.tools.sandbox.options import SandboxOptions
from osiris.tools.sandbox.probes import capabilities as machine
from osiris.tools.sandbox.session import (
    PLAIN_NAME,
    BubblewrapSession,
    SessionResources,
    remove_cgroup,
)
from osiris.tools.sandbox.users import SHARED, SessionUsers, read_owner, release_user
from osiris.tools.sandbox.workspace.checkout import CheckoutSpec, check_out, copy_index
from osiris.tools.sandbox.workspace.export import OBJECT_ID
from osiris.tools.sandbox.workspace.setup_cache import SetupCache

NEW: Final = "@new-"  # begins the name of a session for a set-up
PREPARED: Final = TypeAdapter(Prepared)


class BubblewrapSandbox:
    """The sandbox with bubblewrap; implements `osiris.core.ports.sandbox.Sandbox`.

    `root` holds the sessions' disks; `mirror_of` returns the path of a repository's mirror;
    `probes` are the results that another sandbox of this process has for this machine.
    """

    def __init__(
        self,
        root: Path,
        mirror_of: Callable[[str], Path],
        options: SandboxOptions | None = None,
        probes: Sequence[Probe] = (),
    ) -> None:
        self._root = root.absolute()
        self._mirror_of = mirror_of
        self._options = options or SandboxOptions()
        disable_core_dumps()
        self._uid = resolve_jail_uid()
        self._probes = probes
        self._limit_probes: Sequence[Probe] = ()
        self._probing = asyncio.Lock()
        self._setup_sessions = set[str]()
        for chain in self._options.toolchains:
            if not chain.is_absolute():
                raise Refused(f"the toolchain {chain} must be an absolute path")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._root.chmod(0o711)
            self._etc = jail_etc.prepare_etc(self._root)
            self._setups = SetupCache(self._root, self._options.cache)
        except OSError as error:
            raise Refused(
                f"the sandbox cannot use its folder {self._root}: {error.strerror}"
            ) from None
        self._checkouts = CheckoutCache(self._root, self._options.cache, uid=self._uid)
        self._network = NetworkAccess(self._root, self._options)
        self._users = SessionUsers(self._root / "@disks")

    async def create(self, name: str, plan: Plan) -> tuple[Session, bool]:
        """Return the session `name`, reopened or created by `plan`, and whether it is new. Only a
        sealed session is reopened.

        Raises Refused when this machine has no safe sandbox or the plan cannot be followed,
        NeedsOperator when its set-up fails, Unavailable when this cannot be done now.
        """
        disk = self._get_disk(name)
        weakness = await self._assert_safe()
        if await finish_in_thread(disk.find_sealed):
            self._kill_processes(name)
            spec = await self._build_jail_spec(disk, plan)
            return self._open_session(disk, spec, PREPARED.validate_python(disk.notes)), False
        self._check_plan(plan)
        await self.remove(name)
        setup = await self._setups.get(
            plan, self._cache_salt, lambda: self._create_setup_session(plan)
        )
        prepared = Prepared(weakness=weakness)
        if setup:
            prepared = Prepared(commands=setup.commands, cached=setup.cached, weakness=weakness)
        return await self._create_session(disk, plan, prepared, setup.tar if setup else None), True

    async def probe(self) -> list[Probe]:
        """Probe what this machine can do, each by doing it; takes about a second."""
        await asyncio.to_thread(kill_orphans)
        ask = partial(
            machine.run_probes,
            self._root,
            self._etc,
            weak=self._options.weak,
            bounds=self._limit_probes,
        )
        found = await asyncio.to_thread(ask)
        self._limit_probes = machine.select_held_bounds(found)
        self._probes = found if all(probe.ok for probe in found if probe.needed) else ()
        return found

    async def remove(self, name: str) -> None:
        """Remove the session `name`, whichever worker left it; does nothing when there is none."""
        disk = self._get_disk(name)
        self._kill_processes(name)
        await wait_for_jails()
        await finish_in_thread(disk.remove)
        await remove_cgroup(self._get_cgroup_name(name))
        self._network.close_network(name)

    def list_sessions(self) -> list[str]:
        """Return the names of the sessions that exist on disk, with those that a killed worker left
        of a set-up."""
        found = {entry.name for entry in os.scandir(self._root)} - self._setup_sessions
        return sorted(name for name in found if PLAIN_NAME.fullmatch(name.removeprefix(NEW)))

    # ── creating ──────────────────────────────────────────────────────────────────────────────────

    async def _create_session(
        self,
        disk: Disk,
        plan: Plan,
        prepared: Prepared,
        setup: Path | None = None,
        *,
        for_setup: bool = False,
    ) -> BubblewrapSession:
        async with contextlib.AsyncExitStack() as failed:
            failed.push_async_callback(self.remove, disk.folder.name)
            checkout = CheckoutSpec(base=plan.base, files=plan.files, setup=setup)
            if isinstance(disk, ImageDisk):
                await finish_in_thread(self._claim_user, disk)
                layer = await self._checkouts.get(
                    plan.repo, plan.trusted, self._cache_salt, partial(self._fill_checkout, plan)
                )
                await finish_in_thread(disk.create_over, layer, plan.limits)
                checkout = replace(checkout, index=layer.host_only / INDEX)
            else:
                await finish_in_thread(disk.create, plan.limits)
            spec = await self._build_jail_spec(disk, plan, for_setup=for_setup)
            if checkout.index and checkout == CheckoutSpec(base=plan.trusted, index=checkout.index):
                copy_index(checkout.index, disk)
            else:
                await self._check_out(spec, disk, checkout)
            disk.finalize(PREPARED.dump_python(prepared, mode="json"))
            session = self._open_session(disk, spec, prepared, untouched=True)
            failed.pop_all()
        return session

    async def _fill_checkout(self, plan: Plan, disk: ImageDisk) -> None:
        await finish_in_thread(self._claim_user, disk)
        await finish_in_thread(disk.create, plan.limits)
        try:
            await self._check_out(
                await self._build_jail_spec(disk, plan), disk, CheckoutSpec(base=plan.trusted)
            )
            disk.finalize({})
        finally:
            await remove_cgroup(self._get_cgroup_name(disk.folder.name))
        release_user(disk.image)

    def _claim_user(self, disk: ImageDisk) -> None:
        """Claim a user for a disk. Raises Unavailable."""
        disk.reserve_paths()
        disk.uid = self._users.claim_user(disk.image) if self._has_separate_users else SHARED

    async def _create_setup_session(self, plan: Plan) -> BubblewrapSession:
        """Create a session of the base branch with the network access of a set-up. It is never
        reopened."""
        disk = self._get_disk(f"{NEW}{secrets.token_hex(8)}")
        self._setup_sessions.add(disk.folder.name)
        plan = replace(
            plan,
            base=plan.trusted,
            files="",
            setup=None,
            hosts=plan.setup.hosts if plan.setup else (),
        )
        return await self._create_session(disk, plan, Prepared(), for_setup=True)

    async def _check_out(self, spec: JailSpec, disk: Disk, checkout: CheckoutSpec) -> None:
        try:
            await check_out(spec, disk, self._make_cgroup(disk.folder.name, spec.limits), checkout)
        except Unavailable as error:
            if "find source path" in str(error):
                raise Refused(_describe_unreachable(spec, str(error))) from error
            raise

    def _open_session(
        self, disk: Disk, spec: JailSpec, prepared: Prepared, *, untouched: bool = False
    ) -> BubblewrapSession:
        group = self._get_cgroup_name(disk.folder.name)
        ended = partial(self._forget_session, disk.folder.name)
        resources = SessionResources(
            disk,
            spec,
            self._root / "@packs",
            group,
            self._network.get_proxy(disk.folder.name),
            ended,
        )
        return BubblewrapSession(
            resources,
            self._make_cgroup(disk.folder.name, spec.limits),
            prepared,
            untouched=untouched,
        )

    def _forget_session(self, name: str) -> None:
        self._network.close_network(name)
        self._setup_sessions.discard(name)

    def _make_cgroup(self, name: str, limits: SandboxLimits) -> Cgroup | None:
        """Create a session's cgroup. Its memory limit includes the disk of an ordinary user: that
        is memory, which the kernel counts to the cgroup that writes to it."""
        if self._uid is None:
            limits = replace(limits, memory=limits.memory + limits.disk)
        return cgroups.make_cgroup(self._get_cgroup_name(name), limits)

    async def _build_jail_spec(
        self, disk: Disk, plan: Plan, *, for_setup: bool = False
    ) -> JailSpec:
        network = await self._network.open_network(
            disk.folder.name, plan.hosts, for_setup=for_setup
        )
        return JailSpec(
            etc=disk.get_private_path(ETC) or self._etc,
            usr=disk.get_private_path(USR) or HOST_USR,
            devices=disk.get_private_path(DEVICES),
            terminals=disk.get_private_path(TERMINALS),
            uid=disk.uid,
            work=disk.folder / "work",
            tmp=disk.folder / "tmp",
            home=disk.folder / "home",
            mirror=self._mirror_of(plan.repo).absolute(),
            toolchains=self._options.toolchains,
            proxy_folder=network.folder if network else None,
            environment=network.environment if network else {},
            cargo=network.cargo if network else None,
            nsenter_prefix=disk.nsenter_prefix,
            limits=plan.limits,
        )

    # ── checks ──────────────────────────────────────────────────────────────────────

    async def _assert_safe(self) -> str:
        """Raise Refused or LocalTimeout unless this machine can isolate untrusted commands. Return
        the names of the missing features that the operator accepted."""
        async with self._probing:
            found = self._probes or await self.probe()
        lacks = []
        for probe in found:
            if probe.ok:
                continue
            if probe.needed and probe.passing:
                raise LocalTimeout(
                    f"the sandbox of this machine could not be tried: {probe.name}: {probe.detail}"
                )
            if probe.needed:
                raise Refused(
                    f"there is no safe sandbox on this machine: {probe.name}: {probe.detail}."
                    f" {probe.fix}"
                )
            lacks.append(probe.name)
        return ", ".join(lacks)

    def _check_plan(self, plan: Plan) -> None:
        for commit in filter(None, (plan.base, plan.trusted, plan.files)):
            if not OBJECT_ID.fullmatch(commit):
                raise Refused(f"{commit!r} is not the id of a commit")
        if not (self._mirror_of(plan.repo) / "HEAD").is_file():
            raise Refused(f"the mirror {self._mirror_of(plan.repo)} is missing")

    def _get_disk(self, name: str) -> Disk:
        if not PLAIN_NAME.fullmatch(name.removeprefix(NEW)) or name in (".", ".."):
            raise Refused(f"{name!r} cannot name a session")
        if self._uid is None:
            return TmpfsDisk(self._root, name, uid=None, etc=self._etc)
        disk = ImageDisk(self._root, name, uid=self._uid, etc=self._etc)
        disk.uid = read_owner(disk.image)
        return disk

    @property
    def _has_separate_users(self) -> bool:
        """Return whether each session has a separate user."""
        return any(probe.name == machine.APART and probe.ok for probe in self._probes)

    @property
    def _cache_salt(self) -> str:
        """The values, besides the repository, that cached checkouts and set-ups depend on."""
        shared = () if self._uid is None or self._has_separate_users else (str(SHARED),)
        return "\0".join([self._etc.name, *shared, *map(str, self._options.toolchains)])

    def _get_cgroup_name(self, name: str) -> str:
        return f"osiris-{hashlib.sha256(str(self._root).encode()).hexdigest()[:8]}-{name}"

    def _kill_processes(self, name: str) -> None:
        """Kill what runs in the session's cgroup. A second safeguard: jails die with their
        worker."""
        if group := cgroups.find_cgroup(self._get_cgroup_name(name)):
            group.kill()


def _describe_unreachable(spec: JailSpec, words: str) -> str:
    who = f"the sandbox's user (uid {spec.uid})" if spec.uid is not None else "the sandbox"
    return (
        f"{who} cannot reach what it needs ({words}); make the folders above {spec.mirror}"
        " searchable (chmod 711)"
    )
