"""Authentication and authorization: the callers behind tokens, and the check of their permissions
(`Caller.require_permission`)."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from osiris.devhub import tokens
from osiris.devhub.errors import (
    ApiError,
    forbidden_error,
    not_found_error,
    unauthorized_error,
    validation_error,
)
from osiris.devhub.models import ROLES, App, Installation, Issue, Repo, User
from osiris.devhub.payloads.issues import format_time
from osiris.devhub.world import World

LEVELS = ("none", "read", "write", "admin")
ADMINISTRATION = "administration:write"


@dataclass(frozen=True, kw_only=True)
class TokenGrant:
    """The access that one installation token gives, and its expiry."""

    token: str
    installation: Installation
    permissions: Mapping[str, str]
    repos: tuple[Repo, ...]
    narrowed: bool
    expires: float


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A caller: a person, an installation (`grant`), an app itself (only `app`), or anonymous."""

    user: User | None = None
    app: App | None = None
    grant: TokenGrant | None = None

    @property
    def account(self) -> User:
        """The account that the caller acts as."""
        if self.user is None:
            raise (
                ApiError(401, "Requires authentication") if self.app is None else forbidden_error()
            )
        return self.user

    def can_see(self, repo: Repo) -> bool:
        if not repo.private:
            return True
        if self.grant is not None:
            return repo in self.grant.repos
        return self.user is not None and repo.get_role(self.user) != "none"

    def may_access(self, repo: Repo, needs: Iterable[str], role: str) -> bool:
        if self.grant is not None:
            return _is_granted(self.grant, repo, needs)
        if self.user is None:
            return (
                role == "read"
                and not repo.private
                and all(need.endswith(":read") for need in needs)
            )
        return ROLES.index(repo.get_role(self.user)) >= ROLES.index(role)

    def require_unlocked(self, issue: Issue, what: str = "comment") -> None:
        """Raise ApiError when the conversation is locked, unless the caller is a person with write
        access. GitHub refuses apps whatever their permissions."""
        if issue.locked and (self.app or not self.may_access(issue.repo, [], "write")):
            raise ApiError(403, f"Unable to create {what} because issue is locked.")

    def require_permission(self, repo: Repo, *needs: str, role: str = "read") -> None:
        """Raise ApiError unless an app has one of `needs` ("issues:write"), or a person at least
        `role`."""
        if not self.can_see(repo):
            raise not_found_error()
        if self.may_access(repo, needs, role):
            if repo.archived and any(
                need.endswith(":write") and need != ADMINISTRATION for need in needs
            ):
                raise ApiError(403, "Repository was archived so is read-only.")
            return
        if self.app is not None:
            raise forbidden_error()
        raise (
            ApiError(403, "Must have admin rights to Repository.")
            if self.user
            else ApiError(401, "Requires authentication")
        )


def _is_granted(grant: TokenGrant, repo: Repo, needs: Iterable[str]) -> bool:
    if repo not in grant.repos:
        return not repo.private and all(need.endswith(":read") for need in needs)
    return any(_has_level(grant.permissions, need) for need in needs)


def _has_level(permissions: Mapping[str, str], need: str) -> bool:
    name, _, level = need.partition(":")
    return LEVELS.index(permissions.get(name, "none")) >= LEVELS.index(level)


NOBODY = Caller()


@dataclass(kw_only=True)
class TokenStore:
    """The tokens that the hub has issued."""

    world: World
    grants: dict[str, TokenGrant] = field(default_factory=dict)

    def identify_caller(self, authorization: str) -> Caller:
        """Return the caller of an Authorization header; an empty one is anonymous."""
        scheme, _, rest = authorization.partition(" ")
        if not authorization:
            return NOBODY
        if scheme.lower() == "basic":
            return self.identify_token(_parse_basic(rest))
        if scheme.lower() not in ("bearer", "token") or not rest:
            raise unauthorized_error()
        return self.identify_token(rest.strip())

    def identify_token(self, token: str) -> Caller:
        if tokens.is_jwt(token):
            return Caller(app=self._identify_app(token))
        if (grant := self.grants.get(token)) is not None:
            return self._identify_grant(grant)
        for user in self.world.users.values():
            if user.token and user.token == token:
                return Caller(user=user)
        raise unauthorized_error()

    def _identify_grant(self, grant: TokenGrant) -> Caller:
        app = grant.installation.app
        if (
            grant.expires <= self.world.now()
            or grant.installation.id not in self.world.installations
        ):
            raise unauthorized_error()
        if grant.installation.suspended is not None:
            owner = grant.installation.account.login
            since = format_time(grant.installation.suspended)
            raise ApiError(
                403, f"Sorry. This installation owned by {owner} suspended your access at {since}."
            )
        return Caller(user=app.bot, app=app, grant=grant)

    def _identify_app(self, token: str) -> App:
        issuer = tokens.read_issuer(token)
        for app in self.world.apps.values():
            if issuer in (str(app.id), app.client_id):
                tokens.verify_jwt(token, app.keys.public)
                return app
        raise ApiError(404, "Integration not found")

    def create_grant(
        self,
        installation: Installation,
        *,
        permissions: Mapping[str, str] | None,
        names: Iterable[str],
        ids: Iterable[int],
    ) -> TokenGrant:
        """Create an installation token, with at most the permissions of the installation."""
        if installation.suspended is not None:
            raise ApiError(403, "This installation has been suspended")
        held = installation.app.permissions
        for name, level in (permissions or {}).items():
            if level not in LEVELS or not _has_level(held, f"{name}:{level}"):
                raise validation_error(
                    "The permissions requested are not granted to this installation."
                )
        chosen = _select_repos(installation, list(names), list(ids))
        given = {"metadata": "read", **permissions} if permissions else dict(held)
        grant = TokenGrant(
            token=tokens.generate_installation_token(installation.app.id),
            installation=installation,
            permissions=given,
            repos=chosen or tuple(installation.repos),
            narrowed=bool(chosen),
            expires=self.world.now() + tokens.HOUR,
        )
        self.grants[grant.token] = grant
        return grant


def _select_repos(installation: Installation, names: list[str], ids: list[int]) -> tuple[Repo, ...]:
    by_name = {repo.name.lower(): repo for repo in installation.repos}
    by_id = {repo.id: repo for repo in installation.repos}
    found = [by_name.get(str(name).lower()) for name in names] + [
        by_id.get(number) for number in ids
    ]
    if any(repo is None for repo in found):
        raise validation_error(
            "There is at least one repository that does not exist or is not accessible to the"
            " parent installation."
        )
    return tuple(repo for repo in found if repo is not None)


def _parse_basic(encoded: str) -> str:
    """Return the password of basic authentication, or its user name when there is no password (git
    allows both)."""
    try:
        name, _, word = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise unauthorized_error() from None
    return word if word not in ("", "x-oauth-basic") else name
