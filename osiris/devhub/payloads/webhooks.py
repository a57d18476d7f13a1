"""From something that happened to the JSON an app is sent."""

from collections.abc import Callable, Sequence

from osiris.devhub.models import Happening, Installation, LineComment, Pull, Repo, Review, Thread
from osiris.devhub.payloads import apps, code, issues
from osiris.devhub.payloads.issues import Json
from osiris.devhub.pulls import NO_COMMIT
from osiris.devhub.world import World

OF_SUITES_ALONE = ("check_runs_url", "head_commit", "latest_check_runs_count", "rerequestable", "runs_rerequestable")
"""What GitHub says of a suite, but not where it tells of one of its runs."""


def payload(world: World, happening: Happening, installation: Installation) -> Json:
    """The whole body of one webhook, as things stand at this moment."""
    return {
        **({"action": happening.action} if happening.action else {}),
        **SHAPES[happening.event](world, happening),
        "repository": issues.repository(world, happening.repo),
        "organization": issues.organization(world, happening.repo.owner),
        "installation": {"id": installation.id, "node_id": installation.node_id},
        "sender": issues.user(world, happening.by),
    }


def _more(world: World, happening: Happening) -> Json:
    """The keys that only some actions carry."""
    subject = happening.subject
    more: Json = {name: subject[name] for name in ("changes", "before", "after") if name in subject}
    if "label" in subject:
        more["label"] = issues.label(world, happening.repo, subject["label"])
    return more


def _issues(world: World, happening: Happening) -> Json:
    issue = issues.issue(world, happening.subject["issue"])
    del issue["closed_by"]  # REST alone tells
    return {"issue": issue, **_more(world, happening)}


def _issue_comment(world: World, happening: Happening) -> Json:
    return {**_issues(world, happening), "comment": issues.comment(world, happening.subject["comment"])}


def _pull_request(world: World, happening: Happening) -> Json:
    pull = happening.subject["issue"].pull
    return {"number": pull.number, "pull_request": code.pull(world, pull), **_more(world, happening)}


def _pull_request_review(world: World, happening: Happening) -> Json:
    pull: Pull = happening.subject["pull"]
    review: Review = happening.subject["review"]
    shape = code.review(world, review)
    # webhooks write a review's state in small letters, REST in capitals
    shape |= {"state": review.state.lower(), "body": review.body or None}
    return {"review": shape, "pull_request": code.pull_simple(world, pull)}


def _pull_request_review_comment(world: World, happening: Happening) -> Json:
    comment: LineComment = happening.subject["comment"]
    pull = code.pull_simple(world, happening.subject["pull"])
    return {"comment": code.line_comment(world, comment), "pull_request": pull}


def _pull_request_review_thread(world: World, happening: Happening) -> Json:
    thread: Thread = happening.subject["thread"]
    comments = [code.line_comment(world, comment) for comment in thread.comments]
    pull = code.pull_simple(world, thread.pull)
    return {"thread": {"node_id": thread.node_id, "comments": comments}, "pull_request": pull}


def _push(world: World, happening: Happening) -> Json:
    repo, subject = happening.repo, happening.subject
    before, after = subject["before"], subject["after"]
    created, deleted = before == NO_COMMIT, after == NO_COMMIT
    commits = [] if deleted else _pushed(world, happening, before, after)
    page = issues.repo_page(world, repo)
    return {
        "ref": f"refs/heads/{subject['branch']}",
        "before": before,
        "after": after,
        "created": created,
        "deleted": deleted,
        "forced": not created and not deleted and not repo.git.is_ancestor(before, after),
        "base_ref": None,
        "compare": f"{page}/compare/{before[:12]}...{after[:12]}",
        "commits": commits,
        "head_commit": commits[-1] if commits else None,
        "pusher": {"name": happening.by.login, "email": f"{happening.by.login}@users.noreply.devhub.invalid"},
    }


def _pushed(world: World, happening: Happening, before: str, after: str) -> list[Json]:
    git, repo = happening.repo.git, happening.repo
    if before == NO_COMMIT:
        before = git.merge_base(repo.heads.get(repo.default_branch, after), after) or after
    commits = git.commits(before, after, limit=20) or [git.commit(after)]
    pairs = [(commit, commit.parents[0] if commit.parents else commit.sha) for commit in commits]
    return [code.pushed_commit(world, repo, commit, git.changes(parent, commit.sha)) for commit, parent in pairs]


def _check_run(world: World, happening: Happening) -> Json:
    run = happening.subject["run"]
    suite = {name: value for name, value in apps.check_suite(world, run.suite).items() if name not in OF_SUITES_ALONE}
    ended = run.status == "completed"
    suite |= {"status": run.status, "conclusion": suite["conclusion"] if ended else None}
    return {"check_run": apps.check_run(world, run) | {"check_suite": suite}}


def _check_suite(world: World, happening: Happening) -> Json:
    return {"check_suite": apps.check_suite(world, happening.subject["suite"])}


def _repository(world: World, happening: Happening) -> Json:
    subject = happening.subject
    if "old_name" in subject:
        return {"changes": {"repository": {"name": {"from": subject["old_name"]}}}}
    if "old_owner" in subject:
        return {"changes": {"owner": {"from": {"organization": issues.organization(world, subject["old_owner"])}}}}
    return {}


def installed(world: World, installation: Installation, action: str) -> Json:
    """The body of `installation`, which is about no single repository."""
    return {
        "action": action,
        "installation": apps.installation(world, installation),
        "repositories": [apps.small_repository(repo) for repo in installation.repos],
        "requester": None,
        "sender": issues.user(world, installation.suspended_by or installation.account),
    }


def selected(world: World, installation: Installation, added: Sequence[Repo], removed: Sequence[Repo]) -> Json:
    """The body of `installation_repositories`."""
    return {
        "action": "added" if added else "removed",
        "installation": apps.installation(world, installation),
        "repository_selection": "selected",
        "repositories_added": [apps.small_repository(repo) for repo in added],
        "repositories_removed": [apps.small_repository(repo) for repo in removed],
        "requester": None,
        "sender": issues.user(world, installation.account),
    }


SHAPES: dict[str, Callable[[World, Happening], Json]] = {
    "issues": _issues,
    "issue_comment": _issue_comment,
    "pull_request": _pull_request,
    "pull_request_review": _pull_request_review,
    "pull_request_review_comment": _pull_request_review_comment,
    "pull_request_review_thread": _pull_request_review_thread,
    "push": _push,
    "check_run": _check_run,
    "check_suite": _check_suite,
    "repository": _repository,
}
