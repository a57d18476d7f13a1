"""Fetching from GitHub and pushing to it.

Only this module gives git a token, and each token serves one call.
"""

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from osiris.bot.git.failures import OVERTAKEN, find_conflict, translate_failure
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import GitCommandFailed, GitLimits, LimitReached, run_git
from osiris.bot.github.app_auth import AppAuth
from osiris.core.errors import Refused
from osiris.core.ports.repositories import Checkout
from osiris.core.ports.sandbox import GIB, MIB

_PUSH = ("--no-verify", "--porcelain", "--no-recurse-submodules", "--no-follow-tags", "--no-signed")
_MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of memory
_TRANSFER = GitLimits(
    seconds=600,
    cpu=900,  # git unpacks in several threads
    memory=max(512 * MIB, min(4 * GIB, _MACHINE // 2)),  # the history of Linux takes about 2 GiB
    file_size=16 * GIB,
)
_REFS = GitLimits(output=1 * MIB)
# https://git-scm.com/docs/git-fsck#_fsck_messages
_LEGACY = (
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badFilemode",
    "badName",
    "badTimezone",
    "missingAuthor",
    "missingCommitter",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "nulInCommit",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
)
"""Faults that old versions of git and other programs left in honest histories, and that harm
nobody who reads them. All other faults are refused, such as names and submodules that would attack
whoever checks them out."""
_OWN_HISTORY = {f"fetch.fsck.{fault}": "ignore" for fault in _LEGACY}
_MOST_STALE = 20  # refs of the mirror that one fetch may replace


class RemoteRepositories:
    """Repositories on GitHub: it updates the mirrors and pushes commits, by URL."""

    def __init__(
        self,
        repositories: HostRepositories,
        auth: AppAuth,
        url: str,
        verify_lease: Callable[[], Awaitable[None]],
    ) -> None:
        """Create the remote for `url`.

        `verify_lease` is called before each push and raises LeaseLost when this worker may not
        write any more.
        """
        self._repositories = repositories
        self._auth = auth
        self._url = url.rstrip("/")
        self._verify_lease = verify_lease
        # so that a commit names no user of another GitHub
        self.noreply = f"users.noreply.{urlsplit(url).hostname}"
        # each exists as long as it is referenced
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    async def fetch_checkout(self, repo: str, branch: str) -> Checkout:
        """Return the tip of `branch`, or of the default branch if it does not exist.

        Raises Refused or Unavailable.
        """
        async with self._locks.setdefault(repo, asyncio.Lock()):
            await self._repositories.prepare_repository(repo)
            token = await self._auth.get_read_token(repo)
            try:
                tips = await self._list_tips(repo, branch, token)
                for ref, commit in tips.items():
                    if not await self._repositories.is_mirrored(repo, commit):
                        await self._fetch_ref(repo, ref, token)
            except GitCommandFailed as error:
                self._auth.forget_read_token(repo)
                raise translate_failure(error, "fetch") from None
        trusted = tips["HEAD"]
        return Checkout(commit=tips.get(f"refs/heads/{branch}", trusted), trusted=trusted)

    async def _list_tips(self, repo: str, branch: str, token: str) -> dict[str, str]:
        """Return the commits of HEAD (the default branch) and, if it exists, of `branch`."""
        args = (
            "ls-remote",
            "--quiet",
            "--",
            self._remote_url(repo),
            "HEAD",
            f"refs/heads/{branch}",
        )
        told = await run_git(
            self._repositories.repository_path(repo),
            *args,
            config=self._auth_config(token),
            limits=_REFS,
        )
        refs = _parse_refs(told)
        if "HEAD" not in refs:
            raise Refused(
                "the repository is empty; it needs a first commit before I can work in it"
            )
        return refs

    async def _fetch_ref(self, repo: str, ref: str, token: str) -> None:
        """Fetch a ref into the mirror. A ref there that stands in the way is removed: GitHub cannot
        have it any more."""
        local_ref = ref if ref != "HEAD" else "refs/heads/osiris-base"
        for _ in range(_MOST_STALE):
            try:
                return await self._fetch_once(repo, f"+{ref}:{local_ref}", token)
            except GitCommandFailed as error:
                conflict = find_conflict(error.output)
                stale = f"refs/{conflict[0]}" if conflict else ""
                if not (local_ref.startswith(f"{stale}/") or stale.startswith(f"{local_ref}/")):
                    raise
                await self._repositories.remove_mirrored_ref(repo, stale)
        await self._fetch_once(repo, f"+{ref}:{local_ref}", token)

    async def _fetch_once(self, repo: str, refspec: str, token: str) -> None:
        self._repositories.remove_unfinished(repo)
        args = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--")
        try:
            await run_git(
                self._repositories.mirror_path(repo),
                *args,
                self._remote_url(repo),
                refspec,
                config={**self._auth_config(token), **_OWN_HISTORY},
                limits=_TRANSFER,
            )
        except LimitReached as error:
            raise Refused(f"the repository is too large to be fetched: {error}") from None

    async def remove_repository(self, repo: str) -> None:
        """Remove a repository from this machine, while no fetch into it is running."""
        async with self._locks.setdefault(repo, asyncio.Lock()):
            await asyncio.to_thread(self._repositories.remove_repository, repo)

    async def push_commit(self, repo: str, commit: str, branch: str) -> None:
        """Push one commit to one branch, never by force. Pushing it again changes nothing."""
        try:
            await self._push_refs(repo, f"{commit}:refs/heads/{branch}")
        except GitCommandFailed as error:
            raise translate_failure(error, "push") from None

    async def _push_refs(self, repo: str, *changes: str) -> None:
        """Push changes of refs, each FROM:TO.

        Raises GitCommandFailed, or LeaseLost when this worker may not write any more.
        """
        token = await self._auth.mint_token(repo, contents="write")
        for change in changes:
            await run_git(
                self._repositories.repository_path(repo),
                "check-ref-format",
                change.partition(":")[2],
            )
        args = ("push", *_PUSH, "--", self._remote_url(repo), *changes)
        await self._verify_lease()
        await run_git(
            self._repositories.repository_path(repo),
            *args,
            config=self._auth_config(token),
            limits=_TRANSFER,
        )

    # ── `CheckpointStorage`: hidden refs, which no clone fetches and no webhook reports ───────────

    async def save(self, repo: str, run: str, tree: str, base: str, before: str) -> str:
        """Save a checkpoint.

        Each commit has the previous one as its parent, so a push that is not a fast-forward shows
        that another worker was here.

        If that worker is dead by now, a checkpoint that it saved without recording it in the
        database is overwritten.
        """
        who = "osiris"
        email = f"osiris@{self.noreply}"
        message = f"Unfinished work of run {run}\n"
        at = int(time.time())
        commit = await self._repositories.commit_tree(
            repo, tree=tree, base=before or base, message=message, author=who, email=email, at=at
        )
        try:
            try:
                await self._push_refs(repo, f"{commit}:{_hidden_ref(run)}")
            except GitCommandFailed as error:
                if not OVERTAKEN.search(error.output):
                    raise
                await self._push_refs(repo, f"+{commit}:{_hidden_ref(run)}")
        except GitCommandFailed as error:
            raise translate_failure(error, "checkpoint") from None
        return commit

    async def restore(self, repo: str, run: str) -> None:
        token = await self._auth.get_read_token(repo)
        ref = _hidden_ref(run)
        async with self._locks.setdefault(repo, asyncio.Lock()):
            await self._repositories.prepare_repository(repo)
            try:
                await self._fetch_ref(repo, ref, token)
            except GitCommandFailed as error:
                if "couldn't find remote ref" in error.output:
                    raise Refused(
                        "the work of this run no longer exists anywhere; a retry begins a new run"
                    ) from None
                raise translate_failure(error, "fetch") from None

    async def delete(self, repo: str, runs: Collection[str]) -> None:
        token = await self._auth.get_read_token(repo)
        await self._repositories.prepare_repository(repo)
        try:
            args = ("ls-remote", "--quiet", "--", self._remote_url(repo), *map(_hidden_ref, runs))
            told = await run_git(
                self._repositories.repository_path(repo),
                *args,
                config=self._auth_config(token),
                limits=_REFS,
            )
            if refs := _parse_refs(told):
                await self._push_refs(repo, *(f":{ref}" for ref in refs))
        except GitCommandFailed as error:
            raise translate_failure(error, "clean up") from None

    def _remote_url(self, repo: str) -> str:
        return f"{self._url}/{repo}.git"

    def _auth_config(self, token: str) -> dict[str, str]:
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        scheme = urlsplit(self._url).scheme
        return {
            "http.extraHeader": f"Authorization: Basic {basic}",
            f"protocol.{scheme}.allow": "always",
        }


def _parse_refs(told: bytes) -> dict[str, str]:
    """Return ref -> commit from the output of `git ls-remote`."""
    rows = (line.partition("\t") for line in told.decode("utf-8", "replace").split("\n") if line)
    return {ref: commit for commit, _, ref in rows}


def _hidden_ref(run: str) -> str:
    return f"refs/osiris/{run}"
