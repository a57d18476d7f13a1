"""The parts of GitHub's GraphQL API that REST does not offer: review threads, drafts, reactions to
reviews."""

from typing import Any, TypeVar

from graphql import GraphQLError, GraphQLResolveInfo
from graphql import graphql as execute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.devhub import issue_administration, pulls, reviews
from osiris.devhub.anchors import LineAnchor
from osiris.devhub.auth import Caller
from osiris.devhub.errors import ApiError, not_found_error
from osiris.devhub.graphql_schema import SCHEMA
from osiris.devhub.models import (
    AuthoredText,
    Comment,
    Issue,
    LineComment,
    Pull,
    PullReview,
    Repo,
    Resource,
    ReviewThread,
    User,
)
from osiris.devhub.payloads.issues import Json, format_time
from osiris.devhub.routes.request import read_json
from osiris.devhub.world import World

WORDS = {"THUMBS_UP": "+1", "THUMBS_DOWN": "-1"}
T = TypeVar("T")
TYPES = {401: "UNAUTHENTICATED", 403: "FORBIDDEN", 404: "NOT_FOUND"}


async def answer_query(request: Request, world: World, who: Caller) -> Response:
    if who.user is None:
        raise (
            ApiError(401, "This endpoint requires you to be authenticated.")
            if who.app is None
            else ApiError(403, "Resource not accessible by integration")
        )
    asked = await read_json(request)
    if not isinstance(asked, dict) or not isinstance(asked.get("query"), str):
        raise ApiError(400, "A query attribute must be specified and must be a string.")
    root = Root(world, who)
    result = await execute(
        SCHEMA,
        asked["query"],
        root,
        variable_values=asked.get("variables"),
        operation_name=asked.get("operationName"),
    )
    body: Json = {"data": result.data}
    return JSONResponse(
        body | ({"errors": [_format_error(one) for one in result.errors]} if result.errors else {})
    )


def _format_error(error: GraphQLError) -> Json:
    """Return an error with its type beside the message, as GitHub does; a bug in the hub is raised
    instead."""
    shape: Json = dict(error.formatted)
    cause = error.original_error
    if isinstance(cause, ApiError):
        return {
            "type": TYPES.get(cause.status, "UNPROCESSABLE"),
            **shape,
            "message": cause.sentence,
        }
    if cause is not None:
        raise cause
    return shape


