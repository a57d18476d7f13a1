"""Installation tokens: minted for one write, narrowed to one repository and to what that write needs."""

import json
import time
from collections.abc import Callable
from typing import Any

from githubkit import AppAuthStrategy, GitHub, Response
from githubkit.exception import GitHubException, RequestError, RequestFailed, RequestTimeout

from osiris.errors import OsirisError, Refused, Unavailable

READ = {
    "metadata": "read",
    "contents": "read",
    "issues": "read",
    "pull_requests": "read",
    "checks": "read",
}
FAILURES = (RequestFailed, RequestError, RequestTimeout)
PATIENCE = 30.0  # seconds for one answer of GitHub
_READ_LIFE = 50 * 60  # seconds; GitHub's tokens live an hour


class NotInstalled(Refused):
    """The App is not installed on a repository, or not any more; the text names it."""


class Tokens:
    """The only holder of the App's private key."""

    def __init__(self, app_id: str, private_key: str, api_url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._app = GitHub(
            AppAuthStrategy(app_id, private_key),
            base_url=_slash(api_url),
            auto_retry=False,
            http_cache=False,
            timeout=PATIENCE,
        )
        self._clock = clock
        self._installations: dict[str, int] = {}
        self._readers: dict[str, tuple[str, float]] = {}
        self._slug = ""

    async def __aenter__(self) -> "Tokens":
        """Keep one connection open: without this every call would make a client of its own."""
        await self._app.__aenter__()  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._app.__aexit__(*error)

    async def slug(self) -> str:
        """The App's name in URLs; the bot's login is `<slug>[bot]`."""
        if not self._slug:
            self._slug = str((await self._call("GET", "/app"))["slug"])
        return self._slug

    async def app(self) -> dict[str, Any]:
        """The App as GitHub describes it, its permissions and events among it."""
        app: dict[str, Any] = await self._call("GET", "/app")
        return app

    async def last_delivery(self) -> dict[str, Any] | None:
        """The webhook delivery that GitHub tried last."""
        deliveries = await self._call("GET", "/app/hook/deliveries?per_page=1")
        return deliveries[0] if deliveries else None

    async def mint(self, repo: str, **permissions: str) -> str:
        """A fresh token for `repo` with just these permissions. Raises Refused (NotInstalled is one) or Unavailable."""
        remembered = repo in self._installations
        try:
            return await self._mint(repo, permissions)
        except Refused:
            self._installations.pop(repo, None)
            if not remembered:
                raise
            return await self._mint(repo, permissions)  # it may have been installed anew, or taken off

    async def _mint(self, repo: str, permissions: dict[str, str]) -> str:
        installation = await self._installation(repo)
        narrowed = {"repositories": [repo.partition("/")[2]], "permissions": permissions}
        answer = await self._call("POST", f"/app/installations/{installation}/access_tokens", narrowed)
        return str(answer["token"])

    async def reader(self, repo: str) -> str:
        """A token that can only read `repo`; kept for most of its hour."""
        token, until = self._readers.get(repo, ("", 0.0))
        if self._clock() >= until:
            token = await self.mint(repo, **READ)
            self._readers[repo] = (token, self._clock() + _READ_LIFE)
        return token

    def forget_reader(self, repo: str) -> None:
        self._readers.pop(repo, None)

    async def _installation(self, repo: str) -> int:
        if repo not in self._installations:
            missing = f"the App is not installed on {repo}"
            found = await self._call("GET", f"/repos/{repo}/installation", missing=missing)
            self._installations[repo] = int(found["id"])
        return self._installations[repo]

    async def _call(self, method: str, path: str, sent: object = None, *, missing: str = "") -> Any:
        """`missing` is what it means when GitHub answers 404: NotInstalled."""
        try:
            answer = (await self._app.arequest(method, path, json=sent)).json()
        except FAILURES as error:
            if missing and isinstance(error, RequestFailed) and error.response.status_code == 404:
                raise NotInstalled(missing) from None
            raise translate(error, f"{method} {path}") from None
        return answer


def translate(error: GitHubException, what: str) -> OsirisError:
    """What a failed request means for the worker: come back later, or tell the person."""
    if not isinstance(error, RequestFailed):
        return Unavailable(f"GitHub cannot be reached ({what})")
    response = error.response
    if response.status_code in (403, 429) and (wait := _pause(response)) is not None:
        return Unavailable(f"GitHub asks for a pause ({what})", retry_in=wait)
    if response.status_code >= 500:
        return Unavailable(f"GitHub answered {response.status_code} ({what})")
    return Refused(f"GitHub refused {what}: {response.status_code} {_message(response.text)}")


def _pause(response: Response[Any]) -> float | None:
    """The seconds a rate limit asks for; None when it is none.

    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit
    """
    headers, limited = response.headers, "rate limit" in response.text.lower()
    if (wait := headers.get("retry-after", "")).isdecimal():
        return float(wait)
    if headers.get("x-ratelimit-remaining") == "0" and headers.get("x-ratelimit-reset", "").isdecimal():
        return max(1.0, float(headers["x-ratelimit-reset"]) - time.time())
    return 60.0 if limited or response.status_code == 429 or wait else None


def _message(text: str) -> str:
    try:
        body = json.loads(text)
        errors = [e.get("message", e.get("code", "")) if isinstance(e, dict) else e for e in body.get("errors", [])]
        return " ".join(str(part) for part in (body.get("message", ""), *errors) if part)[:300]
    except (ValueError, AttributeError):
        return text[:100]


def _slash(url: str) -> str:
    return url.rstrip("/") + "/"
