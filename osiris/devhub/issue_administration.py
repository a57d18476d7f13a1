"""The administration of issues: locking their conversations, deleting, transferring."""

from dataclasses import replace

from osiris.devhub.errors import invalid_field_error, unprocessable_error
from osiris.devhub.models import Issue, Repo, User
from osiris.devhub.world import World

LOCK_REASONS = ("off-topic", "too heated", "resolved", "spam")


def lock_issue(world: World, issue: Issue, by: User, reason: str | None = None) -> None:
    """Lock the conversation of an issue or pull request: only people with write access may
    comment. `reason` is one of `LOCK_REASONS`."""
    if reason is not None and reason not in LOCK_REASONS:
        raise invalid_field_error("Issue", "lock_reason")
    if issue.locked:
        return
    issue.locked = True
    issue.lock_reason = reason
    words = f"locked this as {reason}" if reason else "locked this"
    _record_lock(world, issue, by, words, "locked")


def unlock_issue(world: World, issue: Issue, by: User) -> None:
    if not issue.locked:
        return
    issue.locked = False
    issue.lock_reason = None
    _record_lock(world, issue, by, "unlocked this", "unlocked")


def _record_lock(world: World, issue: Issue, by: User, words: str, event: str) -> None:
    issue.updated = world.now()
    world.add_note(issue, by, words, event, lock_reason=issue.lock_reason)
    kind = "pull_request" if issue.pull else "issues"
    world.publish_event(kind, event, issue.repo, by, issue=issue)


def delete_issue(world: World, issue: Issue, by: User) -> None:
    """Delete an issue with its comments. Its number is not given to another one."""
    _check_is_issue(issue, "deleted")
    world.publish_event("issues", "deleted", issue.repo, by, issue=issue)
    world.deleted_issues.add((issue.repo.id, issue.number))
    _remove_issue(world, issue)
    world.forget_resources(*issue.comments)


def transfer_issue(
    world: World, issue: Issue, by: User, target: Repo, *, create_labels: bool = False
) -> Issue:
    """Move an issue with its comments to another repository of the same owner, and return it as it
    is there: with another id and number, and with those labels that this repository has, unless
    `create_labels`."""
    _check_is_issue(issue, "transferred")
    if target is issue.repo or target.owner is not issue.repo.owner:
        raise unprocessable_error("Issues can only be transferred to a repository of their owner")
    if issue.repo.private and not target.private:
        raise unprocessable_error("Issues of a private repository cannot become public")
    labels = [
        label for label in issue.labels if create_labels or label.name.lower() in target.labels
    ]
    new = replace(
        issue,
        id=world.next_id(),
        repo=target,
        number=world.next_number(target),
        labels=[world.ensure_label(target, label.name) for label in labels],
        comments=list(issue.comments),
        timeline=list(issue.timeline),
        reactions=list(issue.reactions),
        updated=world.now(),
    )
    for comment in new.comments:
        comment.issue = new
    target.issues[new.number] = new
    world.index_resources(new)
    world.moved_issues[issue.repo.id, issue.number] = new
    _remove_issue(world, issue)
    world.add_note(new, by, f"transferred this from {issue.repo.full_name}", "transferred")
    world.publish_event("issues", "transferred", issue.repo, by, issue=issue, new_issue=new)
    world.publish_event("issues", "opened", target, by, issue=new, old_issue=issue)
    return new


def _check_is_issue(issue: Issue, what: str) -> None:
    if issue.pull is not None:
        raise unprocessable_error(f"Pull requests cannot be {what}")


def _remove_issue(world: World, issue: Issue) -> None:
    del issue.repo.issues[issue.number]
    world.forget_resources(issue)
