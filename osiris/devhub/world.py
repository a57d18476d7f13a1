"""Everything the hub knows, with the verbs that change it; no HTTP in here.

A verb checks what must hold whoever asks (a title is not blank, a closed issue is not closed
again); who may ask is `auth.py`'s question. Each verb that apps may hear about ends by telling the
listeners.
"""

import itertools
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osiris.devhub import tokens
from osiris.devhub.errors import ApiError, invalid_field_error, not_found_error
from osiris.devhub.git_repository import GitRepository, Signature
from osiris.devhub.models import (
    ROLES,
    App,
    AuthoredText,
    CheckRun,
    CheckSuite,
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
GHOST = "devhub"


class World:
    """The accounts, repositories and apps of one hub."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.folder = folder
        self.clock = clock
        self.url = ""
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, Repo] = {}  # by the names they had
        self.apps: dict[int, App] = {}
        self.installations: dict[int, Installation] = {}
        self.things: dict[str, Resource] = {}
        self.listeners: list[Callable[[HubEvent], None]] = []
        # two hubs in one process must not share ids: clients cache their tokens by an app's and
        # installation's id
        self._ids = itertools.count(1_000_000 + secrets.randbelow(1_000_000_000))

    def now(self) -> float:
        return self.clock()

    def next_id(self) -> int:
        return next(self._ids)

    def index_resources(self, *things: Resource) -> None:
        """Make things findable by their node id."""
        self.things |= {thing.node_id: thing for thing in things}

    def publish_event(
        self, event: str, action: str | None, repo: Repo, by: User, **subject: Any
    ) -> None:
        happening = HubEvent(event=event, action=action, repo=repo, by=by, subject=subject)
        for listener in self.listeners:
            listener(happening)

    # ── accounts ──

    def get_user(self, login: str) -> User:
        found = self.users.get(login.lower())
        if found is None:
            raise not_found_error()
        return found

    def add_user(self, login: str, *, type: str = "User") -> User:
        """A person, or an organization when `type` says so; the same login gives the same
        account."""
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
        """How an account signs commits."""
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
            raise not_found_error()
        return found

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
        """The next number of the repository, told to nobody yet (a pull request begins as one,
        too)."""
        check_title(title)
        check_body(body, "Issue")
        issue = Issue(
            id=self.next_id(),
            repo=repo,
            number=len(repo.issues) + 1,
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
        """Add a line to the conversation; `event` and what it is `about` are as in `Note`."""
        issue.timeline.append(
            Note(id=self.next_id(), by=by, text=text, at=self.now(), event=event, **about)
        )

    def _publish_change(self, issue: Issue, action: str, by: User, **more: Any) -> None:
        issue.updated = self.now()
        event = "pull_request" if issue.pull else "issues"
        self.publish_event(event, action, issue.repo, by, issue=issue, **more)

    # ── labels ──

    def add_labels(self, issue: Issue, by: User, names: Iterable[str]) -> None:
        """Put labels on, making those the repository does not have yet."""
        for name in names:
            label = self._ensure_label(issue.repo, name)
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

    def _ensure_label(self, repo: Repo, name: str) -> Label:
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

    def add_reaction(self, said: AuthoredText, by: User, content: str) -> tuple[Reaction, bool]:
        """The reaction, and whether it is new: one of a kind for each person."""
        if content not in REACTIONS:
            raise invalid_field_error("Reaction", "content")
        for reaction in said.reactions:
            if reaction.user is by and reaction.content == content:
                return reaction, False
        reaction = Reaction(id=self.next_id(), user=by, content=content, created=self.now())
        said.reactions.append(reaction)
        self.index_resources(reaction)
        return reaction, True

    # ── apps ──

    def add_app(
        self,
        *,
        slug: str,
        webhook_url: str,
        webhook_secret: str,
        permissions: Mapping[str, str],
        events: Sequence[str],
        keys: tokens.KeyPair | None = None,
    ) -> App:
        """Register an App; `keys` are made for it unless they are given, which takes a tenth of a
        second."""
        bot = self.add_user(f"{slug}[bot]", type="Bot")
        app = App(
            id=self.next_id(),
            slug=slug,
            bot=bot,
            owner=self.add_user(GHOST, type="Organization"),
            keys=keys or tokens.generate_key_pair(),
            client_id="Iv23li" + secrets.token_hex(7),
            webhook_url=webhook_url,
            webhook_secret=webhook_secret,
            permissions={"metadata": "read", **permissions},
            events=tuple(events),
            created=self.now(),
        )
        bot.app = app
        self.apps[app.id] = app
        self.index_resources(app)
        return app

    def install_app(self, app: App, repos: Sequence[Repo]) -> Installation:
        """Add repositories of one account to the app's installation there, making it when there is
        none."""
        account = repos[0].owner
        for known in self.installations.values():
            if known.app is app and known.account is account:
                known.repos += [repo for repo in repos if repo not in known.repos]
                return known
        new = Installation(
            id=self.next_id(), app=app, account=account, created=self.now(), repos=list(repos)
        )
        self.installations[new.id] = new
        self.index_resources(new)
        return new

    def find_installation(self, app: App, repo: Repo) -> Installation | None:
        found = (i for i in self.installations.values() if i.app is app and repo in i.repos)
        return next(found, None)

    def record_delivery(self, delivery: Delivery) -> None:
        delivery.app.deliveries.append(delivery)

    # ── checks ──

    def start_check(self, repo: Repo, app: App, sha: str, name: str, **facts: Any) -> CheckRun:
        suite = self._ensure_suite(repo, app, sha)
        run = CheckRun(id=self.next_id(), suite=suite, name=name, started=self.now())
        suite.runs.append(run)
        self.index_resources(run)
        _apply_facts(run, facts, self.now())
        self.publish_event("check_run", "created", repo, app.bot, run=run)
        self._publish_completion(run, was="")
        return run

    def update_check(self, run: CheckRun, **facts: Any) -> None:
        was = run.status
        _apply_facts(run, facts, self.now())
        self._publish_completion(run, was)

    def _publish_completion(self, run: CheckRun, was: str) -> None:
        if run.status != "completed" or was == "completed":
            return
        repo = run.suite.repo
        self.publish_event("check_run", "completed", repo, run.app.bot, run=run)
        if all(other.status == "completed" for other in run.suite.runs):
            self.publish_event("check_suite", "completed", repo, run.app.bot, suite=run.suite)

    def _ensure_suite(self, repo: Repo, app: App, sha: str) -> CheckSuite:
        for suite in repo.suites:
            if suite.app is app and suite.sha == sha:
                return suite
        suite = CheckSuite(id=self.next_id(), repo=repo, app=app, sha=sha, created=self.now())
        repo.suites.append(suite)
        self.index_resources(suite)
        return suite


def _apply_facts(run: CheckRun, facts: Mapping[str, Any], now: float) -> None:
    """Copy what a caller said about a run; a conclusion completes it."""
    for name, value in facts.items():
        setattr(run, name, value)
    if run.conclusion is not None:
        run.status = "completed"
    if run.status == "completed":
        run.completed = run.completed or now


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
