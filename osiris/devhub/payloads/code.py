"""The JSON of pull requests, reviews, line comments, commits and changed files."""

import base64
from typing import Any

from osiris.devhub import pulls
from osiris.devhub.git_repository import Change, Commit, Signature
from osiris.devhub.models import LineComment, Pull, PullReview, Repo
from osiris.devhub.payloads import issues
from osiris.devhub.payloads.issues import (
    Json,
    build_issue_page_url,
    build_issue_url,
    build_repo_page_url,
    build_repo_url,
    format_time,
)
from osiris.devhub.world import World

OF_LINES = (
    "line",
    "original_line",
    "side",
    "start_line",
    "original_start_line",
    "start_side",
    "subject_type",
)
"""The fields of a line comment that its legacy shape does not have."""


def build_pull_url(world: World, pull: Pull) -> str:
    return f"{build_repo_url(world, pull.repo)}/pulls/{pull.number}"


def _build_end(world: World, repo: Repo, ref: str, sha: str) -> Json:
    """Return GitHub's `head` or `base`."""
    return {
        "label": f"{repo.owner.login}:{ref}",
        "ref": ref,
        "sha": sha,
        "user": issues.build_user(world, repo.owner),
        "repo": issues.build_repository(world, repo),
    }


def _build_links(**urls: str) -> Json:
    return {name: {"href": url} for name, url in urls.items()}


def build_simple_pull(world: World, pull: Pull) -> Json:
    """Return the shorter shape that lists use."""
    url = build_pull_url(world, pull)
    page = build_issue_page_url(world, pull.issue)
    issue = build_issue_url(world, pull.issue)
    statuses = f"{build_repo_url(world, pull.repo)}/statuses/{pull.head_sha}"
    links = {
        "comments": f"{issue}/comments",
        "review_comments": f"{url}/comments",
        "review_comment": f"{build_repo_url(world, pull.repo)}/pulls/comments{{/number}}",
        "commits": f"{url}/commits",
        "statuses": statuses,
    }
    return {
        **issues.build_authored_text(world, pull.issue, pull.repo),
        "id": pull.id,
        "node_id": pull.node_id,
        "body": pull.body or None,
        "url": url,
        "html_url": page,
        "diff_url": f"{page}.diff",
        "patch_url": f"{page}.patch",
        "issue_url": issue,
        **{f"{name}_url": link for name, link in links.items()},
        "_links": _build_links(self=url, html=page, issue=issue, **links),
        "number": pull.number,
        "state": pull.state,
        "title": pull.title,
        "labels": issues.build_labels(world, pull.issue),
        "draft": pull.draft,
        "closed_at": format_time(pull.issue.closed),
        "merged_at": format_time(pull.merged_at),
        "merge_commit_sha": pull.merge_commit,
        "head": _build_end(world, pull.repo, pull.head_ref, pull.head_sha),
        "base": _build_end(world, pull.repo, pull.base_ref, pull.base_sha),
        "locked": pull.issue.locked,
        "active_lock_reason": pull.issue.lock_reason,
        **dict.fromkeys(("assignee", "milestone", "auto_merge")),
        **{name: [] for name in ("assignees", "requested_reviewers", "requested_teams")},
    }


def build_pull(world: World, pull: Pull) -> Json:
    changed = pulls.list_changes(pull)
    clean = pulls.is_mergeable(pull)
    return {
        **build_simple_pull(world, pull),
        "merged": pull.merged,
        "mergeable": clean,
        "rebaseable": clean,
        "mergeable_state": pulls.get_merge_state(pull, clean),
        "merged_by": issues.build_user(world, pull.merged_by) if pull.merged_by else None,
        "comments": len(pull.issue.comments),
        "review_comments": len(pull.line_comments),
        "maintainer_can_modify": False,
        "commits": pull.repo.git.count_commits(pulls.find_fork_point(pull), pull.head_sha),
        "additions": sum(change.additions for change in changed),
        "deletions": sum(change.deletions for change in changed),
        "changed_files": len(changed),
    }


def build_review(world: World, review: PullReview) -> Json:
    page = f"{build_issue_page_url(world, review.pull.issue)}#pullrequestreview-{review.id}"
    shape = {
        **issues.build_authored_text(world, review, review.pull.repo),
        "state": review.state,
        "html_url": page,
        "pull_request_url": build_pull_url(world, review.pull),
        "_links": _build_links(html=page, pull_request=build_pull_url(world, review.pull)),
        "commit_id": review.commit,
        "submitted_at": format_time(review.submitted),
    }
    absent = (
        ("created_at", "updated_at")
        if review.submitted
        else ("created_at", "updated_at", "submitted_at")
    )
    return {name: value for name, value in shape.items() if name not in absent}


def build_line_comment(world: World, comment: LineComment) -> Json:
    pull = comment.thread.pull
    url = f"{build_repo_url(world, pull.repo)}/pulls/comments/{comment.id}"
    page = f"{build_issue_page_url(world, pull.issue)}#discussion_r{comment.id}"
    shape = {
        **issues.build_authored_text(world, comment, pull.repo),
        "url": url,
        "html_url": page,
        "pull_request_url": build_pull_url(world, pull),
        "pull_request_review_id": comment.review.id,
        "diff_hunk": comment.hunk,
        "path": comment.path,
        "commit_id": comment.commit,
        "original_commit_id": comment.original_commit,
        "line": comment.line,
        "original_line": comment.original_line,
        "start_line": comment.start_line,
        "original_start_line": comment.original_start_line,
        "start_side": comment.start_side,
        "side": comment.side,
        "position": comment.position,
        "original_position": comment.original_position,
        "subject_type": "file" if comment.is_on_file else "line",
        "reactions": issues.build_reaction_counts(url, comment.reactions),
        "_links": _build_links(self=url, html=page, pull_request=build_pull_url(world, pull)),
    }
    return shape | ({"in_reply_to_id": comment.reply_to.id} if comment.reply_to else {})


