"""Requests to GitHub with the right token and within the rate limits. Failures are translated into
the errors of Osiris."""

import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import githubkit
from githubkit import Response, TokenAuthStrategy, UnauthAuthStrategy
from githubkit.exception import GitHubException, GraphQLFailed, RequestFailed

from osiris.bot.github.app_auth import (
    FAILURES,
    PATIENCE,
    VERSION,
    AppAuth,
    RateLimited,
    Suspended,
    classify_refusal,
    translate_error,
)
from osiris.bot.github.rate_limits import RateLimits
from osiris.core.errors import OsirisError, Refused, Unavailable
from osiris.core.ports.storage import WriteLimiter
from osiris.core.redaction import Redactor

PAGE = 100
"""Rows per page."""
_JSON = "application/vnd.github+json"
_MINUTE = 60.0  # minimum seconds of a pause when GitHub gives no time


class Transport:
    """HTTP transport. Reads use a read-only token; each write waits for its slot and uses a token
    minted for it."""

    def __init__(self, auth: AppAuth, api_url: str, limiter: WriteLimiter, hide: Redactor) -> None:
        self._auth = auth
        self._limiter = limiter
        self._hide = hide
        self._rates = RateLimits()
        self._can_wait = False
        self._api = githubkit.GitHub(
            UnauthAuthStrategy(),
            base_url=api_url.rstrip("/") + "/",
            auto_retry=False,
            http_cache=False,
            ssl_verify=auth.tls,
            timeout=PATIENCE,
            async_event_hooks={"request": [self._assert_may_write]},
        )

    async def _assert_may_write(self, request: Any) -> None:
        """Check, immediately before a write is sent, that this worker may still write: it may have
        been suspended since it was allowed to."""
        if request.method != "GET":
            self._limiter.assert_may_write()

    async def __aenter__(self) -> "Transport":
        await self._auth.__aenter__()
        await self._api.__aenter__()  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._api.__aexit__(*error)
        await self._auth.__aexit__(*error)

    def with_low_priority(self) -> "Transport":
        """Return a copy of the transport for work that can wait: its reads leave the last part of
        each hourly rate limit to others."""
        other = copy.copy(self)
        other._can_wait = True
        return other

    async def read_json(
        self, repo: str, path: str, params: dict[str, Any] | None = None, accept: str = _JSON
    ) -> Any:
        return (await self.get(repo, path, params, accept)).json()

    async def get(
        self,
        repo: str,
        path: str,
        params: dict[str, Any] | None = None,
        accept: str = _JSON,
        etag: str = "",
    ) -> Response[Any]:
        asked: dict[str, Any] = {
            "params": params,
            "headers": {"Accept": accept, **_etag_header(etag)},
        }
        try:
            token = await self._auth.get_read_token(repo)
            return await self.send_request("GET", repo, f"/repos/{repo}{path}", token, **asked)
        except (_Unauthorized, Suspended):
            # revoked, or expired by GitHub's clock: retry once with a new token
            self._auth.forget_read_token(repo)
            token = await self._auth.get_read_token(repo)
            return await self.send_request("GET", repo, f"/repos/{repo}{path}", token, **asked)

    async def iterate_rows(
        self, repo: str, path: str, params: dict[str, Any] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        page, more = 1, True
        while more:
            rows = await self.read_json(
                repo, path, {**(params or {}), "per_page": PAGE, "page": page}
            )
            for row in rows:
                yield row
            page = page + 1
            more = len(rows) == PAGE

    async def send_write(
        self, method: str, repo: str, path: str, json: object, permissions: dict[str, str]
    ) -> Any:
        """Send a write with a token that has only the given permissions.

        Every string of the body is redacted, so that no secret, known or of a known shape, is sent.
        """
        clean = self._hide.redact_value(json)

        async def send_once(token: str) -> Any:
            answer = await self.send_request(
                method, repo, f"/repos/{repo}{path}", token, json=clean
            )
            return answer.json() if answer.content else None

        return await self._send_in_slot(repo, permissions, send_once)

    async def run_mutation(
        self, repo: str, query: str, variables: dict[str, Any], permissions: dict[str, str]
    ) -> None:
        await self._send_in_slot(
            repo, permissions, lambda token: self._send_graphql(repo, query, variables, token)
        )

    async def _send_in_slot(
        self, repo: str, permissions: dict[str, str], send: Callable[[str], Awaitable[Any]]
    ) -> Any:
        """Send in the next write slot of the account; send once more with a new token when the
        first one has expired."""
        account = repo.partition("/")[0]
        token = await self._mint_token(repo, permissions)
        try:
            async with self._limiter.slot(account):
                return await send(token)
        except _Unauthorized:
            token = await self._mint_token(repo, permissions)
            async with self._limiter.slot(account):
                return await send(token)

    async def _mint_token(self, repo: str, permissions: dict[str, str]) -> str:
        try:
            return await self._auth.mint_token(repo, **permissions)
        except RateLimited as limit:
            await self._limiter.pause(repo.partition("/")[0], limit.retry_in or _MINUTE)
            raise

    async def send_request(
        self, method: str, repo: str, path: str, token: str, **asked: Any
    ) -> Response[Any]:
        account = repo.partition("/")[0]
        self._rates.check_remaining(account, can_wait=self._can_wait)
        headers = {
            "Authorization": f"Bearer {token}",
            "Accept": _JSON,
            **VERSION,
            **asked.pop("headers", {}),
        }
        try:
            answer: Response[Any] = await self._api.arequest(method, path, headers=headers, **asked)
        except FAILURES as error:
            raise await self._translate_failure(account, error, f"{method} {path}") from None
        self._rates.record_headers(account, answer.headers)
        return answer

    async def _send_graphql(
        self, repo: str, query: str, variables: dict[str, Any], token: str
    ) -> None:
        account = repo.partition("/")[0]
        try:
            await self._api.with_auth(TokenAuthStrategy(token)).async_graphql(query, variables)
        except GraphQLFailed as error:
            told = "; ".join(e.message for e in error.response.errors or [])[:200]
            if re.search(r"(?i)rate limit", told):
                await self._limiter.pause(account, _MINUTE)
                raise RateLimited(
                    f"GitHub asks for a pause (GraphQL): {told}", retry_in=_MINUTE
                ) from None
            if re.search(r"(?i)something went wrong|timed? ?out", told):
                raise Unavailable(
                    f"GitHub could not answer a GraphQL request now: {told}"
                ) from None
            raise classify_refusal("GitHub refused a GraphQL request:", told, 200) from None
        except FAILURES as error:
            raise await self._translate_failure(account, error, "POST GraphQL") from None

    async def _translate_failure(
        self, account: str, error: GitHubException, what: str
    ) -> OsirisError:
        """Return the error that a failed request means. A rate limit pauses every write through
        that account."""
        if isinstance(error, RequestFailed):
            self._rates.record_headers(account, error.response.headers)
        meant = _narrow_error(error, what)
        if isinstance(meant, RateLimited):
            await self._limiter.pause(account, meant.retry_in or _MINUTE)
        return meant


class NotFound(Refused):
    """404: it does not exist, or Osiris may not see it."""


class _Unauthorized(Unavailable):
    """401: the token is no longer valid; a new one will be."""


def _narrow_error(error: GitHubException, what: str) -> OsirisError:
    if isinstance(error, RequestFailed):
        if error.response.status_code == 404:
            return NotFound(
                f"GitHub does not know {what.partition(' ')[2]}, or does not let Osiris see it"
            )
        if error.response.status_code == 401:
            return _Unauthorized(f"GitHub did not take the token ({what})")
    return translate_error(error, what)


def _etag_header(etag: str) -> dict[str, str]:
    return {"If-None-Match": etag} if etag else {}
