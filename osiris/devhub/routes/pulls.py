"""REST for pull requests and their reviews."""

from starlette.responses import Response

from osiris.devhub import pulls, reviews
from osiris.devhub.errors import Denied, invalid, not_found, unprocessable
from osiris.devhub.models import Pull, Review
from osiris.devhub.payloads import code
from osiris.devhub.routes.issues import line_comment
from osiris.devhub.routes.request import Call, Table, answer

table = Table()
REPO = "/repos/{owner}/{repo}"
PULL = REPO + "/pulls/{number:int}"
REVIEW = PULL + "/reviews/{id:int}"


@table.on("GET", REPO + "/pulls")
async def listed(call: Call) -> Response:
    call.need("pull_requests:read")
    found = sorted(call.repo.pulls.values(), key=lambda pull: -pull.number)
    return call.paged([one for one in found if _wanted(call, one)], lambda one: code.pull_simple(call.world, one))


def _wanted(call: Call, pull: Pull) -> bool:
    state, head, base = call.query("state", "open"), call.query("head"), call.query("base")
    name = f"{pull.repo.owner.login}:{pull.head_ref}"
    # GitHub ignores a head filter without its owner
    return state in ("all", pull.state) and (":" not in head or head == name) and base in ("", pull.base_ref)


@table.on("POST", REPO + "/pulls")
async def opened(call: Call) -> Response:
    call.need("pull_requests:write", role="write")
    wanted = pulls.Wanted(
        title=call.required("title"),
        body=call.text("body"),
        head=call.required("head"),
        base=call.required("base"),
        draft=call.get("draft", bool, False),
    )
    pull = pulls.open_pull(call.world, call.repo, call.by, wanted, by_app=call.by_app)
    return answer(code.pull(call.world, pull), 201)


@table.on("GET", PULL)
async def shown(call: Call) -> Response:
    call.need("pull_requests:read")
    return answer(code.pull(call.world, call.pull))


@table.on("PATCH", PULL)
async def changed(call: Call) -> Response:
    pull = call.pull
    call.need("pull_requests:write", role="read" if call.who.user is pull.author else "write")
    state = call.text("state")
    if state not in ("", "open", "closed"):
        raise invalid("PullRequest", "state")
    call.world.edit_issue(pull.issue, call.by, title=call.given("title"), body=call.given("body"))
    if state:
        pulls.set_state(call.world, pull, call.by, state)
    return answer(code.pull(call.world, pull))


@table.on("GET", PULL + "/files")
async def files(call: Call) -> Response:
    call.need("pull_requests:read")
    shape = lambda one: code.changed_file(call.world, call.repo, call.pull.head_sha, one)  # noqa: E731
    return call.paged(pulls.changes(call.pull), shape)


@table.on("GET", PULL + "/commits")
async def commits(call: Call) -> Response:
    call.need("pull_requests:read")
    pull = call.pull
    found = call.repo.git.commits(pulls.fork_point(pull), pull.head_sha)
    return call.paged(found, lambda one: code.commit(call.world, call.repo, one))


@table.on("GET", PULL + "/merge")
async def is_merged(call: Call) -> Response:
    call.need("pull_requests:read", "contents:read")
    if not call.pull.merged:
        raise not_found()
    return Response(status_code=204)


@table.on("PUT", PULL + "/merge")
async def merged(call: Call) -> Response:
    pull = call.pull
    call.need("contents:write", role="write")
    method, title = call.text("merge_method", "merge"), call.text("commit_title")
    commit = pulls.merge(call.world, pull, call.by, sha=call.text("sha"), method=method, title=title)
    return answer({"sha": commit, "merged": True, "message": "Pull Request successfully merged"})


# ── reviews ──


@table.on("GET", PULL + "/reviews")
async def review_list(call: Call) -> Response:
    call.need("pull_requests:read")
    seen = [one for one in call.pull.reviews if not one.pending or one.author is call.who.user]
    return call.paged(seen, lambda one: code.review(call.world, one))