def build_legacy_line_comment(world: World, comment: LineComment) -> Json:
    """Return the shape in which GitHub lists the comments of one review: without their lines."""
    shape = build_line_comment(world, comment)
    return {name: value for name, value in shape.items() if name not in OF_LINES}


def build_changed_file(world: World, repo: Repo, sha: str, change: Change) -> Json:
    shape: Json = {
        "sha": change.blob,
        "filename": change.path,
        "status": change.status,
        "additions": change.additions,
        "deletions": change.deletions,
        "changes": change.additions + change.deletions,
        "blob_url": f"{build_repo_page_url(world, repo)}/blob/{sha}/{change.path}",
        "raw_url": f"{build_repo_page_url(world, repo)}/raw/{sha}/{change.path}",
        "contents_url": f"{build_repo_url(world, repo)}/contents/{change.path}?ref={sha}",
    }
    if change.patch is not None:
        shape["patch"] = change.patch
    if change.old_path != change.path:
        shape["previous_filename"] = change.old_path
    return shape


def _build_signature(who: Signature, at: str) -> Json:
    return {"name": who.name, "email": who.email, "date": at}


def _build_account(world: World, who: Signature) -> Json | None:
    """Return the account with a commit's e-mail address, when the hub has one."""
    login = who.email.partition("@")[0].partition("+")[2]
    known = world.users.get(login.lower())
    return issues.build_user(world, known) if known else None


def build_commit(world: World, repo: Repo, commit: Commit) -> Json:
    base = build_repo_url(world, repo)
    url = f"{base}/commits/{commit.sha}"
    page = f"{build_repo_page_url(world, repo)}/commit/"
    return {
        "sha": commit.sha,
        "node_id": build_commit_node_id(repo, commit.sha),
        "url": url,
        "html_url": page + commit.sha,
        "comments_url": f"{url}/comments",
        "commit": {
            "url": f"{base}/git/commits/{commit.sha}",
            "author": _build_signature(commit.author, commit.authored),
            "committer": _build_signature(commit.committer, commit.committed),
            "message": commit.message,
            "tree": {"sha": commit.tree, "url": f"{base}/git/trees/{commit.tree}"},
            "comment_count": 0,
            "verification": {
                "verified": False,
                "reason": "unsigned",
                "signature": None,
                "payload": None,
                "verified_at": None,
            },
        },
        "author": _build_account(world, commit.author),
        "committer": _build_account(world, commit.committer),
        "parents": [
            {"sha": parent, "url": f"{base}/commits/{parent}", "html_url": page + parent}
            for parent in commit.parents
        ],
    }


def build_commit_node_id(repo: Repo, sha: str) -> str:
    return "C_" + base64.urlsafe_b64encode(f"{repo.id}:{sha}".encode()).decode().rstrip("=")


def build_pushed_commit(world: World, repo: Repo, commit: Commit, changed: list[Change]) -> Json:
    """Return the shorter shape that push webhooks use."""

    def list_paths(status: str) -> list[str]:
        return [change.path for change in changed if change.status == status]

    return {
        "id": commit.sha,
        "tree_id": commit.tree,
        "distinct": True,
        "message": commit.message,
        "timestamp": commit.committed,
        "url": f"{build_repo_page_url(world, repo)}/commit/{commit.sha}",
        "author": _build_pusher(world, commit.author, commit.authored),
        "committer": _build_pusher(world, commit.committer, commit.committed),
        "added": list_paths("added"),
        "removed": list_paths("removed"),
        "modified": [
            change.path for change in changed if change.status not in ("added", "removed")
        ],
    }


def _build_pusher(world: World, who: Signature, at: str) -> Json:
    account = _build_account(world, who)
    return {"name": who.name, "email": who.email, "date": at} | (
        {"username": account["login"]} if account else {}
    )


def build_comparison(world: World, repo: Repo, base: str, head: str) -> Json:
    git = repo.git
    fork = git.find_merge_base(base, head) or base
    ahead = git.count_commits(base, head)
    behind = git.count_commits(head, base)
    page = f"{build_repo_page_url(world, repo)}/compare/{base}...{head}"
    statuses: Any = {(True, True): "diverged", (True, False): "ahead", (False, True): "behind"}
    return {
        "url": f"{build_repo_url(world, repo)}/compare/{base}...{head}",
        "html_url": page,
        "permalink_url": page,
        "diff_url": f"{page}.diff",
        "patch_url": f"{page}.patch",
        "base_commit": build_commit(world, repo, git.read_commit(base)),
        "merge_base_commit": build_commit(world, repo, git.read_commit(fork)),
        "status": statuses.get((ahead > 0, behind > 0), "identical"),
        "ahead_by": ahead,
        "behind_by": behind,
        "total_commits": ahead,
        "commits": [build_commit(world, repo, one) for one in git.list_commits(base, head)],
        "files": [
            build_changed_file(world, repo, head, change) for change in git.list_changes(fork, head)
        ],
    }
