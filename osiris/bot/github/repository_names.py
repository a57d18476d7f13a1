"""Repositories are renamed and transferred; GitHub's number for one stays."""

import logging

from osiris.bot.github.client import GitHub
from osiris.core.ports.storage import ReconcileState

log = logging.getLogger(__name__)


class RepositoryNames:
    """The name that a repository has now, by its number."""

    def __init__(self, github: GitHub, state: ReconcileState) -> None:
        self._github = github
        self._state = state

    async def resolve_name(self, repo: str, number: int) -> str:
        """The name by which the repository `number` goes, which a delivery calls `repo`.

        What is known of it moves to that name first, so that who asks for work under a new one
        finds the task there is. Raises Unavailable, or Refused when both names have tasks.
        """
        record = f"repository/{number}"
        known = await self._state.get_value(record) if number else repo
        if known in ("", repo):
            if not known:
                await self._state.set_value(record, repo)
            return repo
        # the delivery may be older than the name we know
        standing = await self._github.read_repository_status(repo)
        if standing.problem:
            return repo
        if known != standing.repo:
            await self._state.rename_repository(known, standing.repo)
            await self._state.set_value(record, standing.repo)
            log.info("%s is %s from now on", known, standing.repo)
        return standing.repo
