"""The actions of the buttons and forms of the review page, each with its permission check."""

from collections.abc import Callable, Mapping

from starlette.datastructures import FormData

from osiris.devhub import pulls, reviews
from osiris.devhub.anchors import LineAnchor
from osiris.devhub.auth import Caller
from osiris.devhub.errors import ApiError, not_found_error
from osiris.devhub.models import Issue, Pull, Repo, ReviewThread
from osiris.devhub.world import World

FormTexts = Mapping[str, str]


def read_texts(form: FormData) -> dict[str, str]:
    """Return the fields of a form, with LF line ends (browsers send CRLF)."""
    return {
        name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)
    }


def list_allowed_actions(who: Caller, issue: Issue) -> dict[str, bool]:
    """Return which buttons to show; the actions check the permissions again."""
    repo = issue.repo
    own = who.user is issue.author
    signed_in = who.user is not None
    return {
        "comment": signed_in,
        "label": signed_in and who.may_access(repo, [], "triage"),
        "close": signed_in and (own or who.may_access(repo, [], "triage")),
        "steer": signed_in and (own or who.may_access(repo, [], "write")),
        "merge": signed_in and who.may_access(repo, [], "write"),
        "decide": signed_in and not own,
    }


def open_issue(world: World, who: Caller, repo: Repo, given: FormTexts) -> Issue:
    who.require_permission(repo, "issues:write")
    wanted = [name.strip() for name in given.get("labels", "").split(",") if name.strip()]
    if wanted:
        who.require_permission(repo, "issues:write", role="triage")
    return world.open_issue(
        repo, who.account, given.get("title", ""), given.get("body", ""), labels=wanted
    )


def run_action(world: World, who: Caller, issue: Issue, action: str, given: FormTexts) -> str:
    """Run one action. Return the anchor of what it created."""
    if action in ON_ISSUES:
        return ON_ISSUES[action](world, who, issue, given)
    if issue.pull is not None and action in ON_PULLS:
        return ON_PULLS[action](world, who, issue.pull, given)
    raise not_found_error()


# ── issues ──


def _add_comment(world: World, who: Caller, issue: Issue, given: FormTexts) -> str:
    who.require_permission(issue.repo, "issues:write")
    who.require_unlocked(issue)
    return f"issuecomment-{world.add_comment(issue, who.account, given.get('body', '')).id}"


def _add_label(world: World, who: Caller, issue: Issue, given: FormTexts) -> str:
    who.require_permission(issue.repo, "issues:write", role="triage")
    world.add_labels(issue, who.account, [given.get("name", "").strip()])
    return ""


def _remove_label(world: World, who: Caller, issue: Issue, given: FormTexts) -> str:
    who.require_permission(issue.repo, "issues:write", role="triage")
    world.remove_label(issue, who.account, given.get("name", ""))
    return ""


def _set_state(world: World, who: Caller, issue: Issue, given: FormTexts) -> str:
    who.require_permission(
        issue.repo, "issues:write", role="read" if who.user is issue.author else "triage"
    )
    to = given.get("to", "")
    if issue.pull is not None:
        pulls.set_state(world, issue.pull, who.account, "open" if to == "open" else "closed")
    elif to == "open":
        world.reopen_issue(issue, who.account)
    else:
        world.close_issue(issue, who.account, "not_planned" if to == "not_planned" else "completed")
    return ""


# ── pull requests ──


def _add_line_comment(world: World, who: Caller, pull: Pull, given: FormTexts) -> str:
    who.require_permission(pull.repo, "pull_requests:write")
    who.require_unlocked(pull.issue)
    number = given.get("line", "")
    if not number.isdigit() or given.get("side") not in ("LEFT", "RIGHT"):
        raise ApiError(422, "That line is not part of the diff.")
    anchor = LineAnchor(
        path=given.get("path", ""), line=int(number), side=given["side"], body=given.get("body", "")
    )
    return f"discussion_r{reviews.add_line_comment(world, pull, who.account, anchor).id}"


def _delete_line_comment(world: World, who: Caller, pull: Pull, given: FormTexts) -> str:
    comment = given.get("comment", "")
    reviews.delete_line_comment(pull, who.account, int(comment) if comment.isdigit() else 0)
    return ""


def _submit_review(world: World, who: Caller, pull: Pull, given: FormTexts) -> str:
    """Submit the pending review, or one without line comments."""
    who.require_permission(pull.repo, "pull_requests:write")
    who.require_unlocked(pull.issue)
    event = given.get("event") or "COMMENT"
    body = given.get("body", "")
    pending = reviews.find_pending(pull, who.account)
    if pending is not None:
        reviews.submit_review(world, pending, event, body)
        return f"pullrequestreview-{pending.id}"
    made = reviews.add_review(world, pull, who.account, reviews.NewReview(event=event, body=body))
    return f"pullrequestreview-{made.id}"


def _find_thread(pull: Pull, given: FormTexts) -> ReviewThread:
    found = next((one for one in pull.threads if str(one.id) == given.get("thread")), None)
    if found is None or found.comments[0].review.pending:
        raise not_found_error()
    return found


def _add_reply(world: World, who: Caller, pull: Pull, given: FormTexts) -> str:
    who.require_permission(pull.repo, "pull_requests:write")
    who.require_unlocked(pull.issue)
    top = _find_thread(pull, given).comments[0]
    return f"discussion_r{reviews.add_reply(world, top, who.account, given.get('body', '')).id}"


def _resolve_thread(world: World, who: Caller, pull: Pull, given: FormTexts) -> str:
    who.require_permission(
        pull.repo, "pull_requests:write", role="read" if who.user is pull.author else "write"
    )
    reviews.resolve_thread(world, _find_thread(pull, given), who.account, given.get("to") != "open")
    return ""


def _set_draft(world: World, who: Caller, pull: Pull, given: FormTexts) -> str:
    who.require_permission(
        pull.repo, "pull_requests:write", role="read" if who.user is pull.author else "write"
    )
    pulls.set_draft(world, pull, who.account, given.get("to") == "draft")
    return ""


def _merge_pull(world: World, who: Caller, pull: Pull, given: FormTexts) -> str:
    """Merge the commit that the page showed to the person; the form contains it."""
    who.require_permission(pull.repo, "contents:write", role="write")
    pulls.merge_pull(world, pull, who.account, sha=given.get("sha", ""))
    return ""


ON_ISSUES: dict[str, Callable[[World, Caller, Issue, FormTexts], str]] = {
    "comment": _add_comment,
    "label": _add_label,
    "unlabel": _remove_label,
    "state": _set_state,
}
ON_PULLS: dict[str, Callable[[World, Caller, Pull, FormTexts], str]] = {
    "line": _add_line_comment,
    "drop": _delete_line_comment,
    "review": _submit_review,
    "reply": _add_reply,
    "resolve": _resolve_thread,
    "draft": _set_draft,
    "merge": _merge_pull,
}
