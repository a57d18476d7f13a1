"""The set-up of workspaces and its cache: the commands of the base branch run with network access
to the package registries, before any text of other people is in the workspace. The result is kept
for all runs with the same lock files.

The commands run in the files of the base branch: nothing that an agent wrote ever runs with this
network access. The cache keeps the files that git does not know (packages, compiled files) and the
home, as a tar that is packed and unpacked in jails; the host only stores it.
"""

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final
from weakref import WeakValueDictionary

from pydantic import TypeAdapter

from osiris.config.atomic_file import replace_file, write_atomically
from osiris.core.errors import LocalTimeout, NeedsOperator, Unavailable
from osiris.core.git_environment import EXPORTS
from osiris.core.ports.sandbox import Plan, Result, Setup
from osiris.core.sanitize import clean_text
from osiris.core.work import CommandRan
from osiris.tools.sandbox.guest.setup_leftovers import MOST, TOO_MANY
from osiris.tools.sandbox.jail.process import run_once
from osiris.tools.sandbox.session import BubblewrapSession
from osiris.tools.sandbox.workspace.failure_words import explain_kill

log = logging.getLogger(__name__)

# seconds; then a set-up is repeated, because lock files do not list everything that is installed
LIVES: Final = 7 * 86400.0
LEFT_OVER: Final = 86400.0  # seconds after which the unfinished file of a killed worker is removed
FORM: Final = "2"  # version of the tar's format; a set-up kept in another format is repeated
MOST_NAMED: Final = 10  # hosts that were refused
FILE_TOO_LARGE: Final = 128 + 25  # SIGXFSZ
# as GitHub runs the steps of its workflows
SHELL: Final = ("/bin/bash", "-e", "-o", "pipefail", "-c")
RAN: Final = TypeAdapter(tuple[CommandRan, ...])

