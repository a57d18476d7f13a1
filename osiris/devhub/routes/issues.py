"""REST for issues, their comments, labels and reactions."""

from collections.abc import Callable, Mapping

from starlette.responses import Response

from osiris.devhub import issue_administration
from osiris.devhub.errors import invalid_field_error, not_found_error
from osiris.devhub.models import AuthoredText, Comment, Issue, LineComment
from osiris.devhub.payloads import issues
from osiris.devhub.routes.request import ApiRequest, RouteTable, build_response

table = RouteTable()
REPO = "/repos/{owner}/{repo}"
ISSUE = REPO + "/issues/{number:int}"
ORDERS: Mapping[str, Callable[[Issue], tuple[float, int]]] = {
    "created": lambda issue: (issue.number, 0),
    "updated": lambda issue: (int(issue.updated), issue.number),
    "comments": lambda issue: (len(issue.comments), issue.number),
}


@table.route("GET", REPO + "/issues")
async def list_issues(call: ApiRequest) -> Response:
    call.require_permission("issues:read", "pull_requests:read")
    up = call.get_query("direction", "desc") == "asc"
    found = sorted(
        call.repo.issues.values(),
        key=ORDERS.get(call.get_query("sort"), ORDERS["created"]),
        reverse=not up,
    )
    return call.build_page(
        [issue for issue in found if _matches_query(call, issue)],
        lambda one: issues.build_issue(call.world, one),
    )


def _matches_query(call: ApiRequest, issue: Issue) -> bool:
    state = call.get_query("state", "open")
    creator = call.get_query("creator")
    labels = {name for name in call.get_query("labels").lower().split(",") if name}
    since = call.get_query("since")
    return (
        state in ("all", issue.state)
        and labels <= {label.name.lower() for label in issue.labels}
        and (not creator or issue.author.login.lower() == creator.lower())
        and (not since or (issues.format_time(issue.updated) or "") >= since)
    )


@table.route("POST", REPO + "/issues")
async def create_issue(call: ApiRequest) -> Response:
    call.require_permission("issues:write")
    labels = [_parse_label_name(label) for label in call.get("labels", list, [])]
    # as on GitHub, labels from people who may not set them are dropped silently
    kept = labels if call.who.may_access(call.repo, ["issues:write"], "triage") else []
    title = call.get_required_text("title")
    body = call.get_text("body")
    issue = call.world.open_issue(
        call.repo, call.account, title, body, labels=kept, by_app=call.by_app
    )
    return build_response(issues.build_issue(call.world, issue), 201)


@table.route("GET", ISSUE)
async def get_issue(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "read")
    return build_response(issues.build_issue(call.world, call.issue))


@table.route("PATCH", ISSUE)
async def update_issue(call: ApiRequest) -> Response:
    issue = call.issue
    call.require_on_issue(
        issue, "write", role="read" if call.who.user is issue.author else "triage"
    )
    state = call.get_text("state", issue.state)
    if state not in ("open", "closed"):
        raise invalid_field_error("Issue", "state")
    call.world.edit_issue(
        issue,
        call.account,
        title=call.get_optional_text("title"),
        body=call.get_optional_text("body"),
    )
    if state == "closed":
        call.world.close_issue(issue, call.account, call.get_text("state_reason", "completed"))
    elif "state" in call.body:
        call.world.reopen_issue(issue, call.account)
    return build_response(issues.build_issue(call.world, issue))


@table.route("PUT", ISSUE + "/lock")
async def lock_issue(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "write", role="write")
    reason = call.get("lock_reason", str)
    issue_administration.lock_issue(call.world, call.issue, call.account, reason)
    return Response(status_code=204)


@table.route("DELETE", ISSUE + "/lock")
async def unlock_issue(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "write", role="write")
    issue_administration.unlock_issue(call.world, call.issue, call.account)
    return Response(status_code=204)


@table.route("GET", ISSUE + "/events")
async def list_events(call: ApiRequest) -> Response:
    """List the events of an issue, oldest first."""
    call.require_on_issue(call.issue, "read")
    told = [note for note in call.issue.timeline if note.event]
    return call.build_page(
        told, lambda note: issues.build_issue_event(call.world, call.issue, note)
    )


# ── comments ──


@table.route("GET", ISSUE + "/comments")
async def list_comments(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "read")
    since = call.get_query("since")
    found = [
        one
        for one in call.issue.comments
        if not since or (issues.format_time(one.updated) or "") >= since
    ]
    return call.build_page(found, lambda comment: issues.build_comment(call.world, comment))


