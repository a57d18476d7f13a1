"""The users of a hub: each acts over the API with their own token."""

from types import TracebackType
from typing import Any

import httpx

from osiris.config.http_server import create_tls_context


class Person:
    """A user of a hub. Every method raises httpx.HTTPStatusError when the hub refuses."""

    def __init__(self, api_url: str, login: str, token: str, repo: str) -> None:
        self.login = login
        self.repo = repo
        self._http = httpx.AsyncClient(
            base_url=f"{api_url}/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
            # shorter than the hub's, which could close the connection during a request
            limits=httpx.Limits(keepalive_expiry=2),
            trust_env=False,
            verify=create_tls_context(),
        )

    async def __aenter__(self) -> "Person":
        return self

    async def __aexit__(
        self, *error: type[BaseException] | BaseException | TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def send_request(self, method: str, path: str, **body: Any) -> Any:
        """Send a request on the repository. `path` begins with a slash or is empty."""
        answer = await self._http.request(method, f"repos/{self.repo}{path}", json=body or None)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    async def file_issue(self, title: str, body: str = "") -> int:
        return int((await self.send_request("POST", "/issues", title=title, body=body))["number"])

    async def add_label(self, issue: int, label: str = "osiris") -> None:
        await self.send_request("POST", f"/issues/{issue}/labels", labels=[label])

    async def remove_label(self, issue: int, label: str = "osiris") -> None:
        await self.send_request("DELETE", f"/issues/{issue}/labels/{label}")

    async def add_comment(self, issue: int, text: str) -> int:
        return int((await self.send_request("POST", f"/issues/{issue}/comments", body=text))["id"])

    async def list_comments(self, issue: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.send_request(
            "GET", f"/issues/{issue}/comments?per_page=100"
        )
        return found

    async def close_issue(self, issue: int, reason: str = "completed") -> None:
        await self.send_request("PATCH", f"/issues/{issue}", state="closed", state_reason=reason)

    async def list_pulls(self, state: str = "all") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.send_request(
            "GET", f"/pulls?state={state}&per_page=100"
        )
        return found

    async def get_pull(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = await self.send_request("GET", f"/pulls/{number}")
        return found

    async def submit_review(
        self, pull: int, event: str, body: str = "", threads: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Submit a review.

        `event` is APPROVE, REQUEST_CHANGES or COMMENT; a thread is {path, line, body}.
        """
        lines = [{"side": "RIGHT", **thread} for thread in threads or []]
        head = (await self.get_pull(pull))["head"]["sha"]
        sent = {"event": event, "body": body, "comments": lines, "commit_id": head}
        made: dict[str, Any] = await self.send_request("POST", f"/pulls/{pull}/reviews", **sent)
        return made

    async def merge_pull(self, pull: int) -> dict[str, Any]:
        made: dict[str, Any] = await self.send_request(
            "PUT", f"/pulls/{pull}/merge", merge_method="merge"
        )
        return made

    async def close_pull(self, pull: int) -> None:
        await self.send_request("PATCH", f"/pulls/{pull}", state="closed")