class Root:
    """The fields of Query and Mutation, for one caller."""

    def __init__(self, world: World, who: Caller) -> None:
        self._world = world
        self._who = who

    def viewer(self, info: GraphQLResolveInfo) -> Json:
        return _format_resource(self._who.account)

    def repository(self, info: GraphQLResolveInfo, owner: str, name: str) -> Json:
        repo = self._world.repos.get(f"{owner}/{name}".lower())
        if repo is None or not self._who.can_see(repo):
            raise ApiError(
                404, f"Could not resolve to a Repository with the name '{owner}/{name}'."
            )
        return _format_repository(repo, self._who)

    def node(self, info: GraphQLResolveInfo, id: str) -> Json:
        thing = self._find_resource(id, Resource)
        self._who.require_permission(
            find_repo(thing), "issues:read", "pull_requests:read", "contents:read"
        )
        return _format_resource(thing)

    def addReaction(self, info: GraphQLResolveInfo, input: Json) -> Json:
        subject = self._find_resource(input["subjectId"], AuthoredText)
        permission = "issues" if isinstance(subject, Issue | Comment) else "pull_requests"
        self._who.require_permission(
            find_repo(subject), f"{permission}:write", "pull_requests:write"
        )
        if (issue := find_issue(subject)) is not None:
            self._who.require_unlocked(issue, "reaction")
        content = WORDS.get(input["content"], input["content"].lower())
        reaction, _ = self._world.add_reaction(subject, self._who.account, content)
        shape = {
            **_format_id(reaction),
            "content": input["content"],
            "user": _format_resource(reaction.user),
        }
        return _build_payload(input, reaction=shape, subject=_format_resource(subject))

    def markPullRequestReadyForReview(self, info: GraphQLResolveInfo, input: Json) -> Json:
        return self._set_draft(input, False)

    def convertPullRequestToDraft(self, info: GraphQLResolveInfo, input: Json) -> Json:
        return self._set_draft(input, True)

    def resolveReviewThread(self, info: GraphQLResolveInfo, input: Json) -> Json:
        return self._resolve_thread(input, True)

    def unresolveReviewThread(self, info: GraphQLResolveInfo, input: Json) -> Json:
        return self._resolve_thread(input, False)

    def addPullRequestReviewThread(self, info: GraphQLResolveInfo, input: Json) -> Json:
        """Add a comment to a pending review of the caller; unlike REST also one on a file."""
        review = self._find_resource(input["pullRequestReviewId"], PullReview)
        self._who.require_permission(review.pull.repo, "pull_requests:write")
        self._who.require_unlocked(review.pull.issue)
        if not review.pending or review.author is not self._who.account:
            raise not_found_error()
        on_file = input.get("subjectType") == "FILE"
        anchor = LineAnchor(
            path=input["path"],
            body=input["body"],
            line=None if on_file else input.get("line", 0),
            side=input.get("side") or "RIGHT",
            start_line=input.get("startLine"),
            start_side=input.get("startSide"),
        )
        comment = reviews.add_line_comment(self._world, review.pull, self._who.account, anchor)
        return _build_payload(input, thread=_format_resource(comment.thread))

    def deleteIssue(self, info: GraphQLResolveInfo, input: Json) -> Json:
        issue = self._find_resource(input["issueId"], Issue)
        self._who.require_permission(issue.repo, "administration:write", role="admin")
        issue_administration.delete_issue(self._world, issue, self._who.account)
        return _build_payload(input, repository=_format_repository(issue.repo, self._who))

    def transferIssue(self, info: GraphQLResolveInfo, input: Json) -> Json:
        issue = self._find_resource(input["issueId"], Issue)
        target = self._find_resource(input["repositoryId"], Repo)
        for repo in (issue.repo, target):
            self._who.require_permission(repo, "issues:write", role="write")
        create_labels = bool(input.get("createLabelsIfMissing"))
        new = issue_administration.transfer_issue(
            self._world, issue, self._who.account, target, create_labels=create_labels
        )
        return _build_payload(input, issue=_format_resource(new))

    def _set_draft(self, input: Json, draft: bool) -> Json:
        pull = self._find_resource(input["pullRequestId"], Pull)
        role = "read" if pull.author is self._who.user else "write"
        self._who.require_permission(pull.repo, "pull_requests:write", role=role)
        pulls.set_draft(self._world, pull, self._who.account, draft)
        return _build_payload(input, pullRequest=_format_resource(pull))

    def _resolve_thread(self, input: Json, resolved: bool) -> Json:
        thread = self._find_resource(input["threadId"], ReviewThread)
        role = "read" if thread.pull.author is self._who.user else "write"
        self._who.require_permission(thread.pull.repo, "pull_requests:write", role=role)
        reviews.resolve_thread(self._world, thread, self._who.account, resolved)
        return _build_payload(input, thread=_format_resource(thread))

    def _find_resource(self, node_id: str, kind: type[T]) -> T:
        """Return the resource with a node id, if the caller may see its repository (the id of an
        issue also names its pull request)."""
        thing = self._world.things.get(node_id)
        found: object = thing.issue if isinstance(thing, Pull) and kind is AuthoredText else thing
        if not isinstance(found, kind) or thing is None or not self._who.can_see(find_repo(thing)):
            raise ApiError(404, f"Could not resolve to a node with the global id of '{node_id}'")
        return found


def find_repo(thing: Resource) -> Repo:
    match thing:
        case Repo():
            return thing
        case Issue() | Pull():
            return thing.repo
        case Comment():
            return thing.issue.repo
        case PullReview() | ReviewThread():
            return thing.pull.repo
        case LineComment():
            return thing.thread.pull.repo
    raise not_found_error()


def find_issue(thing: Resource) -> Issue | None:
    """Return the issue or pull request with the conversation of a text."""
    match thing:
        case Issue():
            return thing
        case Comment():
            return thing.issue
        case PullReview():
            return thing.pull.issue
        case LineComment():
            return thing.thread.pull.issue
    return None


def _build_payload(input: Json, **fields: Any) -> Json:
    return {"clientMutationId": input.get("clientMutationId"), **fields}


def _format_id(thing: Resource) -> Json:
    return {"id": thing.node_id, "databaseId": thing.id}


