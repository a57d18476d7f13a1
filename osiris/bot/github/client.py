"""GitHub's API as Osiris needs it. Every write says how it stays single when it is done twice."""

import asyncio
import copy
import time
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any

from githubkit import Response

from osiris.bot.github import api_models, comment_markers
from osiris.bot.github.api_models import (
    IssueSnapshot,
    LabelChange,
    PullSnapshot,
    RepositoryStatus,
    SubmittedReview,
    TouchedItems,
)
from osiris.bot.github.app_auth import AppAuth, NotInstalled, Suspended
from osiris.bot.github.transport import PAGE, NotFound, Transport
from osiris.config import repository_file as repo_file
from osiris.core.errors import Refused
from osiris.core.events import IssueRef, Role, SourceRef, Thread
from osiris.core.policy import Policy
from osiris.core.ports.storage import WriteLimiter
from osiris.core.redaction import Redactor

_POLICY_LIFE = 60.0  # seconds
_MOST_THREADS = 1_000
_OBJECT = "application/vnd.github.object+json"
_NEAR_BY = 30  # comments in which a double of ours is looked for

_REACT = (
    "mutation React($id: ID!) { addReaction(input: {subjectId: $id, content: EYES}) {"
    " clientMutationId } }"
)
_READY = """mutation Ready($id: ID!) {
  markPullRequestReadyForReview(input: {pullRequestId: $id}) { pullRequest { isDraft } }
}"""


