"""GitHub API client with the calls that Osiris needs. The docstring of each write states why
repeating it has no further effect."""

import asyncio
import copy
import time
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any

from githubkit import Response

from osiris.bot.github import api_models, comment_markers
from osiris.bot.github.api_models import (
    ConversationComment,
    IssueSnapshot,
    LabelChange,
    PullSnapshot,
    RepositoryStatus,
    ReviewComment,
    SubmittedReview,
    TouchedItems,
)
from osiris.bot.github.app_auth import AppAuth, NotInstalled, Suspended
from osiris.bot.github.transport import PAGE, NotFound, Transport
from osiris.config import repository_file as repo_file
from osiris.core.errors import Refused
from osiris.core.events import IssueRef, Role, SourceRef
from osiris.core.policy import Policy
from osiris.core.ports.storage import WriteLimiter
from osiris.core.redaction import Redactor

_POLICY_LIFE = 60.0  # seconds
_MOST_COMMENTS = 10_000
_OBJECT = "application/vnd.github.object+json"
_NEAR_BY = 30  # comments after the first in which duplicates are searched

_REACT = (
    "mutation React($id: ID!) { addReaction(input: {subjectId: $id, content: EYES}) {"
    " clientMutationId } }"
)
_READY = """mutation Ready($id: ID!) {
  markPullRequestReadyForReview(input: {pullRequestId: $id}) { pullRequest { isDraft } }
}"""


