"""Requests to GitHub: with the right token, within its limits, and every failure as one of our errors."""

import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import githubkit
from githubkit import Response, TokenAuthStrategy, UnauthAuthStrategy
from githubkit.exception import GitHubException, GraphQLFailed, RequestFailed

from osiris.bot.github.app_auth import FAILURES, PATIENCE, VERSION, Limited, Suspended, Tokens, refusal, translate
from osiris.bot.github.rate_limits import Rates
from osiris.core.errors import OsirisError, Refused, Unavailable
from osiris.core.ports.storage import Pace
from osiris.core.redaction import Redactor

PAGE = 100
"""Rows that GitHub gives at once."""
_JSON = "application/vnd.github+json"
_MINUTE = 60.0  # seconds that a limit without a time of its own lasts at least


class Transport:
    """Reads with a token that can only read; sends each write in its turn, with a token made for it."""

    def __init__(self, tokens: Tokens, api_url: str, pace: Pace, hide: Redactor) -> None:
        self._tokens, self._pace, self._hide = tokens, pace, hide
        self._rates, self._can_wait = Rates(), False
        self._api = githubkit.GitHub(
            UnauthAuthStrategy(),
            base_url=api_url.rstrip("/") + "/",
            auto_retry=False,
            http_cache=False,
            ssl_verify=tokens.tls,
            timeout=PATIENCE,
            async_event_hooks={"request": [self._insist]},
        )

    async def _insist(self, request: Any) -> None:
        """The last thing before a write goes out: a worker that stood still since it got leave has it no more."""
        if request.method != "GET":
            self._pace.insist()

    async def __aenter__(self) -> "Transport":
        await self._tokens.__aenter__()
        await self._api.__aenter__()  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._api.__aexit__(*error)
        await self._tokens.__aexit__(*error)

    def patient(self) -> "Transport":
        """The same for who can wait: its questions leave the last part of each hour's to others."""
        other = copy.copy(self)
        other._can_wait = True
        return other

    async def read(self, repo: str, path: str, params: dict[str, Any] | None = None, accept: str = _JSON) -> Any:
        return (await self.get(repo, path, params, accept)).json()

    async def get(
        self, repo: str, path: str, params: dict[str, Any] | None = None, accept: str = _JSON, etag: str = ""
    ) -> Response[Any]:
        asked: dict[str, Any] = {"params": params, "headers": {"Accept": accept, **_if_changed(etag)}}
        try:
            token = await self._tokens.reader(repo)
            return await self.request("GET", repo, f"/repos/{repo}{path}", token, **asked)
        except (_Unauthorized, Suspended):  # revoked, or older than GitHub thinks it may be: once more with a new one
            self._tokens.forget_reader(repo)
            token = await self._tokens.reader(repo)
            return await self.request("GET", repo, f"/repos/{repo}{path}", token, **asked)

    async def pages(self, repo: str, path: str, params: dict[str, Any] | None = None) -> AsyncIterator[dict[str, Any]]:
        page, more = 1, True
        while more:
            rows = await self.read(repo, path, {**(params or {}), "per_page": PAGE, "page": page})
            for row in rows:
                yield row
            page, more = page + 1, len(rows) == PAGE

    async def send(self, method: str, repo: str, path: str, json: object, may: dict[str, str]) -> Any:
        """A write, with a token that `may` do just that.

        No secret leaves this way, known or of a known shape, whatever it was that put it into the words.
        """
        clean = self._hide.within(json)

        async def send(token: str) -> Any:
            answer = await self.request(method, repo, f"/repos/{repo}{path}", token, json=clean)
            return answer.json() if answer.content else None

        return await self._in_turn(repo, may, send)

    async def mutate(self, repo: str, query: str, variables: dict[str, Any], may: dict[str, str]) -> None:
        await self._in_turn(repo, may, lambda token: self._graphql(repo, query, variables, token))

    async def _in_turn(self, repo: str, may: dict[str, str], send: Callable[[str], Awaitable[Any]]) -> Any:
        """Send when it is this account's turn; once more when the token turns out to be good no longer."""
        account, token = repo.partition("/")[0], await self._mint(repo, may)
        try:
            async with self._pace.turn(account):
                return await send(token)
        except _Unauthorized:
            token = await self._mint(repo, may)
            async with self._pace.turn(account):
                return await send(token)

    async def _mint(self, repo: str, may: dict[str, str]) -> str:
        try:
            return await self._tokens.mint(repo, **may)
        except Limited as limit:
            await self._pace.hold(repo.partition("/")[0], limit.retry_in or _MINUTE)
            raise

    async def request(self, method: str, repo: str, path: str, token: str, **asked: Any) -> Response[Any]:
        account = repo.partition("/")[0]
        self._rates.check(account, can_wait=self._can_wait)
        headers = {"Authorization": f"Bearer {token}", "Accept": _JSON, **VERSION, **asked.pop("headers", {})}
        try:
            answer: Response[Any] = await self._api.arequest(method, path, headers=headers, **asked)
        except FAILURES as error:
            raise await self._failure(account, error, f"{method} {path}") from None
        self._rates.heard(account, answer.headers)
        return answer

    async def _graphql(self, repo: str, query: str, variables: dict[str, Any], token: str) -> None:
        account = repo.partition("/")[0]
        try:
            await self._api.with_auth(TokenAuthStrategy(token)).async_graphql(query, variables)
        except GraphQLFailed as error:
            told = "; ".join(e.message for e in error.response.errors or [])[:200]
            if re.search(r"(?i)rate limit", told):
                await self._pace.hold(account, _MINUTE)
                raise Limited(f"GitHub asks for a pause (GraphQL): {told}", retry_in=_MINUTE) from None
            if re.search(r"(?i)something went wrong|timed? ?out", told):
                raise Unavailable(f"GitHub could not answer a GraphQL request now: {told}") from None
            raise refusal("GitHub refused a GraphQL request:", told, 200) from None
        except FAILURES as error:
            raise await self._failure(account, error, "POST GraphQL") from None

    async def _failure(self, account: str, error: GitHubException, what: str) -> OsirisError:
        """What a failed request means; a limit holds back every write through that account."""
        if isinstance(error, RequestFailed):
            self._rates.heard(account, error.response.headers)
        meant = _narrow(error, what)
        if isinstance(meant, Limited):
            await self._pace.hold(account, meant.retry_in or _MINUTE)
        return meant


class NotFound(Refused):
    """404: not there, or not for us."""


class _Unauthorized(Unavailable):
    """401: the token is not good any more; another one will be."""


def _narrow(error: GitHubException, what: str) -> OsirisError:
    if isinstance(error, RequestFailed):
        if error.response.status_code == 404:
            return NotFound(f"GitHub does not know {what.partition(' ')[2]}, or does not let Osiris see it")
        if error.response.status_code == 401:
            return _Unauthorized(f"GitHub did not take the token ({what})")
    return translate(error, what)


def _if_changed(etag: str) -> dict[str, str]:
    return {"If-None-Match": etag} if etag else {}