def _build_connection(
    items: list[Json], first: int | None, last: int | None, after: str | None
) -> Json:
    """Return a page of `nodes` as a GraphQL connection; cursors are positions."""
    start = int(after) if after and after.isdigit() else 0
    rest = items[start:]
    shown = rest[-last:] if last else rest[: first or 100]
    page = {"hasNextPage": start + len(shown) < len(items), "endCursor": str(start + len(shown))}
    return {"totalCount": len(items), "nodes": shown, "pageInfo": page}


def _format_repository(repo: Repo, who: Caller) -> Json:
    def resolve_issue(info: GraphQLResolveInfo, number: int) -> Json | None:
        who.require_permission(repo, "issues:read")
        found = repo.issues.get(number)
        return _format_resource(found) if found and not found.pull else None

    def resolve_pull(info: GraphQLResolveInfo, number: int) -> Json | None:
        who.require_permission(repo, "pull_requests:read")
        found = repo.pulls.get(number)
        if found is None:
            raise ApiError(404, f"Could not resolve to a PullRequest with the number of {number}.")
        return _format_resource(found)

    names = {"__typename": "Repository", "name": repo.name, "nameWithOwner": repo.full_name}
    return {**_format_id(repo), **names, "issue": resolve_issue, "pullRequest": resolve_pull}


def _format_authored(said: AuthoredText) -> Json:
    return {
        **_format_id(said),
        "body": said.body,
        "author": _format_resource(said.author),
        "createdAt": format_time(said.created),
    }


def _format_resource(thing: Resource) -> Json:
    """Return a resource in the form of its GraphQL type."""
    match thing:
        case User():
            return {"__typename": thing.type, **_format_id(thing), "login": thing.login}
        case Issue():
            state = thing.state.upper()
            return {
                "__typename": "Issue",
                **_format_authored(thing),
                "number": thing.number,
                "title": thing.title,
                "state": state,
            }
        case Pull():
            return _format_pull(thing)
        case ReviewThread():
            return _format_thread(thing)
        case LineComment():
            kind = "PullRequestReviewComment"
            return {
                "__typename": kind,
                **_format_authored(thing),
                "path": thing.path,
                "line": thing.line,
            }
        case PullReview():
            submitted = format_time(thing.submitted)
            return {
                "__typename": "PullRequestReview",
                **_format_authored(thing),
                "state": thing.state,
                "submittedAt": submitted,
            }
        case Comment():
            return {"__typename": "IssueComment", **_format_authored(thing)}
    raise not_found_error()


def _format_pull(pull: Pull) -> Json:
    def resolve_threads(
        info: GraphQLResolveInfo,
        first: int | None = None,
        last: int | None = None,
        after: str | None = None,
    ) -> Json:
        visible = [thread for thread in pull.threads if not thread.comments[0].review.pending]
        return _build_connection([_format_thread(thread) for thread in visible], first, last, after)

    clean = pulls.is_mergeable(pull)
    return {
        "__typename": "PullRequest",
        **_format_authored(pull.issue),
        **_format_id(pull),
        "number": pull.number,
        "title": pull.title,
        "state": "MERGED" if pull.merged else pull.state.upper(),
        "isDraft": pull.draft,
        "merged": pull.merged,
        "mergeable": {None: "UNKNOWN", True: "MERGEABLE", False: "CONFLICTING"}[clean],
        "headRefName": pull.head_ref,
        "baseRefName": pull.base_ref,
        "headRefOid": pull.head_sha,
        "reviewThreads": resolve_threads,
    }


def _format_thread(thread: ReviewThread) -> Json:
    def resolve_comments(
        info: GraphQLResolveInfo,
        first: int | None = None,
        last: int | None = None,
        after: str | None = None,
    ) -> Json:
        visible = [comment for comment in thread.comments if not comment.review.pending]
        return _build_connection(
            [_format_resource(comment) for comment in visible], first, last, after
        )

    top = thread.comments[0]
    return {
        "__typename": "PullRequestReviewThread",
        "id": thread.node_id,
        "isResolved": thread.resolved_by is not None,
        "isOutdated": top.is_outdated,
        "resolvedBy": _format_resource(thread.resolved_by) if thread.resolved_by else None,
        "path": top.path,
        "line": top.line,
        "originalLine": top.original_line,
        "comments": resolve_comments,
    }
