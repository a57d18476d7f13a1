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

    async def send_request(self, method: str, path: str, /, **body: Any) -> Any:
        """Send a request on the repository. `path` begins with a slash or is empty."""
        answer = await self._http.request(method, f"repos/{self.repo}{path}", json=body or None)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    async def run_mutation(self, field: str, fields: str, **given: Any) -> Any:
        """Run a GraphQL mutation and return `fields` of its payload. `given` is its input."""
        kind = f"{field[0].upper()}{field[1:]}Input"
        document = f"mutation($input: {kind}!) {{ {field}(input: $input) {{ {fields} }} }}"
        body = {"query": document, "variables": {"input": given}}
        answer = await self._http.post("../graphql", json=body)
        answer.raise_for_status()
        if errors := answer.json().get("errors"):
            raise httpx.HTTPStatusError(
                errors[0]["message"], request=answer.request, response=answer
            )
        return answer.json()["data"][field]

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

    async def lock_issue(self, issue: int, reason: str = "") -> None:
        """Lock the conversation of an issue or pull request (needs write access). `reason` is
        off-topic, too heated, resolved, spam or nothing."""
        given = {"lock_reason": reason} if reason else {}
        await self.send_request("PUT", f"/issues/{issue}/lock", **given)

    async def unlock_issue(self, issue: int) -> None:
        await self.send_request("DELETE", f"/issues/{issue}/lock")

    async def delete_issue(self, issue: int) -> None:
        """Delete an issue (needs the role admin)."""
        node_id = (await self.send_request("GET", f"/issues/{issue}"))["node_id"]
        await self.run_mutation("deleteIssue", "clientMutationId", issueId=node_id)

    async def transfer_issue(self, issue: int, repo: str) -> int:
        """Transfer an issue to another repository of the same owner (needs write access to both).
        Return its number there."""
        node_id = (await self.send_request("GET", f"/issues/{issue}"))["node_id"]
        target = await self._http.get(f"repos/{repo}")
        target.raise_for_status()
        moved = await self.run_mutation(
            "transferIssue",
            "issue { number }",
            issueId=node_id,
            repositoryId=target.json()["node_id"],
        )
        return int(moved["issue"]["number"])

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

        `event` is APPROVE, REQUEST_CHANGES or COMMENT. A thread is {path, line, body}, with
        `start_line` for a range, and with `side` and `start_side` when these are not RIGHT; or it
        is {path, body} on a whole file.
        """
        lines = [{"side": "RIGHT", **thread} for thread in threads or [] if "line" in thread]
        on_files = [thread for thread in threads or [] if "line" not in thread]
        head = (await self.get_pull(pull))["head"]["sha"]
        sent = {"body": body, "comments": lines, "commit_id": head}
        if not on_files:
            sent["event"] = event
        made: dict[str, Any] = await self.send_request("POST", f"/pulls/{pull}/reviews", **sent)
        if not on_files:
            return made
        # REST takes no comment on a file in a review
        for thread in on_files:
            await self.run_mutation(
                "addPullRequestReviewThread",
                "clientMutationId",
                pullRequestReviewId=made["node_id"],
                subjectType="FILE",
                **thread,
            )
        path = f"/pulls/{pull}/reviews/{made['id']}/events"
        submitted: dict[str, Any] = await self.send_request("POST", path, event=event)
        return submitted

    async def add_line_comment(
        self, pull: int, path: str, line: int, text: str, **place: Any
    ) -> dict[str, Any]:
        """Comment on lines of the diff, as a review of its own. `place` is any of `start_line`,
        `side` and `start_side`."""
        made: dict[str, Any] = await self.send_request(
            "POST", f"/pulls/{pull}/comments", path=path, line=line, body=text, **place
        )
        return made

    async def add_file_comment(self, pull: int, path: str, text: str) -> dict[str, Any]:
        """Comment on a whole file of the diff, as a review of its own."""
        made: dict[str, Any] = await self.send_request(
            "POST", f"/pulls/{pull}/comments", path=path, body=text, subject_type="file"
        )
        return made

    async def reply_to_thread(self, pull: int, top: int, text: str) -> dict[str, Any]:
        """Reply to the thread whose first comment has the id `top`."""
        made: dict[str, Any] = await self.send_request(
            "POST", f"/pulls/{pull}/comments/{top}/replies", body=text
        )
        return made

    async def list_line_comments(self, pull: int) -> list[dict[str, Any]]:
        """Return the line comments of a pull request, oldest first, the first 100."""
        found: list[dict[str, Any]] = await self.send_request(
            "GET", f"/pulls/{pull}/comments?per_page=100"
        )
        return found

    async def merge_pull(self, pull: int) -> dict[str, Any]:
        made: dict[str, Any] = await self.send_request(
            "PUT", f"/pulls/{pull}/merge", merge_method="merge"
        )
        return made

    async def close_pull(self, pull: int) -> None:
        await self.send_request("PATCH", f"/pulls/{pull}", state="closed")
