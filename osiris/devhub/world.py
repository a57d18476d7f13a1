"""The state of the hub and the methods that change it, without HTTP.

A method checks what holds for every caller (a title is not blank, a closed issue is not closed
again); `auth.py` checks who may call it. A method whose change Apps receive as a webhook publishes
it to the listeners at the end.
"""

import itertools
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from osiris.devhub import tokens
from osiris.devhub.errors import ApiError, invalid_field_error, not_found_error
from osiris.devhub.git_repository import GitRepository, Signature
from osiris.devhub.models import (
    ROLES,
    App,
    AuthoredText,
    Comment,
    Delivery,
    HubEvent,
    Installation,
    Issue,
    Label,
    Note,
    Reaction,
    Repo,
    Resource,
    User,
)

LONGEST_BODY = 65_536
LONGEST_TITLE = 256
REACTIONS = ("+1", "-1", "laugh", "confused", "heart", "hooray", "rocket", "eyes")


class World:
    """The accounts, repositories and apps of one hub."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.folder = folder
        self.clock = clock
        self.url = ""
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, Repo] = {}  # by their former names
        self.apps: dict[int, App] = {}
        self.installations: dict[int, Installation] = {}
        self.things: dict[str, Resource] = {}
        # by the id of their repository and their number there
        self.deleted_issues: set[tuple[int, int]] = set()
        self.moved_issues: dict[tuple[int, int], Issue] = {}
        self.listeners: list[Callable[[HubEvent], None]] = []
        # two hubs in one process must not share ids: clients cache their tokens by an app's and
        # installation's id
        self._ids = itertools.count(1_000_000 + secrets.randbelow(1_000_000_000))

    def now(self) -> float:
        return self.clock()

    def next_id(self) -> int:
        return next(self._ids)

    def index_resources(self, *things: Resource) -> None:
        """Make resources findable by their node id."""
        self.things |= {thing.node_id: thing for thing in things}

    def forget_resources(self, *things: Resource) -> None:
        for thing in things:
            self.things.pop(thing.node_id, None)

    def publish_event(
        self, event: str, action: str | None, repo: Repo, by: User, **subject: Any
    ) -> None:
        item = HubEvent(event=event, action=action, repo=repo, by=by, subject=subject)
        for listener in self.listeners:
            listener(item)

    def record_delivery(self, delivery: Delivery) -> None:
        delivery.app.deliveries.append(delivery)

    # ── accounts ──

    def get_user(self, login: str) -> User:
        found = self.users.get(login.lower())
        if found is None:
            raise not_found_error()
        return found

    def add_user(self, login: str, *, type: str = "User") -> User:
        """Return the account with this login; create it when there is none. `type` is "User",
        "Organization" or "Bot"."""
        if (known := self.users.get(login.lower())) is not None:
            return known
        token = tokens.generate_personal_token() if type == "User" else ""
        key = secrets.token_urlsafe(24)
        user = User(
            id=self.next_id(), login=login, type=type, token=token, key=key, created=self.now()
        )
        self.users[login.lower()] = user
        self.index_resources(user)
        return user

    def build_signature(self, user: User) -> Signature:
        """Return the name and e-mail address of an account in commits."""
        return Signature(
            name=user.login, email=f"{user.id}+{user.login}@users.noreply.devhub.invalid"
        )

    # ── repositories ──

    def get_repo(self, full_name: str) -> Repo:
        found = self.repos.get(full_name.lower())
        if found is None:
            raise not_found_error()
        return found

    def add_repo(
        self,
        full_name: str,
        *,
        files: Mapping[str, bytes | str] | None,
        import_from: tuple[Path, str] | None,
        collaborators: Mapping[str, str],
        private: bool,
    ) -> Repo:
        owner_login, name = full_name.split("/")
        owner = self.add_user(owner_login, type="Organization")
        git = GitRepository(self.folder / "repos" / owner.login / f"{name}.git")
        if import_from is None:
            git.init_with_files(
                files or {"README.md": f"# {name}\n"}, self.build_signature(owner), self.now()
            )
        else:
            git.import_commit(*import_from)
        repo = Repo(
            id=self.next_id(),
            owner=owner,
            name=name,
            git=git,
            default_branch=git.read_head_branch(),
            created=self.now(),
            private=private,
            heads=git.list_heads(),
        )
        for login, role in collaborators.items():
            self.set_role(repo, login, role)
        self.repos[full_name.lower()] = repo
        self.moved.pop(full_name.lower(), None)
        self.index_resources(repo)
        return repo

    def set_role(self, repo: Repo, login: str, role: str) -> None:
        if role not in ROLES:
            raise ValueError(f"{role} is not one of {', '.join(ROLES)}")
        self.add_user(login)
        repo.collaborators[login.lower()] = role

    def get_issue(self, repo: Repo, number: int) -> Issue:
        found = repo.issues.get(number)
        if found is None:
            if (repo.id, number) in self.deleted_issues:
                raise ApiError(410, "This issue was deleted")
            raise not_found_error()
        return found

    def next_number(self, repo: Repo) -> int:
        """Return the number for the next issue; numbers of deleted and transferred issues are not
        used again."""
        gone = [n for id, n in (*self.deleted_issues, *self.moved_issues) if id == repo.id]
        return max([0, *repo.issues, *gone]) + 1

    # ── issues ──

    def open_issue(
        self,
        repo: Repo,
        by: User,
        title: str,
        body: str = "",
        *,
        labels: Iterable[str] = (),
        by_app: App | None = None,
    ) -> Issue:
        issue = self.create_issue(repo, by, title, body, by_app=by_app)
        self.publish_event("issues", "opened", repo, by, issue=issue)
        self.add_labels(issue, by, labels)
        return issue

    def create_issue(
        self, repo: Repo, by: User, title: str, body: str, *, by_app: App | None
    ) -> Issue:
        """Create an issue with the next number of the repository, without publishing an event. A
        pull request begins as an issue, too."""
        check_title(title)
        check_body(body, "Issue")
        issue = Issue(
            id=self.next_id(),
            repo=repo,
            number=self.next_number(repo),
            title=title,
            body=body,
            author=by,
            by_app=by_app,
            created=self.now(),
            updated=self.now(),
        )
        repo.issues[issue.number] = issue
        self.index_resources(issue)
        return issue

    def edit_issue(
        self, issue: Issue, by: User, *, title: str | None = None, body: str | None = None
    ) -> None:
        changes = {
            name: {"from": getattr(issue, name)}
            for name, value in (("title", title), ("body", body))
            if value is not None and value != getattr(issue, name)
        }
        check_title(title if title is not None else issue.title)
        check_body(body or "", "Issue")
        issue.title = title if title is not None else issue.title
        issue.body = body if body is not None else issue.body
        if changes:
            self._publish_change(issue, "edited", by, changes=changes)

    def close_issue(self, issue: Issue, by: User, reason: str = "completed") -> None:
        if issue.state == "closed":
            return
        issue.state = "closed"
        issue.closed = self.now()
        issue.closed_by = by
        issue.state_reason = None if issue.pull else reason
        self.add_note(
            issue,
            by,
            "closed this" + (" as not planned" if reason == "not_planned" else ""),
            "closed",
        )
        self._publish_change(issue, "closed", by)

    def reopen_issue(self, issue: Issue, by: User) -> None:
        if issue.state == "open":
            return
        issue.state = "open"
        issue.closed = None
        issue.closed_by = None
        issue.state_reason = None if issue.pull else "reopened"
        self.add_note(issue, by, "reopened this", "reopened")
        self._publish_change(issue, "reopened", by)

    def add_note(self, issue: Issue, by: User, text: str, event: str = "", **about: Any) -> None:
        """Add a line to the conversation; `event` and `about` are attributes of `Note`."""
        issue.timeline.append(
            Note(id=self.next_id(), by=by, text=text, at=self.now(), event=event, **about)
        )

    def _publish_change(self, issue: Issue, action: str, by: User, **more: Any) -> None:
        issue.updated = self.now()
        event = "pull_request" if issue.pull else "issues"
        self.publish_event(event, action, issue.repo, by, issue=issue, **more)

    # ── labels ──

    def add_labels(self, issue: Issue, by: User, names: Iterable[str]) -> None:
        """Add labels to an issue; those that the repository does not have yet are created."""
        for name in names:
            label = self.ensure_label(issue.repo, name)
            if label not in issue.labels:
                issue.labels.append(label)
                self.add_note(issue, by, f"added the label {label.name}", "labeled", label=label)
                self._publish_change(issue, "labeled", by, label=label)

    def remove_label(self, issue: Issue, by: User, name: str) -> None:
        label = issue.repo.labels.get(name.lower())
        if label is None or label not in issue.labels:
            raise ApiError(404, "Label does not exist")
        issue.labels.remove(label)
        self.add_note(issue, by, f"removed the label {label.name}", "unlabeled", label=label)
        self._publish_change(issue, "unlabeled", by, label=label)

    def ensure_label(self, repo: Repo, name: str) -> Label:
        if not name.strip() or len(name) > 50:
            raise invalid_field_error("Label", "name")
        if name.lower() not in repo.labels:
            color = ("1d76db", "0e8a16", "d93f0b", "fbca04", "5319e7", "006b75")[
                len(repo.labels) % 6
            ]
            label = Label(id=self.next_id(), name=name, color=color)
            repo.labels[name.lower()] = label
            self.index_resources(label)
        return repo.labels[name.lower()]

    # ── comments and reactions ──

    def add_comment(
        self, issue: Issue, by: User, body: str, *, by_app: App | None = None
    ) -> Comment:
        check_body(body, "IssueComment", needed=True)
        id = self.next_id()
        at = self.now()
        comment = Comment(
            id=id, issue=issue, author=by, body=body, by_app=by_app, created=at, updated=at
        )
        issue.comments.append(comment)
        issue.updated = at
        self.index_resources(comment)
        self._publish_comment(comment, "created", by)
        return comment

    def _publish_comment(self, comment: Comment, action: str, by: User, **more: Any) -> None:
        self.publish_event(
            "issue_comment",
            action,
            comment.issue.repo,
            by,
            issue=comment.issue,
            comment=comment,
            **more,
        )

    def edit_comment(self, comment: Comment, by: User, body: str) -> None:
        check_body(body, "IssueComment", needed=True)
        changes = {"body": {"from": comment.body}}
        comment.body = body
        comment.updated = self.now()
        self._publish_comment(comment, "edited", by, changes=changes)

    def delete_comment(self, comment: Comment, by: User) -> None:
        comment.issue.comments.remove(comment)
        self._publish_comment(comment, "deleted", by)

    def add_reaction(self, text: AuthoredText, by: User, content: str) -> tuple[Reaction, bool]:
        """Add a reaction, one of each kind per person. Return it, and whether it is new."""
        if content not in REACTIONS:
            raise invalid_field_error("Reaction", "content")
        for reaction in text.reactions:
            if reaction.user is by and reaction.content == content:
                return reaction, False
        reaction = Reaction(id=self.next_id(), user=by, content=content, created=self.now())
        text.reactions.append(reaction)
        self.index_resources(reaction)
        return reaction, True


def check_title(title: str) -> None:
    if not title.strip():
        raise invalid_field_error("Issue", "title", "missing_field")
    if len(title) > LONGEST_TITLE:
        raise invalid_field_error(
            "Issue", "title", "custom", f"title is too long (maximum is {LONGEST_TITLE} characters)"
        )


def check_body(body: str, resource: str, *, needed: bool = False) -> None:
    if needed and not body.strip():
        raise invalid_field_error(resource, "body", "missing_field", "body can't be blank")
    if len(body) > LONGEST_BODY:
        raise invalid_field_error(
            resource, "body", "custom", f"body is too long (maximum is {LONGEST_BODY} characters)"
        )
