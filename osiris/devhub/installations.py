"""GitHub Apps and their installations: registering, installing, suspending, removing."""

import secrets
from collections.abc import Mapping, Sequence

from osiris.devhub import tokens
from osiris.devhub.models import App, Installation, Repo, User
from osiris.devhub.world import World

GHOST = "devhub"


def add_app(
    world: World,
    *,
    slug: str,
    webhook_url: str,
    webhook_secret: str,
    permissions: Mapping[str, str],
    events: Sequence[str],
    keys: tokens.KeyPair | None = None,
) -> App:
    """Register an App. Without `keys` a key pair is created, which takes a tenth of a second."""
    bot = world.add_user(f"{slug}[bot]", type="Bot")
    app = App(
        id=world.next_id(),
        slug=slug,
        bot=bot,
        owner=world.add_user(GHOST, type="Organization"),
        keys=keys or tokens.generate_key_pair(),
        client_id="Iv23li" + secrets.token_hex(7),
        webhook_url=webhook_url,
        webhook_secret=webhook_secret,
        permissions={"metadata": "read", **permissions},
        events=tuple(events),
        created=world.now(),
    )
    bot.app = app
    world.apps[app.id] = app
    world.index_resources(app)
    return app


def install_app(world: World, app: App, repos: Sequence[Repo]) -> Installation:
    """Add repositories of one account to the App's installation on that account, which is created
    when there is none."""
    account = repos[0].owner
    for known in world.installations.values():
        if known.app is app and known.account is account:
            known.repos += [repo for repo in repos if repo not in known.repos]
            return known
    new = Installation(
        id=world.next_id(), app=app, account=account, created=world.now(), repos=list(repos)
    )
    world.installations[new.id] = new
    world.index_resources(new)
    return new


def find_installation(world: World, app: App, repo: Repo) -> Installation | None:
    found = (i for i in world.installations.values() if i.app is app and repo in i.repos)
    return next(found, None)


def suspend_installation(world: World, installation: Installation, by: User | None) -> None:
    installation.suspended = world.now()
    installation.suspended_by = by


def unsuspend_installation(installation: Installation) -> None:
    installation.suspended = None
    installation.suspended_by = None


def uninstall_app(world: World, installation: Installation) -> None:
    """Remove an App from an account; this voids every token of the installation."""
    del world.installations[installation.id]


def narrow_installation(installation: Installation, repo: Repo) -> bool:
    """Remove one repository from an installation. Return whether it was in it."""
    if repo not in installation.repos:
        return False
    installation.repos.remove(repo)
    return True
