"""The operations of pull requests: opening, following pushes, marking as ready, merging."""

import re
from dataclasses import dataclass

from osiris.devhub import anchors
from osiris.devhub.errors import ApiError, invalid_field_error, unprocessable_error
from osiris.devhub.git_repository import Change
from osiris.devhub.models import App, Pull, Repo, User
from osiris.devhub.world import World

CLOSING = re.compile(r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?):?\s+#(\d+)\b", re.IGNORECASE)
NO_COMMIT = "0" * 40


@dataclass(frozen=True, kw_only=True)
class NewPull:
    """The content of a new pull request."""

    title: str
    body: str
    head: str
    base: str
    draft: bool = False


def open_pull(
    world: World, repo: Repo, by: User, wanted: NewPull, *, by_app: App | None = None
) -> Pull:
    head = _parse_branch(repo, wanted.head)
    head_sha, base_sha = _resolve_ends(repo, head, wanted.base)
    _check_new(repo, head, head_sha, wanted.base, base_sha)
    issue = world.create_issue(repo, by, wanted.title, wanted.body, by_app=by_app)
    issue.pull = Pull(
        id=world.next_id(),
        issue=issue,
        head_ref=head,
        head_sha=head_sha,
        base_ref=wanted.base,
        base_sha=base_sha,
        draft=wanted.draft,
    )
    world.index_resources(issue.pull)
    repo.git.update_ref(f"refs/pull/{issue.number}/head", head_sha)
    world.publish_event("pull_request", "opened", repo, by, issue=issue)
    return issue.pull


def _parse_branch(repo: Repo, head: str) -> str:
    """Return the branch of `owner:branch`. The hub has no forks, so another owner is an error."""
    owner, colon, branch = head.partition(":")
    if colon and owner.lower() != repo.owner.login.lower():
        raise invalid_field_error("PullRequest", "head")
    return branch if colon else head


def _resolve_ends(repo: Repo, head: str, base: str) -> tuple[str, str]:
    head_sha = repo.git.resolve_commit(f"refs/heads/{head}")
    base_sha = repo.git.resolve_commit(f"refs/heads/{base}")
    if head_sha is None:
        raise invalid_field_error("PullRequest", "head")
    if base_sha is None:
        raise invalid_field_error("PullRequest", "base")
    return head_sha, base_sha


def _check_new(repo: Repo, head: str, head_sha: str, base: str, base_sha: str) -> None:
    name = f"{repo.owner.login}:{head}"
    for pull in repo.pulls.values():
        if pull.state == "open" and (pull.head_ref, pull.base_ref) == (head, base):
            raise invalid_field_error(
                "PullRequest", "", "custom", f"A pull request already exists for {name}."
            )
    if repo.git.is_ancestor(head_sha, base_sha):
        raise invalid_field_error(
            "PullRequest", "", "custom", f"No commits between {base} and {head}"
        )


# ── reading ──


def find_fork_point(pull: Pull) -> str:
    """Return the commit from which the changes of the pull request are counted."""
    return pull.repo.git.find_merge_base(pull.base_sha, pull.head_sha) or pull.base_sha


def list_changes(pull: Pull) -> list[Change]:
    return pull.repo.git.list_changes(find_fork_point(pull), pull.head_sha)


def is_mergeable(pull: Pull) -> bool | None:
    """Return whether the branch merges cleanly; None for a closed pull request."""
    if pull.state == "closed":
        return None
    return pull.repo.git.merge_tree(pull.base_sha, pull.head_sha) is not None


def get_merge_state(pull: Pull, clean: bool | None) -> str:
    """Return GitHub's word for the state of a pull request before its merge."""
    if clean is None:
        return "unknown"
    if not clean:
        return "dirty"
    if pull.draft:
        return "draft"
    latest = {(run.app.slug, run.name): run for run in pull.repo.checks if run.sha == pull.head_sha}
    good = all(run.conclusion in ("success", "neutral", "skipped") for run in latest.values())
    return "clean" if good else "unstable"


# ── state ──


def set_draft(world: World, pull: Pull, by: User, draft: bool) -> None:
    if pull.draft == draft:
        return
    if pull.state == "closed":
        raise unprocessable_error("The pull request is closed")
    pull.draft = draft
    pull.issue.updated = world.now()
    action = "converted_to_draft" if draft else "ready_for_review"
    event = "convert_to_draft" if draft else "ready_for_review"
    world.add_note(
        pull.issue, by, "marked this as a draft" if draft else "marked this ready for review", event
    )
    world.publish_event("pull_request", action, pull.repo, by, issue=pull.issue)


