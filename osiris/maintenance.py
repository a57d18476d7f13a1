"""The maintenance that a worker does besides its work: it removes what is no longer needed."""

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
    """The maintenance of workspaces on this machine, hidden refs on GitHub, old rows, and the
    repository cache."""

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
        """Run until cancelled.

        A failure does not prevent the other steps, and is retried the next time.
        """
        while True:
            await asyncio.sleep(_EVERY)
            is_holder = False
            with _log_failures():
                await self.remove_workspaces()
            with _log_failures():
                is_holder = await self._locks.acquire("upkeep")
            if is_holder:
                with _log_failures():
                    await self.delete_obsolete()
                with _log_failures():
                    await self._prune_rows()
            with _log_failures():
                await self.trim_cache()

    async def remove_workspaces(self) -> None:
        """Remove the workspaces on this machine that no run will use again."""
        # before the query, whose result then includes a run that begins meanwhile
        names = self._sandbox.list_sessions()
        current = await self._retention.list_active_runs(self._lease.place)
        for name in names:
            if name not in current:
                with _log_failures():
                    await self._sandbox.remove(name)

    async def delete_obsolete(self) -> None:
        """Delete from GitHub the checkpoints of runs that are over.

        A repository that does not allow it (archived, deleted, the App uninstalled) is retried in
        an hour, until its tasks are pruned and their runs with them; the others do not wait for it.
        """
        time = asyncio.get_running_loop().time()
        self._postponed = {repo: until for repo, until in self._postponed.items() if until > time}
        by_repo: dict[str, list[ObsoleteCheckpoint]] = defaultdict(list)
        for checkpoint in await self._retention.find_obsolete(without=self._postponed):
            by_repo[checkpoint.issue.repo].append(checkpoint)
        for repo, checkpoints in by_repo.items():
            if not await self._delete_checkpoints(repo, checkpoints):
                self._postponed[repo] = time + _LATER
                continue
            for checkpoint in checkpoints:
                await self._retention.forget_checkpoint(checkpoint.run)

    async def _delete_checkpoints(
        self, repo: str, checkpoints: Sequence[ObsoleteCheckpoint]
    ) -> bool:
        try:
            await self._remotes.delete(repo, [checkpoint.ref for checkpoint in checkpoints])
        except (Refused, Unavailable, OSError) as error:
            log.warning("the checkpoints in %s are kept for now: %s", repo, error)
            return False
        return True

    async def _prune_rows(self) -> None:
        time = asyncio.get_running_loop().time()
        if time - self._pruned >= _PRUNE:
            self._pruned = time
            _log_result(await self._retention.prune())

    async def trim_cache(self) -> list[str]:
        """Remove the least recently used repositories until the rest fits into the configured
        size."""
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
    """Log the failures of the block, which is run again the next time."""
    try:
        yield
    except (OsirisError, OSError) as error:
        log.warning("maintenance is deferred: %s", error)
    except SQLAlchemyError as error:  # only its name: its text may quote the content of rows
        log.warning("maintenance is deferred: the database refused it (%s)", type(error).__name__)


def _log_result(pruned: PruneResult) -> None:
    if pruned.tasks or pruned.deliveries:
        log.info("pruned %d tasks and %d deliveries", pruned.tasks, pruned.deliveries)
