"""The JSON of accounts, repositories, issues, comments, labels and reactions."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from osiris.devhub.models import (
    ROLES,
    App,
    AuthoredText,
    Comment,
    Issue,
    Label,
    Note,
    Reaction,
    Repo,
    User,
)
from osiris.devhub.world import REACTIONS, World

Json = dict[str, Any]

REPO_LINKS = {
    "archive_url": "/{archive_format}{/ref}",
    "assignees_url": "/assignees{/user}",
    "blobs_url": "/git/blobs{/sha}",
    "branches_url": "/branches{/branch}",
    "collaborators_url": "/collaborators{/collaborator}",
    "comments_url": "/comments{/number}",
    "commits_url": "/commits{/sha}",
    "compare_url": "/compare/{base}...{head}",
    "contents_url": "/contents/{+path}",
    "contributors_url": "/contributors",
    "deployments_url": "/deployments",
    "downloads_url": "/downloads",
    "events_url": "/events",
    "forks_url": "/forks",
    "git_commits_url": "/git/commits{/sha}",
    "git_refs_url": "/git/refs{/sha}",
    "git_tags_url": "/git/tags{/sha}",
    "hooks_url": "/hooks",
    "issue_comment_url": "/issues/comments{/number}",
    "issue_events_url": "/issues/events{/number}",
    "issues_url": "/issues{/number}",
    "keys_url": "/keys{/key_id}",
    "labels_url": "/labels{/name}",
    "languages_url": "/languages",
    "merges_url": "/merges",
    "milestones_url": "/milestones{/number}",
    "notifications_url": "/notifications{?since,all,participating}",
    "pulls_url": "/pulls{/number}",
    "releases_url": "/releases{/id}",
    "stargazers_url": "/stargazers",
    "statuses_url": "/statuses/{sha}",
    "subscribers_url": "/subscribers",
    "subscription_url": "/subscription",
    "tags_url": "/tags",
    "teams_url": "/teams",
    "trees_url": "/git/trees{/sha}",
}
USER_LINKS = {
    "followers_url": "/followers",
    "following_url": "/following{/other_user}",
    "gists_url": "/gists{/gist_id}",
    "starred_url": "/starred{/owner}{/repo}",
    "subscriptions_url": "/subscriptions",
    "organizations_url": "/orgs",
    "repos_url": "/repos",
    "events_url": "/events{/privacy}",
    "received_events_url": "/received_events",
}


def format_time(at: float | None) -> str | None:
    return (
        None if at is None else datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    )


def build_api_url(world: World) -> str:
    return f"{world.url}/api/v3"


def build_repo_url(world: World, repo: Repo) -> str:
    return f"{build_api_url(world)}/repos/{repo.full_name}"


def build_repo_page_url(world: World, repo: Repo) -> str:
    return f"{world.url}/{repo.full_name}"


def build_issue_page_url(world: World, issue: Issue) -> str:
    kind = "pull" if issue.pull else "issues"
    return f"{build_repo_page_url(world, issue.repo)}/{kind}/{issue.number}"


def build_user(world: World, user: User) -> Json:
    url = f"{build_api_url(world)}/users/{user.login}"
    page = f"apps/{user.app.slug}" if user.app else user.login
    return {
        "login": user.login,
        "id": user.id,
        "node_id": user.node_id,
        "avatar_url": f"{world.url}/_avatar/{user.id}",
        "gravatar_id": "",
        "url": url,
        "html_url": f"{world.url}/{page}",
        **{name: url + path for name, path in USER_LINKS.items()},
        "type": user.type,
        "user_view_type": "public",
        "site_admin": False,
    }


def build_public_user(world: World, account: User) -> Json:
    """Return the longer shape of GET /user and /users/{login}."""
    nothing = dict.fromkeys(("company", "location", "email", "hireable", "bio", "twitter_username"))
    return {
        **build_user(world, account),
        **nothing,
        "name": account.login,
        "blog": "",
        "public_repos": 0,
        "public_gists": 0,
        "followers": 0,
        "following": 0,
        "created_at": format_time(account.created),
        "updated_at": format_time(account.created),
    }


def build_organization(world: World, owner: User) -> Json:
    url = f"{build_api_url(world)}/orgs/{owner.login}"
    return {
        "login": owner.login,
        "id": owner.id,
        "node_id": owner.node_id,
        "url": url,
        "repos_url": f"{url}/repos",
        "events_url": f"{url}/events",
        "hooks_url": f"{url}/hooks",
        "issues_url": f"{url}/issues",
        "members_url": f"{url}/members{{/member}}",
        "public_members_url": f"{url}/public_members{{/member}}",
        "avatar_url": f"{world.url}/_avatar/{owner.id}",
        "description": None,
    }


def build_repository(world: World, repo: Repo) -> Json:
    url = build_repo_url(world, repo)
    page = build_repo_page_url(world, repo)
    still_open = sum(issue.state == "open" for issue in repo.issues.values())
    return {
        "id": repo.id,
        "node_id": repo.node_id,
        "name": repo.name,
        "full_name": repo.full_name,
        "private": repo.private,
        "owner": build_user(world, repo.owner),
        "html_url": page,
        "description": None,
        "fork": False,
        "url": url,
        **{name: url + path for name, path in REPO_LINKS.items()},
        "created_at": format_time(repo.created),
        "updated_at": format_time(repo.created),
        "pushed_at": format_time(repo.created),
        "git_url": f"{page}.git",
        "ssh_url": f"{page}.git",
        "clone_url": f"{page}.git",
        "svn_url": page,
        **_build_repo_facts(repo),
        "open_issues_count": still_open,
        "open_issues": still_open,
        "default_branch": repo.default_branch,
    }


def _build_repo_facts(repo: Repo) -> Json:
    """Return the fields that the hub does not model, with the values of a new repository."""
    counts = ("size", "stargazers_count", "watchers_count", "forks_count", "forks", "watchers")
    return {
        **dict.fromkeys(counts, 0),
        **dict.fromkeys(("homepage", "language", "mirror_url", "license")),
        **dict.fromkeys(("has_issues", "has_projects", "has_downloads", "has_wiki"), True),
        **dict.fromkeys(("has_pages", "has_discussions", "disabled", "is_template"), False),
        "archived": repo.archived,
        "allow_forking": True,
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private" if repo.private else "public",
    }


def build_full_repository(world: World, repo: Repo, viewer: User | None) -> Json:
    role = repo.get_role(viewer) if viewer else "read"
    rank = ROLES.index(role)
    names = (
        ("admin", "admin"),
        ("maintain", "maintain"),
        ("push", "write"),
        ("triage", "triage"),
        ("pull", "read"),
    )
    return {
        **build_repository(world, repo),
        "permissions": {name: rank >= ROLES.index(needed) for name, needed in names},
        "organization": build_user(world, repo.owner),
        "subscribers_count": 0,
        "network_count": 0,
        "temp_clone_token": None,
        "allow_squash_merge": True,
        "allow_merge_commit": True,
        "allow_rebase_merge": False,
        "allow_auto_merge": False,
        "delete_branch_on_merge": False,
    }


def build_label(world: World, repo: Repo, label: Label) -> Json:
    return {
        "id": label.id,
        "node_id": label.node_id,
        "url": f"{build_repo_url(world, repo)}/labels/{label.name}",
        "name": label.name,
        "color": label.color,
        "default": False,
        "description": label.description,
        "archived_at": None,
        "archived_by": None,
    }


def build_labels(world: World, issue: Issue) -> list[Json]:
    return [build_label(world, issue.repo, one) for one in issue.labels]


def get_association(repo: Repo, account: User) -> str:
    if account is repo.owner:
        return "OWNER"
    return "COLLABORATOR" if account.login.lower() in repo.collaborators else "NONE"


def build_reaction_counts(url: str, given: Iterable[Reaction]) -> Json:
    counts = dict.fromkeys(REACTIONS, 0)
    for reaction in given:
        counts[reaction.content] += 1
    return {"url": f"{url}/reactions", "total_count": sum(counts.values()), **counts}


def build_reaction(world: World, given: Reaction) -> Json:
    return {
        "id": given.id,
        "node_id": given.node_id,
        "user": build_user(world, given.user),
        "content": given.content,
        "created_at": format_time(given.created),
    }


def build_authored_text(world: World, text: AuthoredText, repo: Repo) -> Json:
    """Return the fields that all texts by an account have in common."""
    return {
        "id": text.id,
        "node_id": text.node_id,
        "user": build_user(world, text.author),
        "body": text.body,
        "created_at": format_time(text.created),
        "updated_at": format_time(text.updated),
        "author_association": get_association(repo, text.author),
    }


def build_app(world: World, app: App) -> Json:
    """Return GitHub's `integration` object."""
    return {
        "id": app.id,
        "slug": app.slug,
        "node_id": app.node_id,
        "client_id": app.client_id,
        "owner": build_user(world, app.owner),
        "name": app.slug,
        "description": None,
        "external_url": app.webhook_url or world.url,
        "html_url": f"{world.url}/apps/{app.slug}",
        "created_at": format_time(app.created),
        "updated_at": format_time(app.created),
        "permissions": dict(app.permissions),
        "events": list(app.events),
    }


