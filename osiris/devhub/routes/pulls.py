"""REST for pull requests and their reviews."""

from starlette.responses import Response

from osiris.devhub import pulls, reviews
from osiris.devhub.anchors import LineAnchor
from osiris.devhub.errors import ApiError, invalid_field_error, not_found_error, unprocessable_error
from osiris.devhub.models import Pull, PullReview
from osiris.devhub.payloads import code
from osiris.devhub.payloads.issues import format_time
from osiris.devhub.routes.issues import find_line_comment
from osiris.devhub.routes.request import ApiRequest, RouteTable, build_response

table = RouteTable()
REPO = "/repos/{owner}/{repo}"
PULL = REPO + "/pulls/{number:int}"
REVIEW = PULL + "/reviews/{id:int}"


@table.route("GET", REPO + "/pulls")
async def list_pulls(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    found = sorted(call.repo.pulls.values(), key=lambda pull: -pull.number)
    return call.build_page(
        [one for one in found if _matches_query(call, one)],
        lambda one: code.build_simple_pull(call.world, one),
    )


def _matches_query(call: ApiRequest, pull: Pull) -> bool:
    state = call.get_query("state", "open")
    head = call.get_query("head")
    base = call.get_query("base")
    name = f"{pull.repo.owner.login}:{pull.head_ref}"
    # GitHub ignores a head filter without its owner
    return (
        state in ("all", pull.state)
        and (":" not in head or head == name)
        and base in ("", pull.base_ref)
    )


@table.route("POST", REPO + "/pulls")
async def open_pull(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:write", role="write")
    wanted = pulls.NewPull(
        title=call.get_required_text("title"),
        body=call.get_text("body"),
        head=call.get_required_text("head"),
        base=call.get_required_text("base"),
        draft=call.get("draft", bool, False),
    )
    pull = pulls.open_pull(call.world, call.repo, call.account, wanted, by_app=call.by_app)
    return build_response(code.build_pull(call.world, pull), 201)


@table.route("GET", PULL)
async def get_pull(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    return build_response(code.build_pull(call.world, call.pull))


@table.route("PATCH", PULL)
async def update_pull(call: ApiRequest) -> Response:
    pull = call.pull
    call.require_permission(
        "pull_requests:write", role="read" if call.who.user is pull.author else "write"
    )
    state = call.get_text("state")
    if state not in ("", "open", "closed"):
        raise invalid_field_error("PullRequest", "state")
    call.world.edit_issue(
        pull.issue,
        call.account,
        title=call.get_optional_text("title"),
        body=call.get_optional_text("body"),
    )
    if state:
        pulls.set_state(call.world, pull, call.account, state)
    return build_response(code.build_pull(call.world, pull))


@table.route("GET", PULL + "/files")
async def list_files(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    shape = lambda one: code.build_changed_file(call.world, call.repo, call.pull.head_sha, one)  # noqa: E731
    return call.build_page(pulls.list_changes(call.pull), shape)


@table.route("GET", PULL + "/commits")
async def list_commits(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    pull = call.pull
    found = call.repo.git.list_commits(pulls.find_fork_point(pull), pull.head_sha)
    return call.build_page(found, lambda one: code.build_commit(call.world, call.repo, one))


@table.route("GET", PULL + "/merge")
async def check_merged(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read", "contents:read")
    if not call.pull.merged:
        raise not_found_error()
    return Response(status_code=204)


@table.route("PUT", PULL + "/merge")
async def merge_pull(call: ApiRequest) -> Response:
    pull = call.pull
    call.require_permission("contents:write", role="write")
    method = call.get_text("merge_method", "merge")
    title = call.get_text("commit_title")
    commit = pulls.merge_pull(
        call.world, pull, call.account, sha=call.get_text("sha"), method=method, title=title
    )
    return build_response(
        {"sha": commit, "merged": True, "message": "Pull Request successfully merged"}
    )


# ── reviews ──


@table.route("GET", PULL + "/reviews")
async def list_reviews(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    seen = [one for one in call.pull.reviews if not one.pending or one.author is call.who.user]
    return call.build_page(seen, lambda one: code.build_review(call.world, one))


@table.route("POST", PULL + "/reviews")
async def create_review(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:write")
    call.require_unlocked(call.pull.issue)
    commit = call.get_text("commit_id")
    if commit and call.repo.git.resolve_commit(commit) is None:
        raise unprocessable_error("The commit_id is not part of the pull request")
    lines = tuple(_parse_line(given) for given in call.get("comments", list, []))
    wanted = reviews.NewReview(
        event=call.get_text("event"), body=call.get_text("body"), commit=commit, lines=lines
    )
    review = reviews.add_review(call.world, call.pull, call.account, wanted, by_app=call.by_app)
    return build_response(code.build_review(call.world, review))


def _parse_line(given: object) -> LineAnchor:
    fields = given if isinstance(given, dict) else {}
    path = fields.get("path")
    body = fields.get("body")
    line = fields.get("line")
    start = fields.get("start_line")
    side = fields.get("side") or "RIGHT"
    start_side = fields.get("start_side")
    if (
        not (isinstance(path, str) and isinstance(body, str) and isinstance(line, int))
        or side not in ("LEFT", "RIGHT")
        or not isinstance(start, int | None)
        or start_side not in ("LEFT", "RIGHT", None)
    ):
        raise unprocessable_error("A review comment needs a path, a line and a body")
    return LineAnchor(
        path=path, line=line, body=body, side=side, start_line=start, start_side=start_side
    )


def _find_review(call: ApiRequest) -> PullReview:
    for review in call.pull.reviews:
        if review.id == call.params["id"] and (
            not review.pending or review.author is call.who.user
        ):
            return review
    raise not_found_error()


@table.route("GET", REVIEW)
async def get_review(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    return build_response(code.build_review(call.world, _find_review(call)))


@table.route("DELETE", REVIEW)
async def delete_review(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:write")
    found = _find_review(call)
    reviews.discard_review(found)
    return build_response(code.build_review(call.world, found))


@table.route("POST", REVIEW + "/events")
async def submit_review(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:write")
    call.require_unlocked(call.pull.issue)
    found = _find_review(call)
    if found.author is not call.account:
        raise ApiError(403, "Only the author of a pending review may submit it")
    reviews.submit_review(call.world, found, call.get_required_text("event"), call.get_text("body"))
    return build_response(code.build_review(call.world, found))


@table.route("GET", REVIEW + "/comments")
async def list_review_comments(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    return call.build_page(
        _find_review(call).comments, lambda one: code.build_legacy_line_comment(call.world, one)
    )


@table.route("PUT", REVIEW + "/dismissals")
async def dismiss_review(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:write", role="write")
    found = _find_review(call)
    reviews.dismiss_review(call.world, found, call.account, call.get_required_text("message"))
    return build_response(code.build_review(call.world, found))


# ── line comments ──


@table.route("GET", PULL + "/comments")
async def list_line_comments(call: ApiRequest) -> Response:
    """List the line comments, oldest first unless the query has another order."""
    call.require_permission("pull_requests:read")
    sort = call.get_query("sort")
    since = call.get_query("since")
    found = [
        one
        for one in call.pull.line_comments
        if not since or (format_time(one.updated) or "") >= since
    ]
    if sort == "updated":
        found.sort(key=lambda one: (one.updated, one.id))
    # GitHub ignores a direction without a sort
    if sort in ("created", "updated") and call.get_query("direction") == "desc":
        found.reverse()
    return call.build_page(found, lambda one: code.build_line_comment(call.world, one))


@table.route("POST", PULL + "/comments")
async def create_line_comment(call: ApiRequest) -> Response:
    """Create one line comment, as a separate review that is submitted at once."""
    call.require_permission("pull_requests:write")
    call.require_unlocked(call.pull.issue)
    if call.get("in_reply_to", int) is not None:
        return _add_reply(call, call.get("in_reply_to", int))
    if call.get_text("subject_type") == "file":
        path = call.get_required_text("path")
        line = LineAnchor(path=path, line=None, body=call.get_required_text("body"))
    else:
        line = _parse_line(call.body)
    wanted = reviews.NewReview(event="COMMENT", lines=(line,), is_single_comment=True)
    new = reviews.add_review(call.world, call.pull, call.account, wanted, by_app=call.by_app)
    return build_response(code.build_line_comment(call.world, new.comments[0]), 201)


@table.route("POST", PULL + "/comments/{id:int}/replies")
async def create_reply(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:write")
    call.require_unlocked(call.pull.issue)
    return _add_reply(call, call.params["id"])


def _add_reply(call: ApiRequest, top: int) -> Response:
    to = next((one for one in call.pull.line_comments if one.id == top), None)
    if to is None:
        raise not_found_error()
    comment = reviews.add_reply(
        call.world, to, call.account, call.get_required_text("body"), by_app=call.by_app
    )
    return build_response(code.build_line_comment(call.world, comment), 201)


@table.route("GET", REPO + "/pulls/comments/{id:int}")
async def get_line_comment(call: ApiRequest) -> Response:
    call.require_permission("pull_requests:read")
    return build_response(code.build_line_comment(call.world, find_line_comment(call)))


@table.route("PATCH", REPO + "/pulls/comments/{id:int}")
async def update_line_comment(call: ApiRequest) -> Response:
    found = find_line_comment(call)
    call.require_permission(
        "pull_requests:write", role="read" if call.who.user is found.author else "write"
    )
    reviews.edit_line_comment(call.world, found, call.account, call.get_required_text("body"))
    return build_response(code.build_line_comment(call.world, found))
