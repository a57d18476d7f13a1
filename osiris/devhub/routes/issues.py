"""REST for issues, their comments, labels and reactions."""

from collections.abc import Callable, Mapping

from starlette.responses import Response

from osiris.devhub.errors import invalid, not_found
from osiris.devhub.models import Comment, Issue, LineComment, Said
from osiris.devhub.payloads import issues
from osiris.devhub.routes.request import Call, Table, answer

table = Table()
REPO = "/repos/{owner}/{repo}"
ISSUE = REPO + "/issues/{number:int}"
ORDERS: Mapping[str, Callable[[Issue], tuple[float, int]]] = {
    "created": lambda issue: (issue.number, 0),
    "updated": lambda issue: (int(issue.updated), issue.number),
    "comments": lambda issue: (len(issue.comments), issue.number),
}


@table.on("GET", REPO + "/issues")
async def listed(call: Call) -> Response:
    call.need("issues:read", "pull_requests:read")
    up = call.query("direction", "desc") == "asc"
    found = sorted(call.repo.issues.values(), key=ORDERS.get(call.query("sort"), ORDERS["created"]), reverse=not up)
    return call.paged([issue for issue in found if _wanted(call, issue)], lambda one: issues.issue(call.world, one))


def _wanted(call: Call, issue: Issue) -> bool:
    state, creator = call.query("state", "open"), call.query("creator")
    labels = {name for name in call.query("labels").lower().split(",") if name}
    since = call.query("since")
    return (
        state in ("all", issue.state)
        and labels <= {label.name.lower() for label in issue.labels}
        and (not creator or issue.author.login.lower() == creator.lower())
        and (not since or (issues.iso(issue.updated) or "") >= since)
    )


@table.on("POST", REPO + "/issues")
async def opened(call: Call) -> Response:
    call.need("issues:write")
    labels = [_label_name(label) for label in call.get("labels", list, [])]
    # like GitHub, labels of people who may not set them are dropped without a word
    kept = labels if call.who.may(call.repo, ["issues:write"], "triage") else []
    title, body = call.required("title"), call.text("body")
    issue = call.world.open_issue(call.repo, call.by, title, body, labels=kept, by_app=call.by_app)
    return answer(issues.issue(call.world, issue), 201)


@table.on("GET", ISSUE)
async def shown(call: Call) -> Response:
    call.need_on(call.issue, "read")
    return answer(issues.issue(call.world, call.issue))


@table.on("PATCH", ISSUE)
async def changed(call: Call) -> Response:
    issue = call.issue
    call.need_on(issue, "write", role="read" if call.who.user is issue.author else "triage")
    state = call.text("state", issue.state)
    if state not in ("open", "closed"):
        raise invalid("Issue", "state")
    call.world.edit_issue(issue, call.by, title=call.given("title"), body=call.given("body"))
    if state == "closed":
        call.world.close_issue(issue, call.by, call.text("state_reason", "completed"))
    elif "state" in call.body:
        call.world.reopen_issue(issue, call.by)
    return answer(issues.issue(call.world, issue))


@table.on("GET", ISSUE + "/events")
async def events(call: Call) -> Response:
    """Oldest first."""
    call.need_on(call.issue, "read")
    told = [note for note in call.issue.timeline if note.event]
    return call.paged(told, lambda note: issues.issue_event(call.world, call.issue, note))


# ── comments ──


@table.on("GET", ISSUE + "/comments")
async def comments(call: Call) -> Response:
    call.need_on(call.issue, "read")
    since = call.query("since")
    found = [one for one in call.issue.comments if not since or (issues.iso(one.updated) or "") >= since]
    return call.paged(found, lambda comment: issues.comment(call.world, comment))


@table.on("POST", ISSUE + "/comments")
async def commented(call: Call) -> Response:
    call.need_on(call.issue, "write")
    comment = call.world.comment(call.issue, call.by, call.required("body"), by_app=call.by_app)
    return answer(issues.comment(call.world, comment), 201)


