"""The operations of reviews: line comments, pending reviews, submitting, replying, dismissing,
resolving."""

from collections.abc import Iterable
from dataclasses import dataclass

from osiris.devhub import diffs, pulls
from osiris.devhub.errors import ApiError, not_found_error, unprocessable_error
from osiris.devhub.models import App, LineComment, Pull, PullReview, ReviewThread, User
from osiris.devhub.world import World, check_body

STATES = {
    "APPROVE": "APPROVED",
    "REQUEST_CHANGES": "CHANGES_REQUESTED",
    "COMMENT": "COMMENTED",
    "": "PENDING",
}


@dataclass(frozen=True, kw_only=True)
class LineAnchor:
    """A new comment on one line of the diff."""

    path: str
    line: int
    body: str
    side: str = "RIGHT"


@dataclass(frozen=True, kw_only=True)
class NewReview:
    """The content of a new review; without an `event` it stays pending."""

    event: str = ""
    body: str = ""
    commit: str = ""
    lines: tuple[LineAnchor, ...] = ()


def add_review(
    world: World, pull: Pull, by: User, wanted: NewReview, *, by_app: App | None = None
) -> PullReview:
    """Create a review, and submit it at once unless it has no event."""
    check_body(wanted.body, "PullRequestReview")
    _check_event(pull, by, wanted.event, wanted.body, bool(wanted.lines))
    if find_pending(pull, by) is not None:
        raise unprocessable_error("User can only have one pending review per pull request")
    places = [_locate_line(pull, line) for line in wanted.lines]
    new = _create_review(world, pull, by, wanted, by_app)
    for line, (hunk, position) in zip(wanted.lines, places, strict=True):
        _add_thread(world, new, line, hunk, position)
    if wanted.event:
        _publish_review(world, new, wanted.event)
    return new


def find_pending(pull: Pull, by: User) -> PullReview | None:
    return next((review for review in pull.reviews if review.pending and review.author is by), None)


def add_line_comment(world: World, pull: Pull, by: User, line: LineAnchor) -> LineComment:
    """Add a line comment to the person's pending review; start one when there is none."""
    check_body(line.body, "PullRequestReviewComment", needed=True)
    hunk, position = _locate_line(pull, line)
    pending = find_pending(pull, by) or _create_review(world, pull, by, NewReview(), None)
    return _add_thread(world, pending, line, hunk, position)


def delete_line_comment(pull: Pull, by: User, comment_id: int) -> None:
    """Remove a line comment from a review that is still pending."""
    pending = find_pending(pull, by)
    comment = next((c for c in pending.comments if c.id == comment_id), None) if pending else None
    if pending is None or comment is None:
        raise not_found_error()
    pending.comments.remove(comment)
    pull.threads.remove(comment.thread)
    if not pending.comments and not pending.body:
        pull.reviews.remove(pending)


def submit_review(world: World, pending: PullReview, event: str, body: str) -> None:
    if not pending.pending:
        raise unprocessable_error("The review has already been submitted")
    body = body or pending.body
    check_body(body, "PullRequestReview")
    _check_event(pending.pull, pending.author, event, body, bool(pending.comments))
    pending.body = body
    _publish_review(world, pending, event)


def _check_event(pull: Pull, by: User, event: str, body: str, lines: bool) -> None:
    if event not in STATES:
        raise unprocessable_error(
            "Variable $event of type PullRequestReviewEvent was provided invalid value"
        )
    if by is pull.author and event == "APPROVE":
        raise unprocessable_error("Can not approve your own pull request")
    if by is pull.author and event == "REQUEST_CHANGES":
        raise unprocessable_error("Can not request changes on your own pull request")
    if event in ("REQUEST_CHANGES", "COMMENT") and not body.strip() and not lines:
        raise unprocessable_error(
            "A review needs some words: say what should change, or comment on a line"
        )


def _create_review(
    world: World, pull: Pull, by: User, wanted: NewReview, by_app: App | None
) -> PullReview:
    new = PullReview(
        id=world.next_id(),
        pull=pull,
        author=by,
        by_app=by_app,
        body=wanted.body,
        state="PENDING",
        commit=wanted.commit or pull.head_sha,
        created=world.now(),
        updated=world.now(),
    )
    pull.reviews.append(new)
    world.index_resources(new)
    return new


