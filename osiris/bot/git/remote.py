"""Fetching from GitHub and pushing to it: the only place where git meets a token, and each token serves one call."""

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from osiris.bot.git.repositories import HostDesk
from osiris.bot.git.runner import OVERTAKEN, GitFailed, GitLimits, LimitReached, git, outage
from osiris.bot.github.app_auth import Tokens
from osiris.core.errors import Refused
from osiris.core.ports.repositories import Checkout
from osiris.core.ports.sandbox import GIB, MIB

_PUSH = ("--no-verify", "--porcelain", "--no-recurse-submodules", "--no-follow-tags", "--no-signed")
_MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of memory
_TRANSFER = GitLimits(
    seconds=600,
    cpu=900,  # git unpacks in several threads
    memory=max(512 * MIB, min(4 * GIB, _MACHINE // 2)),  # the history of Linux takes some 2 GiB
    file_size=16 * GIB,
)
_REFS = GitLimits(output=1 * MIB)


class Depot:
    """Mirrors brought up to date, and commits pushed, by URL."""

    def __init__(self, desk: HostDesk, tokens: Tokens, url: str, leave: Callable[[], Awaitable[None]]) -> None:
        """`leave` raises Fenced when this worker may not write any more; it is asked before each push."""
        self._desk, self._tokens, self._url, self._leave = desk, tokens, url.rstrip("/"), leave
        self.noreply = f"users.noreply.{urlsplit(url).hostname}"  # so that a commit names nobody of another GitHub
        self._locks = WeakValueDictionary[str, asyncio.Lock]()  # each for as long as somebody has it

    async def checkout(self, repo: str, branch: str) -> Checkout:
        """The end of `branch`, or of the default branch while it does not exist. Raises Refused or Unavailable."""
        async with self._locks.setdefault(repo, asyncio.Lock()):
            await self._desk.prepare(repo)
            token = await self._tokens.reader(repo)
            try:
                tips = await self._tips(repo, branch, token)
                for ref, commit in tips.items():
                    if not await self._desk.mirrored(repo, commit):
                        await self._fetch(repo, ref, token)
            except GitFailed as error:
                self._tokens.forget_reader(repo)
                raise outage(error, "fetch") from None
        trusted = tips["HEAD"]
        return Checkout(commit=tips.get(f"refs/heads/{branch}", trusted), trusted=trusted)

    async def _tips(self, repo: str, branch: str, token: str) -> dict[str, str]:
        """The commits of HEAD (the default branch) and, if it exists, of `branch`."""
        args = ("ls-remote", "--quiet", "--", self._address(repo), "HEAD", f"refs/heads/{branch}")
        told = await git(self._desk.desk(repo), *args, config=self._authority(token), limits=_REFS)
        refs = _parse_refs(told)
        if "HEAD" not in refs:
            raise Refused("the repository is empty; it needs a first commit before I can work in it")
        return refs

    async def _fetch(self, repo: str, ref: str, token: str) -> None:
        kept = ref if ref != "HEAD" else "refs/heads/osiris-base"
        self._desk.remove_unfinished(repo)
        args = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", self._address(repo), f"+{ref}:{kept}")
        try:
            await git(self._desk.mirror(repo), *args, config=self._authority(token), limits=_TRANSFER)
        except LimitReached as error:
            raise Refused(f"the repository is too large to be fetched: {error}") from None

    async def forget(self, repo: str) -> None:
        """Remove a repository from this machine; nobody is fetching into it meanwhile."""
        async with self._locks.setdefault(repo, asyncio.Lock()):
            await asyncio.to_thread(self._desk.forget, repo)

    async def push(self, repo: str, commit: str, branch: str) -> None:
        """Push one commit to one branch, never by force. The same push again changes nothing."""
        try:
            await self._push(repo, f"{commit}:refs/heads/{branch}")
        except GitFailed as error:
            raise outage(error, "push") from None

    async def _push(self, repo: str, *changes: str) -> None:
        """Push changes of refs, each FROM:TO. Raises GitFailed, or Fenced when this worker may not write any more."""
        token = await self._tokens.mint(repo, contents="write")
        for change in changes:
            await git(self._desk.desk(repo), "check-ref-format", change.partition(":")[2])
        args = ("push", *_PUSH, "--", self._address(repo), *changes)
        await self._leave()
        await git(self._desk.desk(repo), *args, config=self._authority(token), limits=_TRANSFER)

    # ── `osiris.core.ports.repositories.Vault`: hidden refs, which no clone fetches and no webhook tells of ──

    async def keep(self, repo: str, run: str, tree: str, base: str, before: str) -> str:
        """Each commit stands on the one before it, so a push that does not fit says that another worker was here.

        If it is dead by now, what it put away without having noted it in the database is written over.
        """
        who, email = "osiris", f"osiris@{self.noreply}"
        message, at = f"Unfinished work of run {run}\n", int(time.time())
        commit = await self._desk.commit(
            repo, tree=tree, base=before or base, message=message, author=who, email=email, at=at
        )
        try:
            try:
                await self._push(repo, f"{commit}:{_hidden(run)}")
            except GitFailed as error:
                if not OVERTAKEN.search(error.told):
                    raise
                await self._push(repo, f"+{commit}:{_hidden(run)}")
        except GitFailed as error:
            raise outage(error, "put work away") from None
        return commit

    async def fetch(self, repo: str, run: str) -> None:
        token, ref = await self._tokens.reader(repo), _hidden(run)
        async with self._locks.setdefault(repo, asyncio.Lock()):
            await self._desk.prepare(repo)
            try:
                await self._fetch(repo, ref, token)
            except GitFailed as error:
                if "couldn't find remote ref" in error.told:
                    raise Refused("the work of this run is on no machine any more; a retry begins a new one") from None
                raise outage(error, "fetch") from None

    async def drop(self, repo: str, runs: Collection[str]) -> None:
        token = await self._tokens.reader(repo)
        await self._desk.prepare(repo)
        try:
            args = ("ls-remote", "--quiet", "--", self._address(repo), *map(_hidden, runs))
            told = await git(self._desk.desk(repo), *args, config=self._authority(token), limits=_REFS)
            if refs := _parse_refs(told):
                await self._push(repo, *(f":{ref}" for ref in refs))
        except GitFailed as error:
            raise outage(error, "tidy up") from None

    def _address(self, repo: str) -> str:
        return f"{self._url}/{repo}.git"

    def _authority(self, token: str) -> dict[str, str]:
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        scheme = urlsplit(self._url).scheme
        return {"http.extraHeader": f"Authorization: Basic {basic}", f"protocol.{scheme}.allow": "always"}


def _parse_refs(told: bytes) -> dict[str, str]:
    """Ref -> commit, as `git ls-remote` tells them."""
    rows = (line.partition("\t") for line in told.decode("utf-8", "replace").split("\n") if line)
    return {ref: commit for commit, _, ref in rows}


def _hidden(run: str) -> str:
    return f"refs/osiris/{run}"
