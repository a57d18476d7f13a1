"""GitHub's API as Osiris needs it. Every write says how it stays single when it is done twice."""

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from json import dumps, loads
from time import monotonic
from typing import Any

import githubkit
from githubkit import TokenAuthStrategy, UnauthAuthStrategy
from githubkit.exception import GitHubException, GraphQLFailed, RequestFailed

from osiris.bot.tokens import FAILURES, PATIENCE, NotInstalled, Tokens, translate
from osiris.config import repo as repo_file
from osiris.config.logging import redact
from osiris.errors import OsirisError, Refused, Unavailable
from osiris.events import IssueRef, Role, Said, Thread
from osiris.policy import Policy

_POLICY_LIFE = 60.0  # seconds
_PAGE = 100

_REACT = "mutation React($id: ID!) { addReaction(input: {subjectId: $id, content: EYES}) { clientMutationId } }"
_READY = """mutation Ready($id: ID!) {
  markPullRequestReadyForReview(input: {pullRequestId: $id}) { pullRequest { isDraft } }
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """A pull request as it is now; `branch` is "" when it is in a fork."""

    number: int
    node: str
    open: bool
    merged: bool
    draft: bool
    head: str
    branch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """An issue as it is now; its labels in lower case."""

    open: bool
    labels: frozenset[str]


class GitHub:
    """Reads with a token that can only read; writes each with a token minted for it."""

    def __init__(self, tokens: Tokens, api_url: str) -> None:
        self._tokens = tokens
        self._api = githubkit.GitHub(
            UnauthAuthStrategy(),
            base_url=api_url.rstrip("/") + "/",
            auto_retry=False,
            http_cache=False,
            timeout=PATIENCE,
        )
        self._policies: dict[str, tuple[Policy, float]] = {}

    async def __aenter__(self) -> "GitHub":
        await self._tokens.__aenter__()
        await self._api.__aenter__()  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._api.__aexit__(*error)
        await self._tokens.__aexit__(*error)

    async def login(self) -> str:
        """The bot's own login."""
        return f"{await self._tokens.slug()}[bot]"

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def role(self, repo: str, login: str) -> Role:
        """A person's role in a repository; `role_name`, because `permission` hides triage and maintain."""
        try:
            answer = await self._read(repo, f"/collaborators/{login}/permission")
        except _NotFound:
            return Role.NONE
        name = answer.get("role_name", answer["permission"])
        return Role(name) if name in list(Role) else Role(answer["permission"])

    async def policy(self, repo: str) -> Policy:
        """What `.github/osiris.yml` of the default branch says; at most a minute old.

        Where the App is not installed (any more) no label starts anything: what GitHub still delivers is no failure.
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
            text = await self._read(repo, f"/contents/{repo_file.PATH}", accept="application/vnd.github.raw+json")
        except _NotFound:
            return Policy()
        try:
            return repo_file.parse(text)
        except Refused as mistake:
            return Policy(broken=str(mistake))

    async def pull(self, repo: str, number: int) -> Pull:
        return _pull(await self._read(repo, f"/pulls/{number}"))

    async def pull_of(self, repo: str, branch: str) -> Pull | None:
        """The open pull request of one of our branches."""
        owner = repo.partition("/")[0]
        found = await self._read(repo, "/pulls", {"head": f"{owner}:{branch}", "state": "open"})
        return _pull(found[0]) if found else None

    async def default_branch(self, repo: str) -> str:
        return str((await self._read(repo, ""))["default_branch"])

    async def issue(self, repo: str, number: int) -> Issue:
        data = await self._read(repo, f"/issues/{number}")
        labels = frozenset(label["name"].casefold() for label in data["labels"])
        return Issue(open=data["state"] == "open", labels=labels)

    async def review_threads(self, repo: str, pull: int, review: int) -> tuple[Thread, ...]:
        """The line comments of one review."""
        path = f"/pulls/{pull}/reviews/{review}/comments"
        return tuple([_thread(comment) async for comment in self._pages(repo, path)])

    async def user_id(self, repo: str, login: str) -> int | None:
        try:
            return int((await self._request("GET", f"/users/{login}", await self._tokens.reader(repo)))["id"])
        except _NotFound:
            return None

    # ── writes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def say(self, issue: IssueRef, number: int, words: str, *, kind: str) -> None:
        """One comment on issue or pull request `number`, known by its hidden marker: said once, or edited in place."""
        marker = _marker(issue, kind)
        body = f"{words}\n\n{marker}"
        token = await self._tokens.mint(issue.repo, issues="write", pull_requests="write")
        async for comment in self._pages(issue.repo, f"/issues/{number}/comments"):
            ours = comment["user"]["login"] == await self.login()
            if ours and (comment["body"] or "").rstrip().endswith(marker):
                if comment["body"] != body:
                    await self._send("PATCH", issue.repo, f"/issues/comments/{comment['id']}", token, {"body": body})
                return
        await self._send("POST", issue.repo, f"/issues/{number}/comments", token, {"body": body})

    async def react(self, repo: str, said: Said) -> None:
        """👀; GitHub keeps a reaction single by itself."""
        if said.kind == "review":
            token = await self._tokens.mint(repo, pull_requests="write")
            await self._graphql(_REACT, {"id": said.id}, token)
        else:
            token = await self._tokens.mint(repo, issues="write")
            path = f"/issues/comments/{said.id}/reactions"
            await self._send("POST", repo, path, token, {"content": "eyes"})

    async def open_issue(self, repo: str, title: str, body: str, *, key: str) -> int:
        """The issue of a request, known by the hidden marker in its body."""
        marker = f"<!-- osiris:request={_digest(key)} -->"
        async for issue in self._pages(repo, "/issues", {"state": "all", "creator": await self.login()}):
            if marker in (issue["body"] or ""):
                return int(issue["number"])
        token = await self._tokens.mint(repo, issues="write")
        sent = {"title": title, "body": f"{body}\n\n{marker}"}
        return int((await self._send("POST", repo, "/issues", token, sent))["number"])

    async def open_draft_pull(self, repo: str, branch: str, title: str, body: str) -> int:
        """The pull request of `branch`: the open one, or a new draft against the default branch."""
        if pull := await self.pull_of(repo, branch):
            return pull.number
        token = await self._tokens.mint(repo, pull_requests="write")
        sent = {"head": branch, "base": await self.default_branch(repo), "title": title, "body": body, "draft": True}
        try:
            made = await self._send("POST", repo, "/pulls", token, sent)
        except Refused as refused:
            if "draft pull requests are not supported" not in str(refused).lower():
                raise
            plain = {**sent, "draft": False, "title": f"[WIP] {title}"}  # private repositories of free plans
            made = await self._send("POST", repo, "/pulls", token, plain)
        return int(made["number"])

    async def mark_ready(self, repo: str, number: int, commit: str) -> Pull:
        """Take the draft mark off; nothing happens when it is off, or when `commit` is not the head any more."""
        pull = await self.pull(repo, number)
        if pull.open and pull.draft and pull.head == commit:
            token = await self._tokens.mint(repo, pull_requests="write", contents="write")
            await self._graphql(_READY, {"id": pull.node}, token)
        return pull

    async def check_run(self, issue: IssueRef, head: str, fields: dict[str, Any]) -> None:
        """The one check run "Osiris" of a commit, made or brought up to date."""
        token = await self._tokens.mint(issue.repo, checks="write")
        found = await self._read(issue.repo, f"/commits/{head}/check-runs", {"check_name": "Osiris"})
        ours = [run for run in found["check_runs"] if run["external_id"] == str(issue)]
        sent = {"name": "Osiris", "external_id": str(issue), **fields}
        if ours:
            await self._send("PATCH", issue.repo, f"/check-runs/{ours[0]['id']}", token, sent)
        else:
            await self._send("POST", issue.repo, "/check-runs", token, {**sent, "head_sha": head})

    # ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(
        self, repo: str, path: str, params: dict[str, Any] | None = None, accept: str = "application/vnd.github+json"
    ) -> Any:
        token = await self._tokens.reader(repo)
        try:
            return await self._request("GET", f"/repos/{repo}{path}", token, params=params, accept=accept)
        except _Unauthorized:  # revoked or older than GitHub thinks it may be: once more with a new one
            self._tokens.forget_reader(repo)
            token = await self._tokens.reader(repo)
            return await self._request("GET", f"/repos/{repo}{path}", token, params=params, accept=accept)

    async def _pages(self, repo: str, path: str, params: dict[str, Any] | None = None) -> AsyncIterator[dict[str, Any]]:
        page, more = 1, True
        while more:
            rows = await self._read(repo, path, {**(params or {}), "per_page": _PAGE, "page": page})
            for row in rows:
                yield row
            page, more = page + 1, len(rows) == _PAGE

    async def _send(self, method: str, repo: str, path: str, token: str, json: object) -> Any:
        """A write. Nothing shaped like a secret leaves this way, whatever it was that put it into the words."""
        clean = loads(redact(dumps(json)))
        return await self._request(method, f"/repos/{repo}{path}", token, json=clean)

    async def _request(
        self,
        method: str,
        path: str,
        token: str,
        *,
        params: dict[str, Any] | None = None,
        json: object = None,
        accept: str = "application/vnd.github+json",
    ) -> Any:
        headers = {"Authorization": f"Bearer {token}", "Accept": accept}
        try:
            answer = await self._api.arequest(method, path, params=params, json=json, headers=headers)
        except FAILURES as error:
            raise _narrow(error, f"{method} {path}") from None
        return answer.text if accept.endswith("raw+json") else answer.json()

    async def _graphql(self, query: str, variables: dict[str, Any], token: str) -> None:
        try:
            await self._api.with_auth(TokenAuthStrategy(token)).async_graphql(query, variables)
        except GraphQLFailed as error:
            told = "; ".join(e.message for e in error.response.errors or [])
            if re.search(r"(?i)rate limit|something went wrong|timed? ?out", told):
                raise Unavailable(f"GitHub could not answer a GraphQL request now: {told[:200]}") from None
            raise Refused(f"GitHub refused a GraphQL request: {told[:200]}") from None
        except FAILURES as error:
            raise translate(error, "GraphQL") from None


class _NotFound(Refused):
    """404: not there, or not for us."""


class _Unauthorized(Unavailable):
    """401: the token is not good any more; another one will be."""


def _narrow(error: GitHubException, what: str) -> OsirisError:
    if isinstance(error, RequestFailed):
        if error.response.status_code == 404:
            return _NotFound(f"GitHub does not know {what.partition(' ')[2]}, or does not let Osiris see it")
        if error.response.status_code == 401:
            return _Unauthorized(f"GitHub did not take the token ({what})")
    return translate(error, what)


def _pull(data: dict[str, Any]) -> Pull:
    return Pull(
        number=data["number"],
        node=data["node_id"],
        open=data["state"] == "open",
        merged=bool(data.get("merged") or data.get("merged_at")),
        draft=data["draft"],
        head=data["head"]["sha"],
        branch=data["head"]["ref"] if _at_home(data) else "",
    )


def _at_home(pull: dict[str, Any]) -> bool:
    """Whether the branch is in this repository: a fork's may have any name."""
    home, head = pull["base"]["repo"]["full_name"], pull["head"]["repo"]
    return bool(head) and head["full_name"] == home


def _thread(comment: dict[str, Any]) -> Thread:
    line = comment.get("line") or comment.get("original_line")
    return Thread(path=comment["path"], line=line, hunk=comment["diff_hunk"], text=comment["body"])


def _marker(issue: IssueRef, kind: str) -> str:
    kind = kind if kind == "status" else f"reply-{_digest(kind)}"
    return f"<!-- osiris:task={issue} kind={kind} -->"


def _digest(key: str) -> str:
    """A marker must not be breakable by what stands in it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
