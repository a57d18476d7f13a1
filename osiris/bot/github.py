"""GitHub's API as Osiris needs it. Every write says how it stays single when it is done twice."""

import asyncio
import copy
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any

import githubkit
from githubkit import Response, TokenAuthStrategy, UnauthAuthStrategy
from githubkit.exception import GitHubException, GraphQLFailed, RequestFailed

from osiris.bot import marks, shapes
from osiris.bot.rates import Rates
from osiris.bot.shapes import Issue, LabelTurn, Pull, Standing, Submitted, Touched
from osiris.bot.tokens import (
    FAILURES,
    PATIENCE,
    VERSION,
    Limited,
    NotInstalled,
    Suspended,
    Tokens,
    refusal,
    translate,
)
from osiris.config import repo as repo_file
from osiris.errors import OsirisError, Refused, Unavailable
from osiris.events import IssueRef, Role, Said, Thread
from osiris.policy import Policy
from osiris.ports import Pace
from osiris.redaction import Redactor

_POLICY_LIFE = 60.0  # seconds
_PAGE = 100
_MOST_THREADS = 1_000
_JSON, _OBJECT = "application/vnd.github+json", "application/vnd.github.object+json"
_NEAR_BY = 30  # comments in which a double of ours is looked for
_MINUTE = 60.0  # seconds that a limit without a time of its own lasts at least

_REACT = "mutation React($id: ID!) { addReaction(input: {subjectId: $id, content: EYES}) { clientMutationId } }"
_READY = """mutation Ready($id: ID!) {
  markPullRequestReadyForReview(input: {pullRequestId: $id}) { pullRequest { isDraft } }
}"""