def build_via_app(world: World, text: AuthoredText) -> Json | None:
    return build_app(world, text.by_app) if text.by_app else None


def build_issue_url(world: World, issue: Issue) -> str:
    return f"{build_repo_url(world, issue.repo)}/issues/{issue.number}"


def build_issue(world: World, issue: Issue) -> Json:
    url = build_issue_url(world, issue)
    shape = {
        "url": url,
        "repository_url": build_repo_url(world, issue.repo),
        "labels_url": f"{url}/labels{{/name}}",
        "comments_url": f"{url}/comments",
        "events_url": f"{url}/events",
        "timeline_url": f"{url}/timeline",
        "html_url": build_issue_page_url(world, issue),
        **build_authored_text(world, issue, issue.repo),
        "body": issue.body or None,
        "number": issue.number,
        "title": issue.title,
        "labels": build_labels(world, issue),
        "state": issue.state,
        "state_reason": issue.state_reason,
        "comments": len(issue.comments),
        "closed_at": format_time(issue.closed),
        "closed_by": build_user(world, issue.closed_by) if issue.closed_by else None,
        "reactions": build_reaction_counts(url, issue.reactions),
        "performed_via_github_app": build_via_app(world, issue),
        **dict.fromkeys(("assignee", "milestone")),
        "assignees": [],
        "locked": issue.locked,
        "active_lock_reason": issue.lock_reason,
        "sub_issues_summary": {"total": 0, "completed": 0, "percent_completed": 0},
    }
    return shape | (_build_pull_key(world, issue) if issue.pull else {})