def _publish_review(world: World, new: PullReview, event: str) -> None:
    new.state = STATES[event]
    new.submitted = world.now()
    pull = new.pull
    pull.issue.updated = world.now()
    world.publish_event(
        "pull_request_review", "submitted", pull.repo, new.author, pull=pull, review=new
    )
    for comment in new.comments:
        _publish_comment(world, comment)


def _publish_comment(world: World, comment: LineComment) -> None:
    pull = comment.thread.pull
    world.publish_event(
        "pull_request_review_comment",
        "created",
        pull.repo,
        comment.author,
        pull=pull,
        comment=comment,
    )


def _locate_line(pull: Pull, line: LineAnchor) -> tuple[str, int]:
    check_body(line.body, "PullRequestReviewComment", needed=True)
    patches = {change.path: change.patch or "" for change in pulls.list_changes(pull)}
    if line.path not in patches:
        raise unprocessable_error("Path could not be resolved")
    place = diffs.find_hunk(patches[line.path], line.line, line.side)
    if place is None:
        raise unprocessable_error("Line could not be resolved: it must be part of the diff")
    return place


def _add_thread(
    world: World, on: PullReview, line: LineAnchor, hunk: str, position: int
) -> LineComment:
    thread = ReviewThread(id=world.next_id(), pull=on.pull)
    comment = LineComment(
        id=world.next_id(),
        review=on,
        thread=thread,
        author=on.author,
        by_app=on.by_app,
        body=line.body,
        created=world.now(),
        updated=world.now(),
        path=line.path,
        line=line.line,
        side=line.side,
        original_line=line.line,
        commit=on.pull.head_sha,
        original_commit=on.pull.head_sha,
        hunk=hunk,
        position=position,
        original_position=position,
    )
    thread.comments.append(comment)
    on.comments.append(comment)
    on.pull.threads.append(thread)
    world.index_resources(thread, comment)
    return comment


def add_reply(
    world: World, to: LineComment, by: User, body: str, *, by_app: App | None = None
) -> LineComment:
    """Reply to the top comment of a thread; GitHub wraps each reply in a separate review."""
    check_body(body, "PullRequestReviewComment", needed=True)
    if to.reply_to is not None:
        raise unprocessable_error("Replies go to the top comment of a thread")
    pull = to.thread.pull
    wrap = _create_review(world, pull, by, NewReview(), by_app)
    comment = LineComment(
        id=world.next_id(),
        review=wrap,
        thread=to.thread,
        author=by,
        by_app=by_app,
        body=body,
        created=world.now(),
        updated=world.now(),
        path=to.path,
        line=to.line,
        side=to.side,
        original_line=to.original_line,
        commit=to.commit,
        original_commit=to.original_commit,
        hunk=to.hunk,
        position=to.position,
        original_position=to.original_position,
        reply_to=to,
    )
    to.thread.comments.append(comment)
    wrap.comments.append(comment)
    world.index_resources(comment)
    _publish_review(world, wrap, "COMMENT")
    return comment


def dismiss_review(world: World, done: PullReview, by: User, message: str) -> None:
    if done.state not in ("APPROVED", "CHANGES_REQUESTED"):
        raise unprocessable_error("Can not dismiss a commented pull request review")
    if not message.strip():
        raise unprocessable_error("Message can't be blank")
    done.state = "DISMISSED"
    pull = done.pull
    pull.issue.updated = world.now()
    world.add_note(pull.issue, by, f"dismissed {done.author.login}’s review: {message}")
    world.publish_event("pull_request_review", "dismissed", pull.repo, by, pull=pull, review=done)


def resolve_thread(world: World, thread: ReviewThread, by: User, resolved: bool) -> None:
    if (thread.resolved_by is not None) == resolved:
        return
    thread.resolved_by = by if resolved else None
    action = "resolved" if resolved else "unresolved"
    world.publish_event(
        "pull_request_review_thread", action, thread.pull.repo, by, pull=thread.pull, thread=thread
    )


def discard_review(pending: PullReview) -> None:
    """Delete a pending review."""
    if not pending.pending:
        raise ApiError(422, "Can not delete a non-pending pull request review")
    for comment in pending.comments:
        comment.thread.pull.threads.remove(comment.thread)
    pending.pull.reviews.remove(pending)


def list_latest_states(reviews: Iterable[PullReview]) -> dict[str, PullReview]:
    """Return the last decision of each reviewer; comments are not decisions."""
    return {
        r.author.login: r
        for r in reviews
        if r.state in ("APPROVED", "CHANGES_REQUESTED", "DISMISSED")
    }
