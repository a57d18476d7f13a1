"""Installation tokens of the GitHub App: each is minted for one write and limited to one repository
and the permissions that write needs."""

import json
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from githubkit import AppAuthStrategy, GitHub, Response
from githubkit.exception import GitHubException, RequestError, RequestFailed, RequestTimeout

from osiris.bot.github.rate_limits import LONGEST
from osiris.core.errors import (
    NeedsOperator,
    OsirisError,
    Refused,
    RepositoryUnavailable,
    Unavailable,
)

READ = {
    "metadata": "read",
    "contents": "read",
    "issues": "read",
    "pull_requests": "read",
    "checks": "read",
}
FAILURES = (RequestFailed, RequestError, RequestTimeout)
PATIENCE = 30.0  # seconds to wait for one answer of GitHub
VERSION = {"X-GitHub-Api-Version": "2022-11-28"}
_READ_LIFE = 50 * 60  # seconds; GitHub's tokens are valid for an hour
_PAGE = 100


class NotInstalled(RepositoryUnavailable):
    """The App is not or no longer installed on a repository; the text names it."""


class Suspended(RepositoryUnavailable):
    """The App's installation is suspended: nothing can be read or written until a person ends the
    suspension."""


class RateLimited(Unavailable):
    """A rate limit: GitHub asks for a pause of `retry_in` seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """One attempt of GitHub to send a webhook.

    The attempts of one delivery share its `guid`. `at` is in seconds since 1970; `code` is the
    status that Osiris answered, 0 when GitHub does not know it (yet).
    """

    id: int
    guid: str
    event: str
    at: float
    code: int

    @property
    def is_accepted(self) -> bool:
        return 200 <= self.code < 300


class AppAuth:
    """The only holder of the App's private key."""

    def __init__(
        self,
        app_id: str,
        private_key: RSAPrivateKey,
        api_url: str,
        *,
        tls: ssl.SSLContext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tls = tls
        self._app = GitHub(
            # the loaded key: from its text, PyJWT would check it anew, which takes 40 ms
            AppAuthStrategy(app_id, private_key),  # type: ignore[arg-type]
            base_url=_ensure_slash(api_url),
            auto_retry=False,
            http_cache=False,
            ssl_verify=tls,
            timeout=PATIENCE,
        )
        self._clock = clock
        self._installations: dict[str, tuple[int, int]] = {}
        self._read_tokens: dict[str, tuple[str, float]] = {}
        self._slug = ""

    async def __aenter__(self) -> "AppAuth":
        """Keep one client open; otherwise every call would create a new one."""
        await self._app.__aenter__()  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._app.__aexit__(*error)

    async def read_slug(self) -> str:
        """Return the App's name in URLs; the bot's login is `<slug>[bot]`."""
        if not self._slug:
            self._slug = str((await self._request_json("GET", "/app"))["slug"])
        return self._slug

    async def read_app(self) -> dict[str, Any]:
        """Return GitHub's description of the App, with its permissions and events."""
        app: dict[str, Any] = await self._request_json("GET", "/app")
        return app

    async def read_last_delivery(self) -> dict[str, Any] | None:
        """Return the last webhook delivery that GitHub attempted, or None."""
        deliveries = await self._request_json("GET", "/app/hook/deliveries?per_page=1")
        return deliveries[0] if deliveries else None

    async def read_webhook_content_type(self) -> str:
        """Return the format of the App's webhooks: "json", or "form"."""
        config: dict[str, Any] = await self._request_json("GET", "/app/hook/config")
        return str(config.get("content_type", ""))

    async def list_attempts(self, cursor: str = "") -> tuple[list[DeliveryAttempt], str]:
        """Return a page of delivery attempts, newest first, and the cursor of the next page, ""
        after the last."""
        answer = await self._send_request(
            "GET",
            f"/app/hook/deliveries?per_page={_PAGE}" + (f"&cursor={cursor}" if cursor else ""),
        )
        following = re.search(
            r"[?&]cursor=([^&>]+)[^>]*>; rel=\"next\"", answer.headers.get("link", "")
        )
        return [_parse_attempt(row) for row in answer.json()], following[1] if following else ""

    async def request_redelivery(self, attempt: int) -> None:
        """Request that GitHub sends a delivery again, under the same guid."""
        await self._send_request("POST", f"/app/hook/deliveries/{attempt}/attempts")

    async def mint_metadata_token(self, repo: str) -> str:
        """Mint a token that sees every repository of the installation that `repo` belongs to, and
        only their metadata.

        It finds a repository under its present name. Raises NotInstalled, Suspended or Unavailable.
        """
        self._installations.pop(repo, None)
        installation, _ = await self._find_installation(repo)
        return await self._create_token(installation, {"permissions": {"metadata": "read"}})

    async def mint_token(self, repo: str, **permissions: str) -> str:
        """Mint a token for `repo` with only these permissions.

        Raises Refused (of which NotInstalled and Suspended are subclasses) or Unavailable.
        """
        remembered = repo in self._installations
        try:
            return await self._mint_for_repository(repo, permissions)
        except Refused:
            self._installations.pop(repo, None)
            if not remembered:
                raise
            # the App may have been installed again, or removed
            return await self._mint_for_repository(repo, permissions)

    async def _mint_for_repository(self, repo: str, permissions: dict[str, str]) -> str:
        installation, id = await self._find_installation(repo)
        which = {"repository_ids": [id]} if id else {"repositories": [repo.partition("/")[2]]}
        return await self._create_token(installation, {**which, "permissions": permissions})

    async def _create_token(self, installation: int, narrowed: dict[str, Any]) -> str:
        return str(
            (
                await self._request_json(
                    "POST", f"/app/installations/{installation}/access_tokens", narrowed
                )
            )["token"]
        )

    async def get_read_token(self, repo: str) -> str:
        """Return a read-only token for `repo`; it is cached for most of its hour."""
        token, until = self._read_tokens.get(repo, ("", 0.0))
        if self._clock() >= until:
            token = await self.mint_token(repo, **READ)
            self._read_tokens[repo] = (token, self._clock() + _READ_LIFE)
        return token

    def forget_read_token(self, repo: str) -> None:
        self._read_tokens.pop(repo, None)

    async def _find_installation(self, repo: str) -> tuple[int, int]:
        """Return the id of the installation, and the id of the repository where GitHub redirects to
        it, else 0: a token cannot be requested for an old name."""
        if repo not in self._installations:
            missing = f"the App is not installed on {repo}"
            answer = await self._send_request("GET", f"/repos/{repo}/installation", missing=missing)
            if (found := answer.json()).get("suspended_at"):
                raise Suspended(
                    f"the App's installation on {repo} is suspended; somebody has to end that"
                )
            moved = re.search(r"/repositories/(\d+)/installation$", answer.url.path)
            self._installations[repo] = (int(found["id"]), int(moved[1]) if moved else 0)
        return self._installations[repo]

    async def _request_json(self, method: str, path: str, sent: object = None) -> Any:
        return (await self._send_request(method, path, sent)).json()

    async def _send_request(
        self, method: str, path: str, sent: object = None, *, missing: str = ""
    ) -> Response[Any]:
        """Send a request as the App. When GitHub answers 404 and `missing` is given, NotInstalled
        is raised with that text."""
        try:
            return await self._app.arequest(method, path, json=sent, headers=VERSION)
        except FAILURES as error:
            if missing and isinstance(error, RequestFailed) and error.response.status_code == 404:
                raise NotInstalled(missing) from None
            raise translate_error(error, f"{method} {path}") from None


def translate_error(error: GitHubException, what: str) -> OsirisError:
    """Return the error that a failed request means for the worker: one to retry later, or one to
    report to a person."""
    if not isinstance(error, RequestFailed):
        return Unavailable(f"GitHub cannot be reached ({what})")
    response = error.response
    if response.status_code in (403, 429) and (wait := _parse_pause(response)) is not None:
        return RateLimited(f"GitHub asks for a pause ({what})", retry_in=wait)
    # only requests as the App itself get here, so its id or key is wrong
    if response.status_code == 401:
        told = _parse_message(response.text)
        return Unavailable(
            f"GitHub does not take the App for itself ({what}: {told}); compare its id and"
            " private key"
        )
    if response.status_code >= 500:
        return Unavailable(f"GitHub answered {response.status_code} ({what})")
    return classify_refusal(
        f"GitHub refused {what}: {response.status_code}",
        _parse_message(response.text),
        response.status_code,
    )


def classify_refusal(what: str, told: str, status: int) -> Refused:
    """Return a refusal of GitHub as an error: one that a person can resolve, with the necessary
    step in its text, or a final one."""
    if re.search(r"(?i)\bsuspended\b", told):
        return Suspended(
            f"{what} {told}; somebody has to end the suspension of the App's installation"
        )
    if re.search(r"(?i)\barchived\b", told):
        return RepositoryUnavailable(f"{what} {told}; somebody has to unarchive the repository")
    if status == 403 or re.search(r"(?i)not granted|not accessible by integration", told):
        return NeedsOperator(
            f"{what} {told}; give the App that permission on its page, and accept it where it is"
            " installed"
        )
    return Refused(f"{what} {told}")


def _parse_pause(response: Response[Any]) -> float | None:
    """Return the seconds that a rate limit asks for, at most about an hour; None when the answer is
    not a rate limit.

    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit
    """
    headers = response.headers
    limited = re.search(r"(?i)rate limit|abuse detection", response.text)
    if (wait := headers.get("retry-after", "")).isdecimal():
        return min(float(wait), LONGEST)
    if (
        headers.get("x-ratelimit-remaining") == "0"
        and headers.get("x-ratelimit-reset", "").isdecimal()
    ):
        return min(max(1.0, float(headers["x-ratelimit-reset"]) - time.time()), LONGEST)
    return 60.0 if limited or response.status_code == 429 or wait else None


def _parse_message(text: str) -> str:
    try:
        body = json.loads(text)
        errors = [
            e.get("message", e.get("code", "")) if isinstance(e, dict) else e
            for e in body.get("errors", [])
        ]
        return " ".join(str(part) for part in (body.get("message", ""), *errors) if part)[:300]
    except (ValueError, AttributeError):
        return text[:100]


def _parse_attempt(row: dict[str, Any]) -> DeliveryAttempt:
    at = datetime.fromisoformat(row["delivered_at"]).timestamp()
    return DeliveryAttempt(
        id=row["id"], guid=row["guid"], event=row["event"], at=at, code=row["status_code"]
    )


def _ensure_slash(url: str) -> str:
    return url.rstrip("/") + "/"
