"""Getting workspaces ready: the commands of the base branch, with a way out to the package
registries, before anybody else's words are near. What comes of it is kept for all runs whose lock
files are the same.

The commands run in the files of the base branch: nothing that an agent wrote ever runs with this
way out. Kept is what git does not know (packages, compiled things) and the home, as a tar that is
packed and unpacked in jails; the host only holds it.
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
from osiris.core.events import CommandRan
from osiris.core.git_environment import EXPORTS
from osiris.core.ports.sandbox import Plan, Result, Setup
from osiris.core.sanitize import clean_text
from osiris.tools.sandbox.guest.setup_leftovers import MOST, TOO_MANY
from osiris.tools.sandbox.jail.process import run_once
from osiris.tools.sandbox.session import BubblewrapSession

log = logging.getLogger(__name__)

# seconds; then it is made anew, for not everything that is installed stands in a lock file
LIVES: Final = 7 * 86400.0
LEFT_OVER: Final = 86400.0  # seconds after which what a killed worker was writing is removed
FORM: Final = "2"  # of the tar; what was kept in another form is made again
MOST_NAMED: Final = 10  # hosts that were refused
FILE_TOO_LARGE: Final = 128 + 25  # SIGXFSZ
# as GitHub runs the steps of its workflows
SHELL: Final = ("/bin/bash", "-e", "-o", "pipefail", "-c")
RAN: Final = TypeAdapter(tuple[CommandRan, ...])

# Git says which files they are, by the index of the checkout; nobody reads the `.git` that
# strangers could write to. Only the repository's own rules are asked, as they are in the index, and
# none that the set-up could have written: it could hide a file, and have it taken for the agent's
# work. Files of rules that it left between the repository's own are dropped: they would hide the
# agent's new files, or change them on their way. See `setup_leftovers.py` for the lists.
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
exec tar -C / --null --verbatim-files-from --files-from=/tmp/list --ignore-failed-read -cf - \
    2>/dev/null
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedSetup:
    """What a set-up left, the commands that made it, and whether that was for an earlier
    session."""

    tar: Path
    commands: tuple[CommandRan, ...]
    cached: bool = False


class SetupCache:
    """What set-ups left, on this machine; those used longest ago make room."""

    def __init__(self, root: Path, most: int) -> None:
        """`most` is how many bytes they may take together."""
        self._root = root / "@setups"
        self._max_bytes = most
        self._root.mkdir(mode=0o711, exist_ok=True)
        # each for as long as somebody has it
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    async def get(
        self, plan: Plan, salt: str, make: Callable[[], Awaitable[BubblewrapSession]]
    ) -> CachedSetup | None:
        """What the set-up of `plan` leaves, made in a session of `make` when it is not there; None
        without a set-up.

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
                raise _build_failure(ran, result, reached=not session.unreachable)
            commands.append(ran)
        tar = self._root / f"{key}.tar"
        for old in self._root.glob(".*.tar.*"):  # of a worker that was killed
            if time.time() - old.stat().st_mtime > LEFT_OVER:
                old.unlink(missing_ok=True)
        with replace_file(tar, mode=0o644) as file:
            await _pack_leftovers(session, file)
        write_atomically(tar.with_suffix(".json"), RAN.dump_json(tuple(commands)).decode())
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
    view = session.build_read_only_spec(home=True)
    view = replace(view, limits=replace(limits, file_size=limits.disk))
    argv = ["/bin/bash", "-c", PACK]
    result = await run_once(
        view, argv, limits.open_seconds, cgroup=session.cgroup, stdout=file.fileno()
    )
    if result.timed_out:
        raise LocalTimeout("putting away what the set-up left took too long")
    if result.exit_code == TOO_MANY:
        raise NeedsOperator(
            f"the set-up leaves more than {MOST:,} files that the repository's .gitignore does not"
            f" cover, such as {_format_last_lines(result)}; let .gitignore cover them"
        )
    if result.exit_code != 0:
        raise NeedsOperator(
            f"what the set-up left could not be put away: {_format_last_lines(result)}"
        )


def _build_failure(
    ran: CommandRan, result: Result, *, reached: bool
) -> NeedsOperator | Unavailable:
    """What it means that a command failed: that somebody has to mend it, or that a registry was not
    to be had."""
    command = " ".join(clean_text(ran.command).split())[:200]
    how = "took too long" if result.timed_out else f"ended with exit code {ran.exit_code}"
    told = f"the set-up command `{command}` {how}: {_format_last_lines(result)}"
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
