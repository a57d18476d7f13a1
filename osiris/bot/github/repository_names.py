"""Present names of renamed and transferred repositories, looked up by GitHub's permanent number."""

import logging

from osiris.bot.github.client import GitHub
from osiris.core.ports.storage import ReconcileState

log = logging.getLogger(__name__)


class RepositoryNames:
    """Resolves a repository's number to its present name."""

    def __init__(self, github: GitHub, state: ReconcileState) -> None:
        self._github = github
        self._state = state

    async def resolve_name(self, repo: str, number: int) -> str:
        """Return the present name of repository `number`, which a delivery calls `repo`.

        Stored tasks move to that name first, so that a request under the new name finds its task.
        Raises Unavailable, or Refused when both names have tasks.
        """
        record = f"repository/{number}"
        known = await self._state.get_value(record) if number else repo
        if known in ("", repo):
            if not known:
                await self._state.set_value(record, repo)
            return repo
        # the delivery may be older than the known name
        status = await self._github.read_repository_status(repo)
        if status.problem:
            return repo
        if known != status.repo:
            await self._state.rename_repository(known, status.repo)
            await self._state.set_value(record, status.repo)
            log.info("%s is %s from now on", known, status.repo)
        return status.repo
