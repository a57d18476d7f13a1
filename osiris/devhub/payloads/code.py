"""The JSON of pull requests, reviews, line comments, commits and changed files."""

import base64
from typing import Any

from osiris.devhub import pulls
from osiris.devhub.git_repository import Change, Commit, Person
from osiris.devhub.models import LineComment, Pull, Repo, Review
from osiris.devhub.payloads import issues
from osiris.devhub.payloads.issues import Json, iso, issue_api, issue_page, repo_api, repo_page
from osiris.devhub.world import World


def pull_api(world: World, pull: Pull) -> str:
    return f"{repo_api(world, pull.repo)}/pulls/{pull.number}"


def _end(world: World, repo: Repo, ref: str, sha: str) -> Json:
    """GitHub's `head` and `base`."""
    return {
        "label": f"{repo.owner.login}:{ref}",
        "ref": ref,
        "sha": sha,
        "user": issues.user(world, repo.owner),
        "repo": issues.repository(world, repo),
    }


def _links(**urls: str) -> Json:
    return {name: {"href": url} for name, url in urls.items()}


def pull_simple(world: World, pull: Pull) -> Json:
    """The shape of lists."""
    url, page, issue = pull_api(world, pull), issue_page(world, pull.issue), issue_api(world, pull.issue)
    statuses = f"{repo_api(world, pull.repo)}/statuses/{pull.head_sha}"
    links = {
        "comments": f"{issue}/comments",
        "review_comments": f"{url}/comments",
        "review_comment": f"{repo_api(world, pull.repo)}/pulls/comments{{/number}}",
        "commits": f"{url}/commits",
        "statuses": statuses,
    }
    return {
        **issues.said(world, pull.issue, pull.repo),
        "id": pull.id,
        "node_id": pull.node_id,
        "body": pull.body or None,
        "url": url,
        "html_url": page,
        "diff_url": f"{page}.diff",
        "patch_url": f"{page}.patch",
        "issue_url": issue,
        **{f"{name}_url": link for name, link in links.items()},
        "_links": _links(self=url, html=page, issue=issue, **links),
        "number": pull.number,
        "state": pull.state,
        "title": pull.title,
        "labels": issues.labels(world, pull.issue),
        "draft": pull.draft,
        "closed_at": iso(pull.issue.closed),
        "merged_at": iso(pull.merged_at),
        "merge_commit_sha": pull.merge_commit,
        "head": _end(world, pull.repo, pull.head_ref, pull.head_sha),
        "base": _end(world, pull.repo, pull.base_ref, pull.base_sha),
        "locked": False,
        **dict.fromkeys(("assignee", "milestone", "auto_merge", "active_lock_reason")),
        **{name: [] for name in ("assignees", "requested_reviewers", "requested_teams")},
    }


def pull(world: World, pull: Pull) -> Json:
    changed = pulls.changes(pull)
    clean = pulls.mergeable(pull)
    return {
        **pull_simple(world, pull),
        "merged": pull.merged,
        "mergeable": clean,
        "rebaseable": clean,
        "mergeable_state": pulls.merge_state(pull, clean),
        "merged_by": issues.user(world, pull.merged_by) if pull.merged_by else None,
        "comments": len(pull.issue.comments),
        "review_comments": len(pull.line_comments),
        "maintainer_can_modify": False,
        "commits": pull.repo.git.count(pulls.fork_point(pull), pull.head_sha),
        "additions": sum(change.additions for change in changed),
        "deletions": sum(change.deletions for change in changed),
        "changed_files": len(changed),
    }


def review(world: World, review: Review) -> Json:
    page = f"{issue_page(world, review.pull.issue)}#pullrequestreview-{review.id}"
    shape = {
        **issues.said(world, review, review.pull.repo),
        "state": review.state,
        "html_url": page,
        "pull_request_url": pull_api(world, review.pull),
        "_links": _links(html=page, pull_request=pull_api(world, review.pull)),
        "commit_id": review.commit,
        "submitted_at": iso(review.submitted),
    }
    absent = ("created_at", "updated_at") if review.submitted else ("created_at", "updated_at", "submitted_at")
    return {name: value for name, value in shape.items() if name not in absent}