class GitHub:
    """Client of the GitHub API. Reads use a read-only token; each write waits for its slot and uses
    a token minted for it."""

    def __init__(self, auth: AppAuth, api_url: str, limiter: WriteLimiter, hide: Redactor) -> None:
        self._auth = auth
        self._transport = Transport(auth, api_url, limiter, hide)
        self._policies: dict[str, tuple[Policy, float]] = {}

    async def __aenter__(self) -> "GitHub":
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._transport.__aexit__(*error)

    def with_low_priority(self) -> "GitHub":
        """Return a copy of the client for work that can wait: its reads leave the last part of each
        hourly rate limit to others."""
        other = copy.copy(self)
        other._transport = self._transport.with_low_priority()
        return other

    async def read_login(self) -> str:
        """Return the bot's own login."""
        return f"{await self._auth.read_slug()}[bot]"

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────

    async def read_role(self, repo: str, login: str) -> Role:
        """Return a person's role in a repository. `role_name` is used because `permission` does not
        show triage and maintain."""
        try:
            answer = await self._transport.read_json(repo, f"/collaborators/{login}/permission")
        except NotFound:
            return Role.NONE
        name = answer.get("role_name", answer["permission"])
        return Role(name) if name in list(Role) else Role(answer["permission"])

    async def read_policy(self, repo: str) -> Policy:
        """Return the policy in `.github/osiris.yml` of the default branch: at most a minute old,
        and a broken one as it is now.

        Where the App is not or no longer installed, return a policy whose label starts nothing:
        late deliveries from there are not failures.
        """
        policy, until = self._policies.get(repo, (Policy(), 0.0))
        if monotonic() >= until:
            try:
                policy = await self._fetch_policy(repo)
            except NotInstalled:
                return Policy(label="")
            life = 0.0 if policy.broken else _POLICY_LIFE
            self._policies[repo] = (policy, monotonic() + life)
        return policy

    async def _fetch_policy(self, repo: str) -> Policy:
        try:
            found = await self._transport.read_json(
                repo, f"/contents/{repo_file.PATH}", accept=_OBJECT
            )
        except NotFound:
            return Policy()
        try:
            text = api_models.decode_file(found, repo_file.PATH)
            return await asyncio.to_thread(repo_file.parse_policy, text)
        except Refused as mistake:
            return Policy(broken=str(mistake))

    async def read_pull(self, repo: str, number: int) -> PullSnapshot:
        return api_models.parse_pull(await self._transport.read_json(repo, f"/pulls/{number}"))

    async def find_open_pull(self, repo: str, branch: str) -> PullSnapshot | None:
        """Return the open pull request of one of Osiris's branches, or None."""
        owner = repo.partition("/")[0]
        found = await self._transport.read_json(
            repo, "/pulls", {"head": f"{owner}:{branch}", "state": "open"}
        )
        return api_models.parse_pull(found[0]) if found else None

    async def read_default_branch(self, repo: str) -> str:
        return str((await self._transport.read_json(repo, ""))["default_branch"])

    async def read_issue(self, repo: str, number: int) -> IssueSnapshot:
        return api_models.parse_issue(await self._transport.read_json(repo, f"/issues/{number}"))

    async def read_label_change(self, repo: str, number: int, label: str) -> LabelChange | None:
        """Return the last change of a label (in any case) on an issue; None when there was none."""
        events = self._transport.iterate_rows(repo, f"/issues/{number}/events")
        changes = [
            change
            async for event in events
            if (change := api_models.parse_label_change(event, label.casefold()))
        ]
        return changes[-1] if changes else None

    async def list_reviews(self, repo: str, pull: int) -> list[SubmittedReview]:
        """Return the reviews of a pull request in the order of submission."""
        rows = self._transport.iterate_rows(repo, f"/pulls/{pull}/reviews")
        return [review async for row in rows if (review := api_models.parse_review(row))]

    async def has_line_comments(self, repo: str, pull: int, review: int) -> bool:
        """Return whether a review has line comments."""
        path = f"/pulls/{pull}/reviews/{review}/comments"
        return bool(await self._transport.read_json(repo, path, {"per_page": 1}))

    async def list_line_comments(self, repo: str, pull: int) -> list[ReviewComment]:
        """Return the line comments of a pull request, oldest first; the newest 10,000.

        The list of one review's comments is not used: GitHub leaves out there on which lines and
        side they are.
        """
        newest_first = {"sort": "created", "direction": "desc"}
        found = []
        async for row in self._transport.iterate_rows(
            repo, f"/pulls/{pull}/comments", newest_first
        ):
            found.append(api_models.parse_line_comment(row))
            if len(found) >= _MOST_COMMENTS:
                break
        return found[::-1]

    async def list_conversation(self, repo: str, number: int) -> list[ConversationComment]:
        """Return the comments below an issue or pull request, oldest first; the first 10,000."""
        found = []
        async for row in self._transport.iterate_rows(repo, f"/issues/{number}/comments"):
            found.append(api_models.parse_comment(row))
            if len(found) >= _MOST_COMMENTS:
                break
        return found

    async def read_user_id(self, repo: str, login: str) -> int | None:
        try:
            answer = await self._transport.send_request(
                "GET", repo, f"/users/{login}", await self._auth.get_read_token(repo)
            )
        except NotFound:
            return None
        return int(answer.json()["id"])

    async def read_repository_status(self, repo: str) -> RepositoryStatus:
        """Return the present name of a repository and whether it can be written, read without
        caches. Raises Unavailable."""
        try:
            token = await self._auth.mint_metadata_token(repo)
            answer = await self._transport.send_request("GET", repo, f"/repos/{repo}", token)
        except (NotInstalled, Suspended) as refused:
            return RepositoryStatus(repo=repo, problem=str(refused))
        except NotFound:
            return RepositoryStatus(repo=repo, problem=f"the repository {repo} is gone")
        found = answer.json()
        name = str(found["full_name"])
        at = _server_time(answer)
        unusable = next((word for word in ("archived", "disabled") if found.get(word)), "")
        return RepositoryStatus(
            repo=name, problem=f"the repository {name} is {unusable}" if unusable else "", at=at
        )

    async def list_touched(self, repo: str, since: str, etag: str = "") -> TouchedItems:
        """Return the issues and pull requests that were touched since a moment.

        `etag` is that of the previous answer: an unchanged answer costs nothing of GitHub's rate
        limit.
        """
        params = {"state": "all", "sort": "updated", "since": since, "per_page": PAGE}
        answer = await self._transport.get(repo, "/issues", params, etag=etag)
        at = _server_time(answer)
        moved = bool(answer.raw_response.history)
        if answer.status_code == 304:
            return TouchedItems(rows={}, etag=etag, at=at, is_unchanged=True, is_renamed=moved)
        rows = answer.json()
        page = 1
        while len(rows) == PAGE * page:
            page += 1
            rows += await self._transport.read_json(repo, "/issues", {**params, "page": page})
        times = {int(row["number"]): str(row["updated_at"]) for row in reversed(rows)}
        return TouchedItems(
            rows=times, etag=answer.headers.get("etag", ""), at=at, is_renamed=moved
        )

    # ── writes ────────────────────────────────────────────────────────────────────────────────────

    async def upsert_comment(
        self, issue: IssueRef, number: int, words: str, *, marker: str
    ) -> None:
        """Create or edit the one comment with a hidden marker on issue or pull request `number`.
        Repeated calls edit it in place."""
        body = f"{words}\n\n{comment_markers.build_marker(issue, marker)}"
        permissions = {"issues": "write", "pull_requests": "write"}
        ours = await self._find_comments(issue, number, marker)
        if not ours:
            await self._transport.send_write(
                "POST", issue.repo, f"/issues/{number}/comments", {"body": body}, permissions
            )
            return
        first, *duplicates = ours
        if first["body"] != body:
            await self._transport.send_write(
                "PATCH", issue.repo, f"/issues/comments/{first['id']}", {"body": body}, permissions
            )
        # a worker was suspended while it sent, or GitHub did not list the first comment yet
        for duplicate in duplicates:
            await self._transport.send_write(
                "DELETE", issue.repo, f"/issues/comments/{duplicate['id']}", None, permissions
            )

    async def _find_comments(
        self, issue: IssueRef, number: int, marker: str
    ) -> list[dict[str, Any]]:
        """Return the bot's comment with that marker, and its duplicates among the next few
        comments."""
        ours = []
        seen = 0
        bot = await self.read_login()
        async for comment in self._transport.iterate_rows(issue.repo, f"/issues/{number}/comments"):
            if (
                comment_markers.is_marked(comment["body"] or "", issue, marker)
                and api_models.parse_login(comment["user"]) == bot
            ):
                ours.append(comment)
            seen += bool(ours)
            if seen > _NEAR_BY:
                break
        return ours

    async def add_reaction(self, repo: str, said: SourceRef) -> None:
        """Add the reaction 👀. GitHub itself keeps a reaction single."""
        if said.kind == "review":
            await self._transport.run_mutation(
                repo, _REACT, {"id": said.id}, {"pull_requests": "write"}
            )
        else:
            path = f"/issues/comments/{said.id}/reactions"
            await self._transport.send_write(
                "POST", repo, path, {"content": "eyes"}, {"issues": "write"}
            )

    async def open_issue(self, repo: str, title: str, body: str, *, key: str) -> int:
        """Open the issue of a request and return its number. An issue with the hidden marker of
        `key` in its body is returned instead of opening a second one."""
        marker = f"<!-- osiris:request={comment_markers.hash_key(key)} -->"
        async for issue in self._transport.iterate_rows(
            repo, "/issues", {"state": "all", "creator": await self.read_login()}
        ):
            if marker in (issue["body"] or ""):
                return int(issue["number"])
        sent = {"title": title, "body": f"{body}\n\n{marker}"}
        return int(
            (await self._transport.send_write("POST", repo, "/issues", sent, {"issues": "write"}))[
                "number"
            ]
        )

    async def open_draft_pull(self, repo: str, branch: str, title: str, body: str) -> int:
        """Return the number of the open pull request of `branch`, or open a draft against the
        default branch."""
        if pull := await self.find_open_pull(repo, branch):
            return pull.number
        permissions = {"pull_requests": "write"}
        sent = {
            "head": branch,
            "base": await self.read_default_branch(repo),
            "title": title,
            "body": body,
            "draft": True,
        }
        try:
            made = await self._transport.send_write("POST", repo, "/pulls", sent, permissions)
        except Refused as refused:
            if "draft pull requests are not supported" not in str(refused).lower():
                raise
            # private repositories on free plans have no drafts
            plain = {**sent, "draft": False, "title": f"[WIP] {title}"}
            made = await self._transport.send_write("POST", repo, "/pulls", plain, permissions)
        return int(made["number"])

    async def mark_ready(self, repo: str, number: int, commit: str) -> PullSnapshot:
        """Mark a pull request as ready for review. Nothing happens when it is not a draft, or when
        `commit` is no longer its head."""
        pull = await self.read_pull(repo, number)
        if pull.open and pull.draft and pull.head == commit:
            await self._transport.run_mutation(
                repo, _READY, {"id": pull.node}, {"pull_requests": "write", "contents": "write"}
            )
        return pull

    async def upsert_check_run(self, issue: IssueRef, head: str, fields: dict[str, Any]) -> None:
        """Create or update the one check run "Osiris" of a commit."""
        found = await self._transport.read_json(
            issue.repo, f"/commits/{head}/check-runs", {"check_name": "Osiris"}
        )
        ours = [
            run
            for run in found["check_runs"]
            if comment_markers.parse_number(run["external_id"] or "") == str(issue.number)
        ]
        sent = {"name": "Osiris", "external_id": str(issue), **fields}
        permissions = {"checks": "write"}
        if ours:
            await self._transport.send_write(
                "PATCH", issue.repo, f"/check-runs/{ours[0]['id']}", sent, permissions
            )
        else:
            await self._transport.send_write(
                "POST", issue.repo, "/check-runs", {**sent, "head_sha": head}, permissions
            )


def _server_time(answer: Response[Any]) -> float:
    """Return GitHub's time of an answer, in seconds since 1970; this machine's time when the header
    is missing."""
    date = answer.headers.get("date", "")
    return parsedate_to_datetime(date).timestamp() if date else time.time()