def _build_pull_key(world: World, issue: Issue) -> Json:
    page = build_issue_page_url(world, issue)
    urls = {
        "url": f"{build_repo_url(world, issue.repo)}/pulls/{issue.number}",
        "html_url": page,
        "diff_url": f"{page}.diff",
        "patch_url": f"{page}.patch",
        "merged_at": format_time(issue.pull.merged_at) if issue.pull else None,
    }
    return {"pull_request": urls, "draft": bool(issue.pull and issue.pull.draft)}


def build_issue_event(world: World, issue: Issue, note: Note) -> Json:
    label = {"name": note.label.name, "color": note.label.color} if note.label else None
    commit = f"{build_repo_url(world, issue.repo)}/commits/{note.commit}" if note.commit else None
    return {
        "id": note.id,
        "node_id": f"LE_lADO{note.id}",
        "url": f"{build_repo_url(world, issue.repo)}/issues/events/{note.id}",
        "actor": build_user(world, note.by),
        "event": note.event,
        "commit_id": note.commit,
        "commit_url": commit,
        "created_at": format_time(note.at),
        "performed_via_github_app": None,
        **({"label": label} if label else {}),
        **({"lock_reason": note.lock_reason} if note.event == "locked" else {}),
    }


def build_comment(world: World, comment: Comment) -> Json:
    url = f"{build_repo_url(world, comment.issue.repo)}/issues/comments/{comment.id}"
    return {
        **build_authored_text(world, comment, comment.issue.repo),
        "url": url,
        "html_url": f"{build_issue_page_url(world, comment.issue)}#issuecomment-{comment.id}",
        "issue_url": build_issue_url(world, comment.issue),
        "reactions": build_reaction_counts(url, comment.reactions),
        "performed_via_github_app": build_via_app(world, comment),
    }
