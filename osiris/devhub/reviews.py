"""The operations of reviews: line comments, pending reviews, submitting, replying, dismissing,
resolving."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from osiris.devhub import anchors, pulls
from osiris.devhub.anchors import LineAnchor, Place
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
class NewReview:
    """The content of a new review; without an `event` it stays pending.

    `is_single_comment` says that it only wraps a comment that was made without a review.
    """

    event: str = ""
    body: str = ""
    commit: str = ""
    lines: tuple[LineAnchor, ...] = ()
    is_single_comment: bool = False


def add_review(
    world: World, pull: Pull, by: User, wanted: NewReview, *, by_app: App | None = None
) -> PullReview:
    """Create a review, and submit it at once unless it has no event."""
    check_body(wanted.body, "PullRequestReview")
    _check_event(pull, by, wanted.event, wanted.body, bool(wanted.lines))
    if find_pending(pull, by) is not None:
        raise unprocessable_error("User can only have one pending review per pull request")
    in_review = not wanted.is_single_comment
    places = [_locate_anchor(pull, line, in_review=in_review) for line in wanted.lines]
    new = _create_review(world, pull, by, wanted, by_app)
    for line, place in zip(wanted.lines, places, strict=True):
        _add_thread(world, new, line, place)
    if wanted.event:
        _publish_review(world, new, wanted.event)
    return new


def find_pending(pull: Pull, by: User) -> PullReview | None:
    return next((review for review in pull.reviews if review.pending and review.author is by), None)


def add_line_comment(world: World, pull: Pull, by: User, line: LineAnchor) -> LineComment:
    """Add a line comment to the person's pending review; start one when there is none."""
    place = _locate_anchor(pull, line, in_review=True)
    pending = find_pending(pull, by) or _create_review(world, pull, by, NewReview(), None)
    return _add_thread(world, pending, line, place)


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
        _publish_comment(world, comment, "created", comment.author)


def _publish_comment(
    world: World, comment: LineComment, action: str, by: User, **more: Any
) -> None:
    pull = comment.thread.pull
    world.publish_event(
        "pull_request_review_comment", action, pull.repo, by, pull=pull, comment=comment, **more
    )


def _locate_anchor(pull: Pull, line: LineAnchor, *, in_review: bool) -> Place:
    check_body(line.body, "PullRequestReviewComment", needed=True)
    return anchors.locate_anchor(pulls.list_changes(pull), line, in_review=in_review)


def _add_thread(world: World, on: PullReview, line: LineAnchor, place: Place) -> LineComment:
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
        hunk=place.hunk,
        position=place.position,
        original_position=place.position,
        start_line=line.start_line,
        original_start_line=line.start_line,
        start_side=line.first_side if line.start_line is not None else None,
    )
    thread.comments.append(comment)
    on.comments.append(comment)
    on.pull.threads.append(thread)
    world.index_resources(thread, comment)
    return comment


def add_reply(
    world: World, to: LineComment, by: User, body: str, *, by_app: App | None = None
) -> LineComment:
    """Reply to the top comment of a thread, in the same place; GitHub wraps each reply in a
    separate review."""
    check_body(body, "PullRequestReviewComment", needed=True)
    if to.reply_to is not None:
        raise unprocessable_error("Replies go to the top comment of a thread")
    pull = to.thread.pull
    wrap = _create_review(world, pull, by, NewReview(), by_app)
    comment = replace(
        to,
        id=world.next_id(),
        review=wrap,
        author=by,
        by_app=by_app,
        body=body,
        created=world.now(),
        updated=world.now(),
        reactions=[],
        reply_to=to,
    )
    to.thread.comments.append(comment)
    wrap.comments.append(comment)
    world.index_resources(comment)
    _publish_review(world, wrap, "COMMENT")
    return comment


def edit_line_comment(world: World, comment: LineComment, by: User, body: str) -> None:
    check_body(body, "PullRequestReviewComment", needed=True)
    changes = {"body": {"from": comment.body}}
    comment.body = body
    comment.updated = world.now()
    _publish_comment(world, comment, "edited", by, changes=changes)


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