class GitHub:
    """Reads with a token that can only read; writes each in its turn, with a token minted for it."""

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
        self._policies: dict[str, tuple[Policy, float]] = {}

    async def _insist(self, request: Any) -> None:
        """The last thing before a write goes out: a worker that stood still since it got leave has it no more."""
        if request.method != "GET":
            self._pace.insist()

    async def __aenter__(self) -> "GitHub":
        await self._tokens.__aenter__()
        await self._api.__aenter__()  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._api.__aexit__(*error)
        await self._tokens.__aexit__(*error)

    def patient(self) -> "GitHub":
        """The same for who can wait: its questions leave the last part of each hour's to others."""
        other = copy.copy(self)
        other._can_wait = True
        return other

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
            found = await self._read(repo, f"/contents/{repo_file.PATH}", accept=_OBJECT)
        except _NotFound:
            return Policy()
        try:
            text = shapes.text_of_file(found, repo_file.PATH)
            return await asyncio.to_thread(repo_file.parse, text)
        except Refused as mistake:
            return Policy(broken=str(mistake))

    async def pull(self, repo: str, number: int) -> Pull:
        return shapes.pull(await self._read(repo, f"/pulls/{number}"))

    async def pull_of(self, repo: str, branch: str) -> Pull | None:
        """The open pull request of one of our branches."""
        owner = repo.partition("/")[0]
        found = await self._read(repo, "/pulls", {"head": f"{owner}:{branch}", "state": "open"})
        return shapes.pull(found[0]) if found else None

    async def default_branch(self, repo: str) -> str:
        return str((await self._read(repo, ""))["default_branch"])

    async def issue(self, repo: str, number: int) -> Issue:
        return shapes.issue(await self._read(repo, f"/issues/{number}"))

    async def label_turn(self, repo: str, number: int, label: str) -> LabelTurn | None:
        """What was last done with a label (in any case) on an issue; None when nothing was."""
        events = self._pages(repo, f"/issues/{number}/events")
        turns = [turn async for event in events if (turn := shapes.label_turn(event, label.casefold()))]
        return turns[-1] if turns else None

    async def reviews(self, repo: str, pull: int) -> list[Submitted]:
        """The reviews of a pull request, in the order they were given."""
        rows = self._pages(repo, f"/pulls/{pull}/reviews")
        return [review async for row in rows if (review := shapes.submitted(row))]

    async def review_threads(
        self, repo: str, pull: int, review: int, *, most: int = _MOST_THREADS
    ) -> tuple[Thread, ...]:
        """The line comments of one review, `most` of them at most."""
        path = f"/pulls/{pull}/reviews/{review}/comments"
        found = []
        async for comment in self._pages(repo, path):
            found.append(shapes.thread(comment))
            if len(found) >= most:
                break
        return tuple(found)

    async def user_id(self, repo: str, login: str) -> int | None:
        try:
            answer = await self._request("GET", repo, f"/users/{login}", await self._tokens.reader(repo))
        except _NotFound:
            return None
        return int(answer.json()["id"])

    async def standing(self, repo: str) -> Standing:
        """Whether and where a repository can be written, asked anew. Raises Unavailable."""
        try:
            token = await self._tokens.scout(repo)
            answer = await self._request("GET", repo, f"/repos/{repo}", token)
        except (NotInstalled, Suspended) as refused:
            return Standing(repo=repo, trouble=str(refused))
        except _NotFound:
            return Standing(repo=repo, trouble=f"the repository {repo} is gone")
        found = answer.json()
        name, at = str(found["full_name"]), _clock(answer)
        shut = next((word for word in ("archived", "disabled") if found.get(word)), "")
        return Standing(repo=name, trouble=f"the repository {name} is {shut}" if shut else "", at=at)

    async def touched(self, repo: str, since: str, etag: str = "") -> Touched:
        """What was touched since a moment. `etag` is that of the last answer: the same again costs GitHub's limit
        nothing.
        """
        params = {"state": "all", "sort": "updated", "since": since, "per_page": _PAGE}
        answer = await self._get(repo, "/issues", params, etag=etag)
        at, moved = _clock(answer), bool(answer.raw_response.history)
        if answer.status_code == 304:
            return Touched(rows={}, etag=etag, at=at, same=True, moved=moved)
        rows, page = answer.json(), 1
        while len(rows) == _PAGE * page:
            page += 1
            rows += await self._read(repo, "/issues", {**params, "page": page})
        told = {int(row["number"]): str(row["updated_at"]) for row in reversed(rows)}
        return Touched(rows=told, etag=answer.headers.get("etag", ""), at=at, moved=moved)

    # ── writes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def say(self, issue: IssueRef, number: int, words: str, *, kind: str) -> None:
        """One comment on issue or pull request `number`, known by its hidden marker: said once, or edited in place."""
        body = f"{words}\n\n{marks.marker(issue, kind)}"
        may = {"issues": "write", "pull_requests": "write"}
        ours = await self._comments(issue, number, kind)
        if not ours:
            await self._send("POST", issue.repo, f"/issues/{number}/comments", {"body": body}, may)
            return
        first, *doubles = ours
        if first["body"] != body:
            await self._send("PATCH", issue.repo, f"/issues/comments/{first['id']}", {"body": body}, may)
        for double in doubles:  # of a worker that stood still while it sent, or GitHub did not list the first one yet
            await self._send("DELETE", issue.repo, f"/issues/comments/{double['id']}", None, may)

    async def _comments(self, issue: IssueRef, number: int, kind: str) -> list[dict[str, Any]]:
        """Our comment with that marker, and doubles of it among the few that follow."""
        ours, since, me = [], 0, await self.login()
        async for comment in self._pages(issue.repo, f"/issues/{number}/comments"):
            if marks.is_marked(comment["body"] or "", issue, kind) and shapes.login(comment["user"]) == me:
                ours.append(comment)
            since += bool(ours)
            if since > _NEAR_BY:
                break
        return ours

    async def react(self, repo: str, said: Said) -> None:
        """👀; GitHub keeps a reaction single by itself."""
        if said.kind == "review":
            await self._mutate(repo, _REACT, {"id": said.id}, {"pull_requests": "write"})
        else:
            path = f"/issues/comments/{said.id}/reactions"
            await self._send("POST", repo, path, {"content": "eyes"}, {"issues": "write"})

    async def open_issue(self, repo: str, title: str, body: str, *, key: str) -> int:
        """The issue of a request, known by the hidden marker in its body."""
        marker = f"<!-- osiris:request={marks.digest(key)} -->"
        async for issue in self._pages(repo, "/issues", {"state": "all", "creator": await self.login()}):
            if marker in (issue["body"] or ""):
                return int(issue["number"])
        sent = {"title": title, "body": f"{body}\n\n{marker}"}
        return int((await self._send("POST", repo, "/issues", sent, {"issues": "write"}))["number"])

    async def open_draft_pull(self, repo: str, branch: str, title: str, body: str) -> int:
        """The pull request of `branch`: the open one, or a new draft against the default branch."""
        if pull := await self.pull_of(repo, branch):
            return pull.number
        may = {"pull_requests": "write"}
        sent = {"head": branch, "base": await self.default_branch(repo), "title": title, "body": body, "draft": True}
        try:
            made = await self._send("POST", repo, "/pulls", sent, may)
        except Refused as refused:
            if "draft pull requests are not supported" not in str(refused).lower():
                raise
            plain = {**sent, "draft": False, "title": f"[WIP] {title}"}  # private repositories of free plans
            made = await self._send("POST", repo, "/pulls", plain, may)
        return int(made["number"])

    async def mark_ready(self, repo: str, number: int, commit: str) -> Pull:
        """Take the draft mark off; nothing happens when it is off, or when `commit` is not the head any more."""
        pull = await self.pull(repo, number)
        if pull.open and pull.draft and pull.head == commit:
            await self._mutate(repo, _READY, {"id": pull.node}, {"pull_requests": "write", "contents": "write"})
        return pull

    async def check_run(self, issue: IssueRef, head: str, fields: dict[str, Any]) -> None:
        """The one check run "Osiris" of a commit, made or brought up to date."""
        found = await self._read(issue.repo, f"/commits/{head}/check-runs", {"check_name": "Osiris"})
        ours = [run for run in found["check_runs"] if marks.number(run["external_id"] or "") == str(issue.number)]
        sent, may = {"name": "Osiris", "external_id": str(issue), **fields}, {"checks": "write"}
        if ours:
            await self._send("PATCH", issue.repo, f"/check-runs/{ours[0]['id']}", sent, may)
        else:
            await self._send("POST", issue.repo, "/check-runs", {**sent, "head_sha": head}, may)

    # ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, repo: str, path: str, params: dict[str, Any] | None = None, accept: str = _JSON) -> Any:
        return (await self._get(repo, path, params, accept)).json()

    async def _get(
        self, repo: str, path: str, params: dict[str, Any] | None = None, accept: str = _JSON, etag: str = ""
    ) -> Response[Any]:
        asked: dict[str, Any] = {"params": params, "headers": {"Accept": accept, **_if_changed(etag)}}
        try:
            token = await self._tokens.reader(repo)
            return await self._request("GET", repo, f"/repos/{repo}{path}", token, **asked)
        except (_Unauthorized, Suspended):  # revoked, or older than GitHub thinks it may be: once more with a new one
            self._tokens.forget_reader(repo)
            token = await self._tokens.reader(repo)
            return await self._request("GET", repo, f"/repos/{repo}{path}", token, **asked)

    async def _pages(self, repo: str, path: str, params: dict[str, Any] | None = None) -> AsyncIterator[dict[str, Any]]:
        page, more = 1, True
        while more:
            rows = await self._read(repo, path, {**(params or {}), "per_page": _PAGE, "page": page})
            for row in rows:
                yield row
            page, more = page + 1, len(rows) == _PAGE

    async def _send(self, method: str, repo: str, path: str, json: object, may: dict[str, str]) -> Any:
        """A write, with a token that `may` do just that.

        No secret leaves this way, known or of a known shape, whatever it was that put it into the words.
        """
        clean = self._hide.within(json)

        async def send(token: str) -> Any:
            answer = await self._request(method, repo, f"/repos/{repo}{path}", token, json=clean)
            return answer.json() if answer.content else None

        return await self._in_turn(repo, may, send)

    async def _mutate(self, repo: str, query: str, variables: dict[str, Any], may: dict[str, str]) -> None:
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

    async def _request(self, method: str, repo: str, path: str, token: str, **asked: Any) -> Response[Any]:
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


def _if_changed(etag: str) -> dict[str, str]:
    return {"If-None-Match": etag} if etag else {}


def _clock(answer: Response[Any]) -> float:
    """GitHub's own time of an answer, in seconds since 1970; ours, when it does not say."""
    told = answer.headers.get("date", "")
    return parsedate_to_datetime(told).timestamp() if told else time.time()