def line_comment(world: World, comment: LineComment) -> Json:
    pull = comment.thread.pull
    url = f"{repo_api(world, pull.repo)}/pulls/comments/{comment.id}"
    page = f"{issue_page(world, pull.issue)}#discussion_r{comment.id}"
    shape = {
        **issues.said(world, comment, pull.repo),
        "url": url,
        "html_url": page,
        "pull_request_url": pull_api(world, pull),
        "pull_request_review_id": comment.review.id,
        "diff_hunk": comment.hunk,
        "path": comment.path,
        "commit_id": comment.commit,
        "original_commit_id": comment.original_commit,
        "line": comment.line,
        "original_line": comment.original_line,
        "start_line": None,
        "original_start_line": None,
        "start_side": None,
        "side": comment.side,
        "position": comment.position,
        "original_position": comment.original_position,
        "subject_type": "line",
        "reactions": issues.reactions(url, comment.reactions),
        "_links": _links(self=url, html=page, pull_request=pull_api(world, pull)),
    }
    return shape | ({"in_reply_to_id": comment.reply_to.id} if comment.reply_to else {})


def changed_file(world: World, repo: Repo, sha: str, change: Change) -> Json:
    shape: Json = {
        "sha": change.blob,
        "filename": change.path,
        "status": change.status,
        "additions": change.additions,
        "deletions": change.deletions,
        "changes": change.additions + change.deletions,
        "blob_url": f"{repo_page(world, repo)}/blob/{sha}/{change.path}",
        "raw_url": f"{repo_page(world, repo)}/raw/{sha}/{change.path}",
        "contents_url": f"{repo_api(world, repo)}/contents/{change.path}?ref={sha}",
    }
    if change.patch is not None:
        shape["patch"] = change.patch
    if change.old_path != change.path:
        shape["previous_filename"] = change.old_path
    return shape


def _signature(who: Person, at: str) -> Json:
    return {"name": who.name, "email": who.email, "date": at}


def _account(world: World, who: Person) -> Json | None:
    """The account behind a commit's e-mail address, when the hub knows one."""
    login = who.email.partition("@")[0].partition("+")[2]
    known = world.users.get(login.lower())
    return issues.user(world, known) if known else None


def commit(world: World, repo: Repo, commit: Commit) -> Json:
    base = repo_api(world, repo)
    url, page = f"{base}/commits/{commit.sha}", f"{repo_page(world, repo)}/commit/"
    return {
        "sha": commit.sha,
        "node_id": node_of_commit(repo, commit.sha),
        "url": url,
        "html_url": page + commit.sha,
        "comments_url": f"{url}/comments",
        "commit": {
            "url": f"{base}/git/commits/{commit.sha}",
            "author": _signature(commit.author, commit.authored),
            "committer": _signature(commit.committer, commit.committed),
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
        "author": _account(world, commit.author),
        "committer": _account(world, commit.committer),
        "parents": [
            {"sha": parent, "url": f"{base}/commits/{parent}", "html_url": page + parent} for parent in commit.parents
        ],
    }


def node_of_commit(repo: Repo, sha: str) -> str:
    return "C_" + base64.urlsafe_b64encode(f"{repo.id}:{sha}".encode()).decode().rstrip("=")


def pushed_commit(world: World, repo: Repo, commit: Commit, changed: list[Change]) -> Json:
    """The shorter shape of push webhooks."""

    def by(status: str) -> list[str]:
        return [change.path for change in changed if change.status == status]

    return {
        "id": commit.sha,
        "tree_id": commit.tree,
        "distinct": True,
        "message": commit.message,
        "timestamp": commit.committed,
        "url": f"{repo_page(world, repo)}/commit/{commit.sha}",
        "author": _pusher(world, commit.author, commit.authored),
        "committer": _pusher(world, commit.committer, commit.committed),
        "added": by("added"),
        "removed": by("removed"),
        "modified": [change.path for change in changed if change.status not in ("added", "removed")],
    }


def _pusher(world: World, who: Person, at: str) -> Json:
    account = _account(world, who)
    return {"name": who.name, "email": who.email, "date": at} | ({"username": account["login"]} if account else {})


def comparison(world: World, repo: Repo, base: str, head: str) -> Json:
    git = repo.git
    fork = git.merge_base(base, head) or base
    ahead, behind = git.count(base, head), git.count(head, base)
    page = f"{repo_page(world, repo)}/compare/{base}...{head}"
    statuses: Any = {(True, True): "diverged", (True, False): "ahead", (False, True): "behind"}
    return {
        "url": f"{repo_api(world, repo)}/compare/{base}...{head}",
        "html_url": page,
        "permalink_url": page,
        "diff_url": f"{page}.diff",
        "patch_url": f"{page}.patch",
        "base_commit": commit(world, repo, git.commit(base)),
        "merge_base_commit": commit(world, repo, git.commit(fork)),
        "status": statuses.get((ahead > 0, behind > 0), "identical"),
        "ahead_by": ahead,
        "behind_by": behind,
        "total_commits": ahead,
        "commits": [commit(world, repo, one) for one in git.commits(base, head)],
        "files": [changed_file(world, repo, head, change) for change in git.changes(fork, head)],
    }
