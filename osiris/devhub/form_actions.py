"""What the buttons and boxes of the review page do, each with its own permission."""

from collections.abc import Callable, Mapping

from starlette.datastructures import FormData

from osiris.devhub import pulls, reviews
from osiris.devhub.auth import Who
from osiris.devhub.errors import Denied, not_found
from osiris.devhub.models import Issue, Pull, Repo, Thread
from osiris.devhub.world import World

Texts = Mapping[str, str]


def texts(form: FormData) -> dict[str, str]:
    """A form's fields, with the line ends people mean (browsers send CRLF)."""
    return {name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)}


def may(who: Who, issue: Issue) -> dict[str, bool]:
    """Which buttons are worth showing; the deeds check again."""
    repo, own = issue.repo, who.user is issue.author
    signed_in = who.user is not None
    return {
        "comment": signed_in,
        "label": signed_in and who.may(repo, [], "triage"),
        "close": signed_in and (own or who.may(repo, [], "triage")),
        "steer": signed_in and (own or who.may(repo, [], "write")),
        "merge": signed_in and who.may(repo, [], "write"),
        "decide": signed_in and not own,
    }


def open_issue(world: World, who: Who, repo: Repo, given: Texts) -> Issue:
    who.need(repo, "issues:write")
    wanted = [name.strip() for name in given.get("labels", "").split(",") if name.strip()]
    if wanted:
        who.need(repo, "issues:write", role="triage")
    return world.open_issue(repo, who.name, given.get("title", ""), given.get("body", ""), labels=wanted)


def act(world: World, who: Who, issue: Issue, deed: str, given: Texts) -> str:
    """Do one deed; gives the anchor of what it made."""
    if deed in ON_ISSUES:
        return ON_ISSUES[deed](world, who, issue, given)
    if issue.pull is not None and deed in ON_PULLS:
        return ON_PULLS[deed](world, who, issue.pull, given)
    raise not_found()


# ── issues ──


def _comment(world: World, who: Who, issue: Issue, given: Texts) -> str:
    who.need(issue.repo, "issues:write")
    return f"issuecomment-{world.comment(issue, who.name, given.get('body', '')).id}"


def _label(world: World, who: Who, issue: Issue, given: Texts) -> str:
    who.need(issue.repo, "issues:write", role="triage")
    world.label(issue, who.name, [given.get("name", "").strip()])
    return ""


def _unlabel(world: World, who: Who, issue: Issue, given: Texts) -> str:
    who.need(issue.repo, "issues:write", role="triage")
    world.unlabel(issue, who.name, given.get("name", ""))
    return ""


def _state(world: World, who: Who, issue: Issue, given: Texts) -> str:
    who.need(issue.repo, "issues:write", role="read" if who.user is issue.author else "triage")
    to = given.get("to", "")
    if issue.pull is not None:
        pulls.set_state(world, issue.pull, who.name, "open" if to == "open" else "closed")
    elif to == "open":
        world.reopen_issue(issue, who.name)
    else:
        world.close_issue(issue, who.name, "not_planned" if to == "not_planned" else "completed")
    return ""


# ── pull requests ──


def _line(world: World, who: Who, pull: Pull, given: Texts) -> str:
    who.need(pull.repo, "pull_requests:write")
    number = given.get("line", "")
    if not number.isdigit() or given.get("side") not in ("LEFT", "RIGHT"):
        raise Denied(422, "That line is not part of the diff.")
    wish = reviews.Line(path=given.get("path", ""), line=int(number), side=given["side"], body=given.get("body", ""))
    return f"discussion_r{reviews.add_line(world, pull, who.name, wish).id}"


def _drop(world: World, who: Who, pull: Pull, given: Texts) -> str:
    comment = given.get("comment", "")
    reviews.drop_line(pull, who.name, int(comment) if comment.isdigit() else 0)
    return ""


def _review(world: World, who: Who, pull: Pull, given: Texts) -> str:
    """Submit the pending review, or one without line comments."""
    who.need(pull.repo, "pull_requests:write")
    event, body = given.get("event") or "COMMENT", given.get("body", "")
    pending = reviews.pending_of(pull, who.name)
    if pending is not None:
        reviews.submit(world, pending, event, body)
        return f"pullrequestreview-{pending.id}"
    return f"pullrequestreview-{reviews.review(world, pull, who.name, reviews.Wanted(event=event, body=body)).id}"


def _thread(pull: Pull, given: Texts) -> Thread:
    found = next((one for one in pull.threads if str(one.id) == given.get("thread")), None)
    if found is None or found.comments[0].review.pending:
        raise not_found()
    return found


def _reply(world: World, who: Who, pull: Pull, given: Texts) -> str:
    who.need(pull.repo, "pull_requests:write")
    top = _thread(pull, given).comments[0]
    return f"discussion_r{reviews.reply(world, top, who.name, given.get('body', '')).id}"


def _resolve(world: World, who: Who, pull: Pull, given: Texts) -> str:
    who.need(pull.repo, "pull_requests:write", role="read" if who.user is pull.author else "write")
    reviews.resolve(world, _thread(pull, given), who.name, given.get("to") != "open")
    return ""


def _draft(world: World, who: Who, pull: Pull, given: Texts) -> str:
    who.need(pull.repo, "pull_requests:write", role="read" if who.user is pull.author else "write")
    pulls.set_draft(world, pull, who.name, given.get("to") == "draft")
    return ""


def _merge(world: World, who: Who, pull: Pull, given: Texts) -> str:
    """Merge what the person saw: the page sends the commit it showed."""
    who.need(pull.repo, "contents:write", role="write")
    pulls.merge(world, pull, who.name, sha=given.get("sha", ""))
    return ""


ON_ISSUES: dict[str, Callable[[World, Who, Issue, Texts], str]] = {
    "comment": _comment,
    "label": _label,
    "unlabel": _unlabel,
    "state": _state,
}
ON_PULLS: dict[str, Callable[[World, Who, Pull, Texts], str]] = {
    "line": _line,
    "drop": _drop,
    "review": _review,
    "reply": _reply,
    "resolve": _resolve,
    "draft": _draft,
    "merge": _merge,
}