def _comment(call: Call) -> Comment:
    for issue in call.repo.issues.values():
        for comment in issue.comments:
            if comment.id == call.params["id"]:
                return comment
    raise not_found()


@table.on("GET", REPO + "/issues/comments/{id:int}")
async def comment(call: Call) -> Response:
    found = _comment(call)
    call.need_on(found.issue, "read")
    return answer(issues.comment(call.world, found))


@table.on("PATCH", REPO + "/issues/comments/{id:int}")
async def comment_changed(call: Call) -> Response:
    found = _comment(call)
    call.need_on(found.issue, "write", role="read" if call.who.user is found.author else "write")
    call.world.edit_comment(found, call.by, call.required("body"))
    return answer(issues.comment(call.world, found))


@table.on("DELETE", REPO + "/issues/comments/{id:int}")
async def comment_deleted(call: Call) -> Response:
    found = _comment(call)
    call.need_on(found.issue, "write", role="read" if call.who.user is found.author else "write")
    call.world.delete_comment(found, call.by)
    return Response(status_code=204)


# ── labels ──


def _label_name(given: object) -> str:
    if isinstance(given, dict):
        given = given.get("name")
    if not isinstance(given, str):
        raise invalid("Label", "name", "missing_field")
    return given


@table.on("GET", ISSUE + "/labels")
async def labels(call: Call) -> Response:
    call.need_on(call.issue, "read")
    return call.paged(call.issue.labels, lambda label: issues.label(call.world, call.repo, label))


@table.on("POST", ISSUE + "/labels")
async def labeled(call: Call) -> Response:
    call.need_on(call.issue, "write", role="triage")
    given = call.body if isinstance(call.body, list) else call.get("labels", list, [])
    call.world.label(call.issue, call.by, [_label_name(label) for label in given])
    return answer(issues.labels(call.world, call.issue))


@table.on("DELETE", ISSUE + "/labels/{name:path}")
async def unlabeled(call: Call) -> Response:
    call.need_on(call.issue, "write", role="triage")
    call.world.unlabel(call.issue, call.by, call.params["name"])
    return answer(issues.labels(call.world, call.issue))


# ── reactions ──


def _react(call: Call, said: Said) -> Response:
    reaction, new = call.world.react(said, call.by, call.required("content"))
    return answer(issues.reaction(call.world, reaction), 201 if new else 200)


def _reactions(call: Call, said: Said) -> Response:
    content = call.query("content")
    found = [one for one in said.reactions if not content or one.content == content]
    return call.paged(found, lambda reaction: issues.reaction(call.world, reaction))


@table.on("POST", ISSUE + "/reactions")
async def issue_reacted(call: Call) -> Response:
    call.need_on(call.issue, "write")
    return _react(call, call.issue)


@table.on("GET", ISSUE + "/reactions")
async def issue_reactions(call: Call) -> Response:
    call.need_on(call.issue, "read")
    return _reactions(call, call.issue)


@table.on("POST", REPO + "/issues/comments/{id:int}/reactions")
async def comment_reacted(call: Call) -> Response:
    found = _comment(call)
    call.need_on(found.issue, "write")
    return _react(call, found)


@table.on("GET", REPO + "/issues/comments/{id:int}/reactions")
async def comment_reactions(call: Call) -> Response:
    found = _comment(call)
    call.need_on(found.issue, "read")
    return _reactions(call, found)


def line_comment(call: Call) -> LineComment:
    for pull in call.repo.pulls.values():
        for comment in pull.line_comments:
            if comment.id == call.params["id"]:
                return comment
    raise not_found()


@table.on("POST", REPO + "/pulls/comments/{id:int}/reactions")
async def line_comment_reacted(call: Call) -> Response:
    call.need("pull_requests:write")
    return _react(call, line_comment(call))


@table.on("GET", REPO + "/pulls/comments/{id:int}/reactions")
async def line_comment_reactions(call: Call) -> Response:
    call.need("pull_requests:read")
    return _reactions(call, line_comment(call))