@table.on("POST", PULL + "/reviews")
async def reviewed(call: Call) -> Response:
    call.need("pull_requests:write")
    commit = call.text("commit_id")
    if commit and call.repo.git.resolve(commit) is None:
        raise unprocessable("The commit_id is not part of the pull request")
    lines = tuple(_line(given) for given in call.get("comments", list, []))
    wanted = reviews.Wanted(event=call.text("event"), body=call.text("body"), commit=commit, lines=lines)
    review = reviews.review(call.world, call.pull, call.by, wanted, by_app=call.by_app)
    return answer(code.review(call.world, review))


def _line(given: object) -> reviews.Line:
    if not isinstance(given, dict) or not isinstance(given.get("path"), str) or not isinstance(given.get("body"), str):
        raise unprocessable("A review comment needs a path, a line and a body")
    line, side = given.get("line"), given.get("side", "RIGHT")
    if not isinstance(line, int) or side not in ("LEFT", "RIGHT"):
        raise unprocessable("A review comment needs a path, a line and a body")
    return reviews.Line(path=given["path"], line=line, body=given["body"], side=side)


def _review(call: Call) -> Review:
    for review in call.pull.reviews:
        if review.id == call.params["id"] and (not review.pending or review.author is call.who.user):
            return review
    raise not_found()


@table.on("GET", REVIEW)
async def review(call: Call) -> Response:
    call.need("pull_requests:read")
    return answer(code.review(call.world, _review(call)))


@table.on("DELETE", REVIEW)
async def discarded(call: Call) -> Response:
    call.need("pull_requests:write")
    found = _review(call)
    reviews.discard(found)
    return answer(code.review(call.world, found))


@table.on("POST", REVIEW + "/events")
async def submitted(call: Call) -> Response:
    call.need("pull_requests:write")
    found = _review(call)
    if found.author is not call.by:
        raise Denied(403, "Only the author of a pending review may submit it")
    reviews.submit(call.world, found, call.required("event"), call.text("body"))
    return answer(code.review(call.world, found))


@table.on("GET", REVIEW + "/comments")
async def review_comments(call: Call) -> Response:
    call.need("pull_requests:read")
    return call.paged(_review(call).comments, lambda one: code.line_comment(call.world, one))


@table.on("PUT", REVIEW + "/dismissals")
async def dismissed(call: Call) -> Response:
    call.need("pull_requests:write", role="write")
    found = _review(call)
    reviews.dismiss(call.world, found, call.by, call.required("message"))
    return answer(code.review(call.world, found))


# ── line comments ──


@table.on("GET", PULL + "/comments")
async def line_comments(call: Call) -> Response:
    call.need("pull_requests:read")
    return call.paged(call.pull.line_comments, lambda one: code.line_comment(call.world, one))


@table.on("POST", PULL + "/comments")
async def line_commented(call: Call) -> Response:
    """One line comment by itself: a review of one, submitted at once."""
    call.need("pull_requests:write")
    if call.get("in_reply_to", int) is not None:
        return _replied(call, call.get("in_reply_to", int))
    wanted = reviews.Wanted(event="COMMENT", lines=(_line(call.body),))
    new = reviews.review(call.world, call.pull, call.by, wanted, by_app=call.by_app)
    return answer(code.line_comment(call.world, new.comments[0]), 201)


@table.on("POST", PULL + "/comments/{id:int}/replies")
async def replied(call: Call) -> Response:
    call.need("pull_requests:write")
    return _replied(call, call.params["id"])


def _replied(call: Call, top: int) -> Response:
    to = next((one for one in call.pull.line_comments if one.id == top), None)
    if to is None:
        raise not_found()
    comment = reviews.reply(call.world, to, call.by, call.required("body"), by_app=call.by_app)
    return answer(code.line_comment(call.world, comment), 201)


@table.on("GET", REPO + "/pulls/comments/{id:int}")
async def one_line_comment(call: Call) -> Response:
    call.need("pull_requests:read")
    return answer(code.line_comment(call.world, line_comment(call)))