def set_state(world: World, pull: Pull, by: User, state: str) -> None:
    """Close or reopen a pull request; a merged one cannot be reopened."""
    if state == "closed":
        world.close_issue(pull.issue, by)
        return
    if pull.merged:
        raise invalid_field_error(
            "PullRequest", "state", "invalid", "The pull request is merged and cannot be reopened"
        )
    if pull.state == "open":
        return
    head_sha = pull.repo.heads.get(pull.head_ref)
    if head_sha is None:
        raise invalid_field_error(
            "PullRequest", "state", "invalid", f"The {pull.head_ref} branch was deleted."
        )
    pull.head_sha = head_sha
    world.reopen_issue(pull.issue, by)


def merge_pull(
    world: World, pull: Pull, by: User, *, sha: str = "", method: str = "merge", title: str = ""
) -> str:
    """Merge, publish the events, and close the issues that the body names. Return the new
    commit."""
    _check_merge(pull, sha, method)
    git = pull.repo.git
    tree = git.merge_tree(pull.base_sha, pull.head_sha)
    if tree is None:
        raise ApiError(405, "Pull Request is not mergeable")
    if method == "squash":
        parents: tuple[str, ...] = (pull.base_sha,)
        message = f"{title or pull.title} (#{pull.number})\n"
    else:
        parents = (pull.base_sha, pull.head_sha)
        words = (
            title
            or f"Merge pull request #{pull.number} from {pull.repo.owner.login}/{pull.head_ref}"
        )
        message = f"{words}\n\n{pull.title}\n"
    commit = git.commit_tree(tree, parents, message, world.build_signature(by), world.now())
    git.update_ref(f"refs/heads/{pull.base_ref}", commit, pull.base_sha)
    _record_merge(world, pull, by, commit)
    return commit


def _check_merge(pull: Pull, sha: str, method: str) -> None:
    if pull.state == "closed":
        raise ApiError(405, "Pull Request is not mergeable")
    if pull.draft:
        raise ApiError(405, "Pull Request is still a draft")
    if sha and sha != pull.head_sha:
        raise ApiError(409, "Head branch was modified. Review and try the merge again.")
    if method not in ("merge", "squash"):
        raise ApiError(405, f"{method.capitalize()} merges are not allowed on this repository.")


def _record_merge(world: World, pull: Pull, by: User, commit: str) -> None:
    issue = pull.issue
    now = world.now()
    pull.merged_at = now
    pull.merged_by = by
    pull.merge_commit = commit
    issue.state = "closed"
    issue.closed = now
    issue.closed_by = by
    issue.updated = now
    world.add_note(
        issue, by, f"merged {pull.head_sha[:7]} into {pull.base_ref}", "merged", commit=commit
    )
    world.add_note(issue, by, "", "closed")
    world.publish_event("pull_request", "closed", pull.repo, by, issue=issue)
    for number in CLOSING.findall(pull.body):
        closed = pull.repo.issues.get(int(number))
        if closed is not None and closed.pull is None and pull.base_ref == pull.repo.default_branch:
            world.close_issue(closed, by)
    sync_refs(world, pull.repo, by)


# ── pushes ──


def sync_refs(world: World, repo: Repo, by: User) -> None:
    """Compare the branches on disk with those in the world, and publish the changes.

    Every change of a branch (a push, a merge) ends here, so that none is published twice.
    """
    before = repo.heads
    repo.heads = repo.git.list_heads()
    for branch in sorted(before.keys() | repo.heads.keys()):
        old = before.get(branch, NO_COMMIT)
        new = repo.heads.get(branch, NO_COMMIT)
        if old == new:
            continue
        world.publish_event("push", None, repo, by, branch=branch, before=old, after=new)
        for pull in list(repo.pulls.values()):
            _follow_push(world, pull, by, branch, new)


def _follow_push(world: World, pull: Pull, by: User, branch: str, sha: str) -> None:
    if pull.state == "closed":
        return
    if pull.base_ref == branch and sha != NO_COMMIT:
        pull.base_sha = sha
    if pull.head_ref != branch:
        return
    if sha == NO_COMMIT:
        world.add_note(pull.issue, by, f"deleted the branch {branch}", "head_ref_deleted")
        world.close_issue(pull.issue, by)
        return
    before = pull.head_sha
    pull.head_sha = sha
    pull.issue.updated = world.now()
    pull.repo.git.update_ref(f"refs/pull/{pull.number}/head", sha)
    world.add_note(pull.issue, by, f"pushed {sha[:7]}")
    anchors.move_comments(pull, list_changes(pull))
    world.publish_event(
        "pull_request", "synchronize", pull.repo, by, issue=pull.issue, before=before, after=sha
    )