class GitHub:
    """Reads with a token that can only read; writes each in its turn, with a token minted for
    it."""

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
        """The same for who can wait: its questions leave the last part of each hour's to others."""
        other = copy.copy(self)
        other._transport = self._transport.with_low_priority()
        return other

    async def read_login(self) -> str:
        """The bot's own login."""
        return f"{await self._auth.read_slug()}[bot]"

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────

    async def read_role(self, repo: str, login: str) -> Role:
        """A person's role in a repository; `role_name`, because `permission` hides triage and
        maintain."""
        try:
            answer = await self._transport.read_json(repo, f"/collaborators/{login}/permission")
        except NotFound:
            return Role.NONE
        name = answer.get("role_name", answer["permission"])
        return Role(name) if name in list(Role) else Role(answer["permission"])

    async def read_policy(self, repo: str) -> Policy:
        """What `.github/osiris.yml` of the default branch says; at most a minute old.

        Where the App is not installed (any more) no label starts anything: what GitHub still
        delivers is no failure.
        """
        policy, until = self._policies.get(repo, (Policy(), 0.0))
        if monotonic() >= until:
            try:
                policy = await self._fetch_policy(repo)
            except NotInstalled:
                return Policy(label="")
            self._policies[repo] = (policy, monotonic() + _POLICY_LIFE)
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
        """The open pull request of one of our branches."""
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
        """What was last done with a label (in any case) on an issue; None when nothing was."""
        events = self._transport.iterate_rows(repo, f"/issues/{number}/events")
        turns = [
            turn
            async for event in events
            if (turn := api_models.parse_label_change(event, label.casefold()))
        ]
        return turns[-1] if turns else None

    async def list_reviews(self, repo: str, pull: int) -> list[SubmittedReview]:
        """The reviews of a pull request, in the order they were given."""
        rows = self._transport.iterate_rows(repo, f"/pulls/{pull}/reviews")
        return [review async for row in rows if (review := api_models.parse_review(row))]

    async def list_review_threads(
        self, repo: str, pull: int, review: int, *, most: int = _MOST_THREADS
    ) -> tuple[Thread, ...]:
        """The line comments of one review, `most` of them at most."""
        path = f"/pulls/{pull}/reviews/{review}/comments"
        found = []
        async for comment in self._transport.iterate_rows(repo, path):
            found.append(api_models.parse_thread(comment))
            if len(found) >= most:
                break
        return tuple(found)

    async def read_user_id(self, repo: str, login: str) -> int | None:
        try:
            answer = await self._transport.send_request(
                "GET", repo, f"/users/{login}", await self._auth.get_read_token(repo)
            )
        except NotFound:
            return None
        return int(answer.json()["id"])

    async def read_repository_status(self, repo: str) -> RepositoryStatus:
        """Whether and where a repository can be written, asked anew. Raises Unavailable."""
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
        shut = next((word for word in ("archived", "disabled") if found.get(word)), "")
        return RepositoryStatus(
            repo=name, problem=f"the repository {name} is {shut}" if shut else "", at=at
        )

    async def list_touched(self, repo: str, since: str, etag: str = "") -> TouchedItems:
        """What was touched since a moment. `etag` is that of the last answer: the same again costs
        GitHub's limit nothing.
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
        told = {int(row["number"]): str(row["updated_at"]) for row in reversed(rows)}
        return TouchedItems(rows=told, etag=answer.headers.get("etag", ""), at=at, is_renamed=moved)

    # ── writes ────────────────────────────────────────────────────────────────────────────────────

    async def upsert_comment(
        self, issue: IssueRef, number: int, words: str, *, marker: str
    ) -> None:
        """One comment on issue or pull request `number`, known by its hidden marker: said
        once, or edited in place."""
        body = f"{words}\n\n{comment_markers.build_marker(issue, marker)}"
        may = {"issues": "write", "pull_requests": "write"}
        ours = await self._find_comments(issue, number, marker)
        if not ours:
            await self._transport.send_write(
                "POST", issue.repo, f"/issues/{number}/comments", {"body": body}, may
            )
            return
        first, *doubles = ours
        if first["body"] != body:
            await self._transport.send_write(
                "PATCH", issue.repo, f"/issues/comments/{first['id']}", {"body": body}, may
            )
        # of a worker that stood still while it sent, or GitHub did not list the first one yet
        for double in doubles:
            await self._transport.send_write(
                "DELETE", issue.repo, f"/issues/comments/{double['id']}", None, may
            )

    async def _find_comments(
        self, issue: IssueRef, number: int, marker: str
    ) -> list[dict[str, Any]]:
        """Our comment with that marker, and doubles of it among the few that follow."""
        ours = []
        since = 0
        me = await self.read_login()
        async for comment in self._transport.iterate_rows(issue.repo, f"/issues/{number}/comments"):
            if (
                comment_markers.is_marked(comment["body"] or "", issue, marker)
                and api_models.parse_login(comment["user"]) == me
            ):
                ours.append(comment)
            since += bool(ours)
            if since > _NEAR_BY:
                break
        return ours

    async def add_reaction(self, repo: str, said: SourceRef) -> None:
        """👀; GitHub keeps a reaction single by itself."""
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
        """The issue of a request, known by the hidden marker in its body."""
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
        """The pull request of `branch`: the open one, or a new draft against the default branch."""
        if pull := await self.find_open_pull(repo, branch):
            return pull.number
        may = {"pull_requests": "write"}
        sent = {
            "head": branch,
            "base": await self.read_default_branch(repo),
            "title": title,
            "body": body,
            "draft": True,
        }
        try:
            made = await self._transport.send_write("POST", repo, "/pulls", sent, may)
        except Refused as refused:
            if "draft pull requests are not supported" not in str(refused).lower():
                raise
            # private repositories of free plans
            plain = {**sent, "draft": False, "title": f"[WIP] {title}"}
            made = await self._transport.send_write("POST", repo, "/pulls", plain, may)
        return int(made["number"])

    async def mark_ready(self, repo: str, number: int, commit: str) -> PullSnapshot:
        """Take the draft mark off; nothing happens when it is off, or when `commit` is not the head
        any more."""
        pull = await self.read_pull(repo, number)
        if pull.open and pull.draft and pull.head == commit:
            await self._transport.run_mutation(
                repo, _READY, {"id": pull.node}, {"pull_requests": "write", "contents": "write"}
            )
        return pull

    async def upsert_check_run(self, issue: IssueRef, head: str, fields: dict[str, Any]) -> None:
        """The one check run "Osiris" of a commit, made or brought up to date."""
        found = await self._transport.read_json(
            issue.repo, f"/commits/{head}/check-runs", {"check_name": "Osiris"}
        )
        ours = [
            run
            for run in found["check_runs"]
            if comment_markers.parse_number(run["external_id"] or "") == str(issue.number)
        ]
        sent = {"name": "Osiris", "external_id": str(issue), **fields}
        may = {"checks": "write"}
        if ours:
            await self._transport.send_write(
                "PATCH", issue.repo, f"/check-runs/{ours[0]['id']}", sent, may
            )
        else:
            await self._transport.send_write(
                "POST", issue.repo, "/check-runs", {**sent, "head_sha": head}, may
            )


def _server_time(answer: Response[Any]) -> float:
    """GitHub's own time of an answer, in seconds since 1970; ours, when it does not say."""
    told = answer.headers.get("date", "")
    return parsedate_to_datetime(told).timestamp() if told else time.time()
