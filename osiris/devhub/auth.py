"""Who is asking and what they may do: tokens to people and apps, and the one question `need`."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from osiris.devhub import tokens
from osiris.devhub.errors import Denied, forbidden, not_found, unauthorized, unfit
from osiris.devhub.models import ROLES, App, Installation, Repo, User
from osiris.devhub.payloads.issues import iso
from osiris.devhub.world import World

LEVELS = ("none", "read", "write", "admin")
ADMINISTRATION = "administration:write"


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What one installation token opens, and until when."""

    token: str
    installation: Installation
    permissions: Mapping[str, str]
    repos: tuple[Repo, ...]
    narrowed: bool
    expires: float


@dataclass(frozen=True, kw_only=True)
class Who:
    """One caller: a person, an installation (`grant`), an app itself (only `app`), or nobody."""

    user: User | None = None
    app: App | None = None
    grant: Grant | None = None

    @property
    def name(self) -> User:
        """The account that whatever is done is done by."""
        if self.user is None:
            raise Denied(401, "Requires authentication") if self.app is None else forbidden()
        return self.user

    def sees(self, repo: Repo) -> bool:
        if not repo.private:
            return True
        if self.grant is not None:
            return repo in self.grant.repos
        return self.user is not None and repo.role_of(self.user) != "none"

    def may(self, repo: Repo, needs: Iterable[str], role: str) -> bool:
        if self.grant is not None:
            return _granted(self.grant, repo, needs)
        if self.user is None:
            return role == "read" and not repo.private and all(need.endswith(":read") for need in needs)
        return ROLES.index(repo.role_of(self.user)) >= ROLES.index(role)

    def need(self, repo: Repo, *needs: str, role: str = "read") -> None:
        """Raise unless an app holds one of `needs` ("issues:write"), or a person has at least `role`."""
        if not self.sees(repo):
            raise not_found()
        if self.may(repo, needs, role):
            if repo.archived and any(need.endswith(":write") and need != ADMINISTRATION for need in needs):
                raise Denied(403, "Repository was archived so is read-only.")
            return
        if self.app is not None:
            raise forbidden()
        raise (
            Denied(403, "Must have admin rights to Repository.")
            if self.user
            else Denied(401, "Requires authentication")
        )


def _granted(grant: Grant, repo: Repo, needs: Iterable[str]) -> bool:
    if repo not in grant.repos:
        return not repo.private and all(need.endswith(":read") for need in needs)
    return any(_covers(grant.permissions, need) for need in needs)


def _covers(permissions: Mapping[str, str], need: str) -> bool:
    name, _, level = need.partition(":")
    return LEVELS.index(permissions.get(name, "none")) >= LEVELS.index(level)


NOBODY = Who()


@dataclass(kw_only=True)
class Keyring:
    """Every token the hub gave out."""

    world: World
    grants: dict[str, Grant] = field(default_factory=dict)

    def who(self, authorization: str) -> Who:
        """The caller behind an Authorization header; an empty one is nobody."""
        scheme, _, rest = authorization.partition(" ")
        if not authorization:
            return NOBODY
        if scheme.lower() == "basic":
            return self.of_token(_basic(rest))
        if scheme.lower() not in ("bearer", "token") or not rest:
            raise unauthorized()
        return self.of_token(rest.strip())

    def of_token(self, token: str) -> Who:
        if tokens.looks_like_jwt(token):
            return Who(app=self._app_of(token))
        if (grant := self.grants.get(token)) is not None:
            return self._of_grant(grant)
        for user in self.world.users.values():
            if user.token and user.token == token:
                return Who(user=user)
        raise unauthorized()

    def _of_grant(self, grant: Grant) -> Who:
        app = grant.installation.app
        if grant.expires <= self.world.now() or grant.installation.id not in self.world.installations:
            raise unauthorized()
        if grant.installation.suspended is not None:
            owner, since = grant.installation.account.login, iso(grant.installation.suspended)
            raise Denied(403, f"Sorry. This installation owned by {owner} suspended your access at {since}.")
        return Who(user=app.bot, app=app, grant=grant)

    def _app_of(self, token: str) -> App:
        issuer = tokens.issuer_of(token)
        for app in self.world.apps.values():
            if issuer in (str(app.id), app.client_id):
                tokens.verify_jwt(token, app.keys.public)
                return app
        raise Denied(404, "Integration not found")

    def grant(
        self,
        installation: Installation,
        *,
        permissions: Mapping[str, str] | None,
        names: Iterable[str],
        ids: Iterable[int],
    ) -> Grant:
        """A new installation token, never wider than the installation."""
        if installation.suspended is not None:
            raise Denied(403, "This installation has been suspended")
        held = installation.app.permissions
        for name, level in (permissions or {}).items():
            if level not in LEVELS or not _covers(held, f"{name}:{level}"):
                raise unfit("The permissions requested are not granted to this installation.")
        chosen = _chosen(installation, list(names), list(ids))
        given = {"metadata": "read", **permissions} if permissions else dict(held)
        grant = Grant(
            token=tokens.installation_token(installation.app.id),
            installation=installation,
            permissions=given,
            repos=chosen or tuple(installation.repos),
            narrowed=bool(chosen),
            expires=self.world.now() + tokens.HOUR,
        )
        self.grants[grant.token] = grant
        return grant


def _chosen(installation: Installation, names: list[str], ids: list[int]) -> tuple[Repo, ...]:
    by_name = {repo.name.lower(): repo for repo in installation.repos}
    by_id = {repo.id: repo for repo in installation.repos}
    found = [by_name.get(str(name).lower()) for name in names] + [by_id.get(number) for number in ids]
    if any(repo is None for repo in found):
        raise unfit(
            "There is at least one repository that does not exist or is not accessible to the parent installation."
        )
    return tuple(repo for repo in found if repo is not None)


def _basic(encoded: str) -> str:
    """The password of basic authentication, or its user name when there is no password (git allows both)."""
    try:
        name, _, word = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise unauthorized() from None
    return word if word not in ("", "x-oauth-basic") else name
