"""Fetching from GitHub and pushing to it: the only place where git meets a token, and each token serves one call."""

import asyncio
import base64
from collections import defaultdict
from urllib.parse import urlsplit

from osiris.bot.git import GitFailed, HostDesk, git, outage
from osiris.bot.tokens import Tokens
from osiris.errors import Refused
from osiris.ports import Checkout


class Depot:
    """Mirrors brought up to date, and commits pushed, by URL."""

    def __init__(self, desk: HostDesk, tokens: Tokens, url: str) -> None:
        self._desk, self._tokens, self._url = desk, tokens, url.rstrip("/")
        self.noreply = f"users.noreply.{urlsplit(url).hostname}"  # so that a commit names nobody of another GitHub
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def checkout(self, repo: str, branch: str) -> Checkout:
        """The end of `branch`, or of the default branch while it does not exist. Raises Refused or Unavailable."""
        async with self._locks[repo]:
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
        return Checkout(
            mirror=self._desk.mirror(repo), commit=tips.get(f"refs/heads/{branch}", trusted), trusted=trusted
        )

    async def _tips(self, repo: str, branch: str, token: str) -> dict[str, str]:
        """The commits of HEAD (the default branch) and, if it exists, of `branch`."""
        args = ("ls-remote", "--quiet", "--", self._address(repo), "HEAD", f"refs/heads/{branch}")
        told = await git(self._desk.desk(repo), *args, config=self._authority(token))
        refs = {ref: commit for commit, ref in (line.split("\t") for line in told.decode().splitlines())}
        if "HEAD" not in refs:
            raise Refused("the repository is empty; it needs a first commit before I can work in it")
        return refs

    async def _fetch(self, repo: str, ref: str, token: str) -> None:
        kept = ref if ref != "HEAD" else "refs/heads/osiris-base"
        args = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", self._address(repo), f"+{ref}:{kept}")
        await git(self._desk.mirror(repo), *args, config=self._authority(token), timeout=600)

    async def push(self, repo: str, commit: str, branch: str) -> None:
        """Push one commit to one branch, never by force. The same push again changes nothing."""
        ref = f"refs/heads/{branch}"
        flags = ("--no-verify", "--porcelain", "--no-recurse-submodules", "--no-follow-tags", "--no-signed")
        token = await self._tokens.mint(repo, contents="write")
        try:
            await git(self._desk.desk(repo), "check-ref-format", ref)
            args = ("push", *flags, "--", self._address(repo), f"{commit}:{ref}")
            await git(self._desk.desk(repo), *args, config=self._authority(token), timeout=600)
        except GitFailed as error:
            raise outage(error, "push") from None

    def _address(self, repo: str) -> str:
        return f"{self._url}/{repo}.git"

    def _authority(self, token: str) -> dict[str, str]:
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        scheme = urlsplit(self._url).scheme
        return {"http.extraHeader": f"Authorization: Basic {basic}", f"protocol.{scheme}.allow": "always"}