# Git lists the files by the index of the checkout; the `.git` that untrusted commands can write to
# is not read. Only the repository's own ignore rules count, as they are in the index, not those
# that the set-up may have written: it could hide a file, which then would appear as the agent's
# work. Rule files that the set-up left between the repository's own are dropped: they would hide
# the agent's new files, or change them. See `setup_leftovers.py` for the lists.
PACK: Final = (
    f"set -euo pipefail\n{EXPORTS}\n"
    r"""
export GIT_DIR=/tmp/c.git GIT_INDEX_FILE=/tmp/c.index LC_ALL=C.UTF-8 HOME=/nonexistent
git init -q --bare --template= "$GIT_DIR"
git config core.bare false
git config core.excludesFile /dev/null
mkdir "$GIT_DIR/info" /tmp/rules
echo /base.git/objects >"$GIT_DIR/objects/info/alternates"
cp -p /base.index "$GIT_INDEX_FILE"
export GIT_WORK_TREE=/workspace
cd /workspace
git ls-files -z --others --directory --no-empty-directory >/tmp/new
git ls-files -z | { grep -zE '(^|/)\.gitignore$' || true; } |
    git checkout-index -z --stdin --prefix=/tmp/rules/
sed -z -e 's,/$,/x,' -e 's,^,./,' /tmp/new >/tmp/asked
(cd /tmp/rules && GIT_WORK_TREE=. git check-ignore -z --no-index --stdin) \
    </tmp/asked >/tmp/ignored || [ $? = 1 ]
/usr/bin/python3 -I -S /etc/osiris/setup_leftovers note
code=0
tar -C / --null --verbatim-files-from --files-from=/tmp/list --ignore-failed-read -cf - \
    2>/tmp/said || code=$?
[ $code = 0 ] || { tail -n 3 /tmp/said >&2; exit $code; }
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedSetup:
    """The result of a set-up: its files as a tar, the commands, and whether it is from the
    cache."""

    tar: Path
    commands: tuple[CommandRan, ...]
    cached: bool = False


class SetupCache:
    """The results of set-ups on this machine; those used longest ago are evicted."""

    def __init__(self, root: Path, most: int) -> None:
        """`most` is the number of bytes that they may take together."""
        self._root = root / "@setups"
        self._max_bytes = most
        self._root.mkdir(mode=0o711, exist_ok=True)
        # each exists as long as a caller holds it
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    async def get(
        self, plan: Plan, salt: str, make: Callable[[], Awaitable[BubblewrapSession]]
    ) -> CachedSetup | None:
        """Return the result of the set-up of `plan`; None without a set-up. When it is not cached,
        the set-up runs in a session from `make`.

        `salt` changes with this machine. Raises NeedsOperator when a command fails, Refused, and
        Unavailable.
        """
        if plan.setup is None or not plan.setup.commands:
            return None
        key = _compute_key(plan.repo, plan.setup, salt)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if found := await asyncio.to_thread(self._find_cached, key):
                return found
            session = await make()
            try:
                return await self._run_setup(key, plan.setup, session)
            finally:
                await session.destroy()

    def _find_cached(self, key: str) -> CachedSetup | None:
        tar = self._root / f"{key}.tar"
        notes = self._root / f"{key}.json"
        try:
            made = notes.stat().st_mtime
            commands = RAN.validate_json(notes.read_bytes())
            os.utime(tar)
        except (OSError, ValueError):
            return None
        return (
            CachedSetup(tar=tar, commands=commands, cached=True)
            if time.time() - made < LIVES
            else None
        )

    async def _run_setup(self, key: str, setup: Setup, session: BubblewrapSession) -> CachedSetup:
        commands = []
        began = time.monotonic()
        for command in setup.commands:
            left = session.limits.setup_seconds - (time.monotonic() - began)
            session.forget_unreachable()
            result = await session.run([*SHELL, command], timeout=max(1.0, left))
            ran = CommandRan(
                command=command,
                exit_code=result.exit_code,
                seconds=round(result.seconds, 3),
                blocked=result.blocked,
            )
            log.info(
                "set-up: %r ended with %s after %.1f s", command[:200], ran.exit_code, ran.seconds
            )
            if result.exit_code != 0:
                shortage = session.describe_shortage()
                raise _build_failure(
                    ran, result, reached=not session.unreachable, shortage=shortage
                )
            commands.append(ran)
        tar = self._root / f"{key}.tar"
        for old in self._root.glob(".*.tar.*"):  # left by a killed worker
            if time.time() - old.stat().st_mtime > LEFT_OVER:
                old.unlink(missing_ok=True)
        with replace_file(tar, mode=0o644) as file:
            await _pack_leftovers(session, file)
            await asyncio.to_thread(os.fsync, file.fileno())  # it may be large
        notes = RAN.dump_json(tuple(commands)).decode()
        await asyncio.to_thread(write_atomically, tar.with_suffix(".json"), notes)
        self._evict_oldest(tar)
        return CachedSetup(tar=tar, commands=tuple(commands))

    def _evict_oldest(self, newest: Path) -> None:
        tars = sorted(self._root.glob("*.tar"), key=lambda tar: tar.stat().st_mtime)
        total = sum(tar.stat().st_size for tar in tars)
        for tar in tars:
            if total > self._max_bytes and tar != newest:
                total -= tar.stat().st_size
                tar.with_suffix(".json").unlink(missing_ok=True)
                tar.unlink()


def _compute_key(repo: str, setup: Setup, salt: str) -> str:
    words = [FORM, repo, setup.key, *setup.commands, "", *setup.hosts, "", salt]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]


async def _pack_leftovers(session: BubblewrapSession, file: IO[bytes]) -> None:
    limits = session.limits
    spec = session.build_read_only_spec(home=True)
    spec = replace(spec, limits=replace(limits, file_size=limits.disk))
    argv = ["/bin/bash", "-c", PACK]
    result = await run_once(
        spec, argv, limits.open_seconds, cgroup=session.cgroup, stdout=file.fileno()
    )
    if result.timed_out:
        raise LocalTimeout("packing the files of the set-up took too long")
    if result.exit_code == TOO_MANY:
        raise NeedsOperator(
            f"the set-up leaves more than {MOST:,} files that the repository's .gitignore does not"
            f" cover, such as {_format_last_lines(result)}; let .gitignore cover them"
        )
    if result.exit_code is None:
        raise LocalTimeout(f"packing the files of the set-up {explain_kill(result, limits)}")
    if result.exit_code == FILE_TOO_LARGE:
        raise NeedsOperator(f"the files of the set-up are larger than {limits.disk >> 20} MiB")
    if result.exit_code != 0:
        raise NeedsOperator(
            f"the files of the set-up could not be packed: {_format_last_lines(result)}"
        )


def _build_failure(
    ran: CommandRan, result: Result, *, reached: bool, shortage: str
) -> NeedsOperator | Unavailable:
    """Return the error of a failed command: NeedsOperator when a person must correct it,
    Unavailable when a registry could not be reached."""
    command = " ".join(clean_text(ran.command).split())[:200]
    how = "took too long" if result.timed_out else f"ended with exit code {ran.exit_code}"
    told = f"the set-up command `{command}` {how}: {_format_last_lines(result)}"
    if shortage:
        return NeedsOperator(f"{told}; {shortage}; set OSIRIS_SANDBOX_DISK_GIB higher")
    if not reached:
        return Unavailable(f"{told}; a package registry could not be reached")
    wanted = ", ".join(f"{b.host}:{b.port}" for b in ran.blocked[:MOST_NAMED])
    if len(ran.blocked) > MOST_NAMED:
        wanted += f" and {len(ran.blocked) - MOST_NAMED} more"
    return NeedsOperator(
        f"{told}; blocked: {wanted}; `network.setup` in `.github/osiris.yml` lets it out"
        if wanted
        else told
    )


def _format_last_lines(result: Result) -> str:
    lines = [line.strip() for line in clean_text(result.output).splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-400:] or "it said nothing"
