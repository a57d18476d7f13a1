"""What a worker does beside its work: it clears away what nobody will come back to."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

from sqlalchemy.exc import SQLAlchemyError

from osiris.bot.git.remote import RemoteRepositories
from osiris.bot.git.repositories import HostRepositories
from osiris.config.settings import Settings
from osiris.core.errors import OsirisError, Refused, Unavailable
from osiris.core.ports.sandbox import Sandbox
from osiris.queue.leases import Lease
from osiris.queue.locks import NamedLocks
from osiris.queue.retention import ObsoleteCheckpoint, PruneResult, Retention

log = logging.getLogger(__name__)

_EVERY = 60.0  # seconds
_PRUNE = 6 * 3600.0
_LATER = 3600.0
_GIB = 1 << 30


class Maintenance:
    """Workspaces of this machine, hidden refs on GitHub, old rows, and repositories that fill the
    disk."""

    def __init__(
        self,
        settings: Settings,
        lease: Lease,
        locks: NamedLocks,
        sandbox: Sandbox,
        repositories: HostRepositories,
        remotes: RemoteRepositories,
        retention: Retention,
    ) -> None:
        self._most = int(settings.osiris_cache_gib * _GIB)
        self._lease = lease
        self._locks = locks
        self._sandbox = sandbox
        self._repositories = repositories
        self._remotes = remotes
        self._retention = retention
        self._pruned = -_PRUNE
        self._postponed = dict[str, float]()

    async def run(self) -> None:
        """Go on until cancelled; what fails keeps nothing else from being done, and is tried again
        the next time."""
        while True:
            await asyncio.sleep(_EVERY)
            mine = False
            with _log_failures():
                await self.remove_workspaces()
            with _log_failures():
                mine = await self._locks.acquire("upkeep")
            if mine:
                with _log_failures():
                    await self.delete_obsolete()
                with _log_failures():
                    await self._prune_rows()
            with _log_failures():
                await self.trim_cache()

    async def remove_workspaces(self) -> None:
        """Remove the workspaces on this machine that no run will come back to."""
        # before the question: a run that begins meanwhile is in its answer
        names = self._sandbox.names()
        current = await self._retention.list_active_runs(self._lease.place)
        for name in names:
            if name not in current:
                with _log_failures():
                    await self._sandbox.remove(name)

    async def delete_obsolete(self) -> None:
        """Remove from GitHub what was put away for runs that are over.

        A repository that does not let us (archived, gone, the App taken off) is asked again in an
        hour, until its tasks are pruned and their runs with them; the others do not wait for it.
        """
        time = asyncio.get_running_loop().time()
        self._postponed = {repo: until for repo, until in self._postponed.items() if until > time}
        by_repo: dict[str, list[ObsoleteCheckpoint]] = defaultdict(list)
        for away in await self._retention.find_obsolete(without=self._postponed):
            by_repo[away.issue.repo].append(away)
        for repo, some in by_repo.items():
            if not await self._delete_checkpoints(repo, some):
                self._postponed[repo] = time + _LATER
                continue
            for away in some:
                await self._retention.forget_checkpoint(away.run)

    async def _delete_checkpoints(self, repo: str, some: Sequence[ObsoleteCheckpoint]) -> bool:
        try:
            await self._remotes.delete(repo, [away.ref for away in some])
        except (Refused, Unavailable, OSError) as error:
            log.warning("what was put away in %s stays there for now: %s", repo, error)
            return False
        return True

    async def _prune_rows(self) -> None:
        time = asyncio.get_running_loop().time()
        if time - self._pruned >= _PRUNE:
            self._pruned = time
            _log_result(await self._retention.prune())

    async def trim_cache(self) -> list[str]:
        """Remove the repositories used longest ago until the rest fits into what the settings
        allow."""
        cached = await asyncio.to_thread(self._repositories.list_cached)
        total = sum(size for _, size, _ in cached)
        gone = list[str]()
        for repo, size, _ in sorted(cached, key=lambda found: found[2]):
            if total > self._most and repo not in await self._retention.list_busy_repositories():
                await self._remotes.remove_repository(repo)
                total = total - size
                gone = [*gone, repo]
        if gone:
            log.info("removed from this machine to make room: %s", ", ".join(gone))
        return gone


@contextlib.contextmanager
def _log_failures() -> Iterator[None]:
    """What fails in here waits for the next time."""
    try:
        yield
    except (OsirisError, OSError) as error:
        log.warning("tidying up waits: %s", error)
    except SQLAlchemyError as error:  # only its name: its text may quote what is in the rows
        log.warning("tidying up waits: the database did not take it (%s)", type(error).__name__)


def _log_result(pruned: PruneResult) -> None:
    if pruned.tasks or pruned.deliveries:
        log.info("pruned %d tasks and %d deliveries", pruned.tasks, pruned.deliveries)