@table.route("POST", ISSUE + "/comments")
async def create_comment(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "write")
    call.require_unlocked(call.issue)
    comment = call.world.add_comment(
        call.issue, call.account, call.get_required_text("body"), by_app=call.by_app
    )
    return build_response(issues.build_comment(call.world, comment), 201)


def _find_comment(call: ApiRequest) -> Comment:
    for issue in call.repo.issues.values():
        for comment in issue.comments:
            if comment.id == call.params["id"]:
                return comment
    raise not_found_error()


@table.route("GET", REPO + "/issues/comments/{id:int}")
async def get_comment(call: ApiRequest) -> Response:
    found = _find_comment(call)
    call.require_on_issue(found.issue, "read")
    return build_response(issues.build_comment(call.world, found))


@table.route("PATCH", REPO + "/issues/comments/{id:int}")
async def update_comment(call: ApiRequest) -> Response:
    found = _find_comment(call)
    call.require_on_issue(
        found.issue, "write", role="read" if call.who.user is found.author else "write"
    )
    call.world.edit_comment(found, call.account, call.get_required_text("body"))
    return build_response(issues.build_comment(call.world, found))


@table.route("DELETE", REPO + "/issues/comments/{id:int}")
async def delete_comment(call: ApiRequest) -> Response:
    found = _find_comment(call)
    call.require_on_issue(
        found.issue, "write", role="read" if call.who.user is found.author else "write"
    )
    call.world.delete_comment(found, call.account)
    return Response(status_code=204)


# ── labels ──


def _parse_label_name(given: object) -> str:
    if isinstance(given, dict):
        given = given.get("name")
    if not isinstance(given, str):
        raise invalid_field_error("Label", "name", "missing_field")
    return given


@table.route("GET", ISSUE + "/labels")
async def list_labels(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "read")
    return call.build_page(
        call.issue.labels, lambda label: issues.build_label(call.world, call.repo, label)
    )


@table.route("POST", ISSUE + "/labels")
async def add_labels(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "write", role="triage")
    given = call.body if isinstance(call.body, list) else call.get("labels", list, [])
    call.world.add_labels(call.issue, call.account, [_parse_label_name(label) for label in given])
    return build_response(issues.build_labels(call.world, call.issue))


@table.route("DELETE", ISSUE + "/labels/{name:path}")
async def remove_label(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "write", role="triage")
    call.world.remove_label(call.issue, call.account, call.params["name"])
    return build_response(issues.build_labels(call.world, call.issue))


# ── reactions ──


def _add_reaction(call: ApiRequest, issue: Issue, said: AuthoredText) -> Response:
    call.require_unlocked(issue, "reaction")
    reaction, new = call.world.add_reaction(said, call.account, call.get_required_text("content"))
    return build_response(issues.build_reaction(call.world, reaction), 201 if new else 200)


def _list_reactions(call: ApiRequest, said: AuthoredText) -> Response:
    content = call.get_query("content")
    found = [one for one in said.reactions if not content or one.content == content]
    return call.build_page(found, lambda reaction: issues.build_reaction(call.world, reaction))


@table.route("POST", ISSUE + "/reactions")
async def react_to_issue(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "write")
    return _add_reaction(call, call.issue, call.issue)


@table.route("GET", ISSUE + "/reactions")
async def list_issue_reactions(call: ApiRequest) -> Response:
    call.require_on_issue(call.issue, "read")
    return _list_reactions(call, call.issue)


@table.route("POST", REPO + "/issues/comments/{id:int}/reactions")
async def react_to_comment(call: ApiRequest) -> Response:
    found = _find_comment(call)
    call.require_on_issue(found.issue, "write")
    return _add_reaction(call, found.issue, found)


@table.route("GET", REPO + "/issues/comments/{id:int}/reactions")
async def list_comment_reactions(call: ApiRequest) -> Response:
    found = _find_comment(call)
    call.require_on_issue(found.issue, "read")
    return _list_reactions(call, found)


def find_line_comment(call: ApiRequest) -> LineComment:
    for pull in call.repo.pulls.values():
        for comment in pull.line_comments:
            if comment.id == call.params["id"]:
                return comment
    raise not_found_error()


@table.route("POST", REPO + "/pulls/comments/{id:int}/reactions")
async def react_to_line_comment(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:write")
    found = find_line_comment(call)
    return _add_reaction(call, found.thread.pull.issue, found)


@table.route("GET", REPO + "/pulls/comments/{id:int}/reactions")
async def list_line_comment_reactions(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    return _list_reactions(call, find_line_comment(call))
