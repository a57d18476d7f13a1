"""The JSON that apps receive for an event."""

from collections.abc import Callable, Sequence

from osiris.devhub.models import (
    HubEvent,
    Installation,
    Issue,
    LineComment,
    Pull,
    PullReview,
    Repo,
    ReviewThread,
)
from osiris.devhub.payloads import apps, code, issues
from osiris.devhub.payloads.issues import Json
from osiris.devhub.pulls import NO_COMMIT
from osiris.devhub.world import World

OF_SUITES_ALONE = (
    "check_runs_url",
    "head_commit",
    "latest_check_runs_count",
    "rerequestable",
    "runs_rerequestable",
)
"""The fields of a suite that GitHub leaves out inside of one of its runs."""


def build_payload(world: World, item: HubEvent, installation: Installation) -> Json:
    """Return the body of one webhook, with the present state of its objects."""
    return {
        **({"action": item.action} if item.action else {}),
        **SHAPES[item.event](world, item),
        "repository": issues.build_repository(world, item.repo),
        "organization": issues.build_organization(world, item.repo.owner),
        "installation": {"id": installation.id, "node_id": installation.node_id},
        "sender": issues.build_user(world, item.by),
    }


def _build_extra_keys(world: World, item: HubEvent) -> Json:
    """Return the keys that only some actions have."""
    subject = item.subject
    more: Json = {name: subject[name] for name in ("changes", "before", "after") if name in subject}
    if "label" in subject:
        more["label"] = issues.build_label(world, item.repo, subject["label"])
    for name in ("new_issue", "old_issue"):
        if name in subject:
            more["changes"] = _build_transfer(world, name, subject[name])
    return more


def _build_transfer(world: World, name: str, issue: Issue) -> Json:
    """Return the other end of a transfer."""
    repository = issues.build_repository(world, issue.repo)
    return {
        name: _build_issue(world, issue),
        name.replace("issue", "repository"): repository,
    }


def _build_issue(world: World, issue: Issue) -> Json:
    shape = issues.build_issue(world, issue)
    del shape["closed_by"]  # only REST has it
    return shape


def _build_issues(world: World, item: HubEvent) -> Json:
    issue = _build_issue(world, item.subject["issue"])
    return {"issue": issue, **_build_extra_keys(world, item)}


def _build_issue_comment(world: World, item: HubEvent) -> Json:
    return {
        **_build_issues(world, item),
        "comment": issues.build_comment(world, item.subject["comment"]),
    }


def _build_pull_request(world: World, item: HubEvent) -> Json:
    pull = item.subject["issue"].pull
    return {
        "number": pull.number,
        "pull_request": code.build_pull(world, pull),
        **_build_extra_keys(world, item),
    }


def _build_review(world: World, item: HubEvent) -> Json:
    pull: Pull = item.subject["pull"]
    review: PullReview = item.subject["review"]
    shape = code.build_review(world, review)
    # webhooks have a review's state in lower case, REST in capitals
    shape |= {"state": review.state.lower(), "body": review.body or None}
    return {"review": shape, "pull_request": code.build_simple_pull(world, pull)}


def _build_review_comment(world: World, item: HubEvent) -> Json:
    comment: LineComment = item.subject["comment"]
    pull = code.build_simple_pull(world, item.subject["pull"])
    shape = code.build_line_comment(world, comment)
    return {"comment": shape, "pull_request": pull, **_build_extra_keys(world, item)}


def _build_review_thread(world: World, item: HubEvent) -> Json:
    thread: ReviewThread = item.subject["thread"]
    comments = [code.build_line_comment(world, comment) for comment in thread.comments]
    pull = code.build_simple_pull(world, thread.pull)
    return {"thread": {"node_id": thread.node_id, "comments": comments}, "pull_request": pull}


def _build_push(world: World, item: HubEvent) -> Json:
    repo, subject = item.repo, item.subject
    before = subject["before"]
    after = subject["after"]
    created = before == NO_COMMIT
    deleted = after == NO_COMMIT
    commits = [] if deleted else _list_pushed_commits(world, item, before, after)
    page = issues.build_repo_page_url(world, repo)
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
        "pusher": {
            "name": item.by.login,
            "email": f"{item.by.login}@users.noreply.devhub.invalid",
        },
    }


def _list_pushed_commits(world: World, item: HubEvent, before: str, after: str) -> list[Json]:
    git, repo = item.repo.git, item.repo
    if before == NO_COMMIT:
        before = git.find_merge_base(repo.heads.get(repo.default_branch, after), after) or after
    commits = git.list_commits(before, after, limit=20) or [git.read_commit(after)]
    pairs = [(commit, commit.parents[0] if commit.parents else commit.sha) for commit in commits]
    return [
        code.build_pushed_commit(world, repo, commit, git.list_changes(parent, commit.sha))
        for commit, parent in pairs
    ]


def _build_check_run(world: World, item: HubEvent) -> Json:
    run = item.subject["run"]
    suite = {
        name: value
        for name, value in apps.build_check_suite(world, run.suite).items()
        if name not in OF_SUITES_ALONE
    }
    ended = run.status == "completed"
    suite |= {"status": run.status, "conclusion": suite["conclusion"] if ended else None}
    return {"check_run": apps.build_check_run(world, run) | {"check_suite": suite}}


def _build_check_suite(world: World, item: HubEvent) -> Json:
    return {"check_suite": apps.build_check_suite(world, item.subject["suite"])}


def _build_repository(world: World, item: HubEvent) -> Json:
    subject = item.subject
    if "old_name" in subject:
        return {"changes": {"repository": {"name": {"from": subject["old_name"]}}}}
    if "old_owner" in subject:
        return {
            "changes": {
                "owner": {
                    "from": {"organization": issues.build_organization(world, subject["old_owner"])}
                }
            }
        }
    return {}


def build_installation_payload(world: World, installation: Installation, action: str) -> Json:
    """Return the body of `installation`, which is not about a single repository."""
    return {
        "action": action,
        "installation": apps.build_installation(world, installation),
        "repositories": [apps.build_small_repository(repo) for repo in installation.repos],
        "requester": None,
        "sender": issues.build_user(world, installation.suspended_by or installation.account),
    }


def build_repositories_payload(
    world: World, installation: Installation, added: Sequence[Repo], removed: Sequence[Repo]
) -> Json:
    """Return the body of `installation_repositories`."""
    return {
        "action": "added" if added else "removed",
        "installation": apps.build_installation(world, installation),
        "repository_selection": "selected",
        "repositories_added": [apps.build_small_repository(repo) for repo in added],
        "repositories_removed": [apps.build_small_repository(repo) for repo in removed],
        "requester": None,
        "sender": issues.build_user(world, installation.account),
    }


SHAPES: dict[str, Callable[[World, HubEvent], Json]] = {
    "issues": _build_issues,
    "issue_comment": _build_issue_comment,
    "pull_request": _build_pull_request,
    "pull_request_review": _build_review,
    "pull_request_review_comment": _build_review_comment,
    "pull_request_review_thread": _build_review_thread,
    "push": _build_push,
    "check_run": _build_check_run,
    "check_suite": _build_check_suite,
    "repository": _build_repository,
}
