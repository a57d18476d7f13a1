"""An environment of devhub and a complete Osiris, connected on loopback, with users who act in
it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from osiris.bootstrap import Osiris, Parts, build_osiris
from osiris.config.app_manifest import APP_EVENTS, APP_PERMISSIONS
from osiris.config.settings import Settings
from osiris.core.ports.sandbox import Plan, Sandbox
from osiris.devhub.models import App
from osiris.devhub.server import Hub
from osiris.devhub.server import serve_hub as hub_serving
from osiris.devhub.tokens import KeyPair
from osiris.playground.users import Person
from osiris.queue.task_store import Store
from osiris.runtime import run_embedded
from osiris.tools.sandbox.disks.mounts import unmount_below

_PATIENCE = 60.0  # seconds that any wait may take


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The hub, and what Osiris needs to know to work with it."""

    hub: Hub
    app: App
    repo: str
    settings: Settings

    def get_person(self, login: str) -> Person:
        return Person(self.hub.api_url, login, self.hub.world.get_user(login).token, self.repo)

    @contextlib.asynccontextmanager
    async def run_osiris(self, **replacements: Any) -> AsyncIterator[Osiris]:
        """Run one instance of Osiris, web server and worker, in this process until the block
        ends."""
        async with run_embedded(osiris := build_osiris(self.settings, Parts(**replacements))):
            yield osiris

    async def wait_until_settled(self, store: Store) -> None:
        """Wait until no webhook is unsent and no row is waiting."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                await self.hub.wait_until_sent()
                if await store.next_due() is None:
                    return
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def start_environment(
    place: Path,
    *,
    repo: str,
    files: Mapping[str, bytes | str] | None = None,
    import_from: tuple[Path, str] | None = None,
    people: Mapping[str, str],
    model: str = "",
    more: Mapping[str, Any] | None = None,
    sandbox: Sandbox | None = None,
    toolchains: tuple[Path, ...] = (),
    keys: KeyPair | None = None,
    hub_port: int = 0,
    keep: bool = False,
) -> AsyncIterator[Environment]:
    """Start a hub with one repository, its users by role, and the App installed.

    The repository contains `files`, or is a copy of a commit of another one; `more` are further
    settings, by field name; `sandbox` runs the hub's checks; `keys` are the App's, which otherwise
    gets new ones. With `keep`, the hub's state is saved in `place`, and an environment saved there
    before is restored.
    """
    async with contextlib.AsyncExitStack() as stack:
        # last: a check of the hub's may still be making its workspace
        stack.push_async_callback(asyncio.to_thread, unmount_below, place)
        hub = await stack.enter_async_context(
            hub_serving(
                place / "hub",
                port=hub_port,
                run_check=_build_check_runner(sandbox) if sandbox else None,
            )
        )
        if not (keep and hub.open_saved(place / "hub.world")):
            _populate_hub(hub, repo, files, import_from, people, keys)
        if keep:
            # no jail needs it, and it may contain what only its owner should read
            (place / "hub").chmod(0o700)
        [app] = [app for app in hub.world.apps.values() if app.slug == "osiris"]
        port = find_free_port()
        app.webhook_url = f"http://127.0.0.1:{port}/webhooks/github"
        hub.save()
        chosen = {"osiris_model": model, "osiris_toolchains": toolchains, **(more or {})}
        settings = _build_settings(hub, app, place / "osiris", port, chosen)
        yield Environment(hub=hub, app=app, repo=repo, settings=settings)


def _build_settings(
    hub: Hub, app: App, data: Path, port: int, chosen: Mapping[str, Any]
) -> Settings:
    """Return the settings of Osiris beside a hub; `chosen` come in addition, or in the place of
    these."""
    defaults = {
        "osiris_github_limits": "off",  # the hub has none of GitHub's limits on writes
        # what runs here is our own, or belongs to a person who may override this
        "osiris_sandbox": "weak",
    }
    return Settings(
        github_app_id=str(app.id),
        github_private_key=app.private_key,
        github_webhook_secret=app.webhook_secret,
        github_api_url=hub.api_url,
        github_url=hub.url,
        osiris_data_dir=data,
        osiris_port=port,
        **{**defaults, **chosen},
    )


def _populate_hub(
    hub: Hub,
    repo: str,
    files: Mapping[str, bytes | str] | None,
    import_from: tuple[Path, str] | None,
    people: Mapping[str, str],
    keys: KeyPair | None,
) -> None:
    """Create the users, a repository, and the App installed on it."""
    for login in people:
        hub.add_user(login)
    insiders = {login: role for login, role in people.items() if role != "none"}
    hub.add_repo(repo, files=files, import_from=import_from, collaborators=insiders)
    app = hub.add_app(
        slug="osiris",
        webhook_url="http://127.0.0.1/",
        webhook_secret=token_hex(16),
        permissions=APP_PERMISSIONS,
        events=APP_EVENTS,
        keys=keys,
    )
    hub.install_app(app, repo)


def _build_check_runner(sandbox: Sandbox) -> Callable[[Path, str, str], Any]:
    """Return a function that runs the hub's checks in the jail, because they run code that a model
    wrote."""

    async def run_check(mirror: Path, commit: str, command: str) -> tuple[int | None, str]:
        session, _new = await sandbox.create(
            f"ci-{commit}", Plan(repo=str(mirror), base=commit, trusted=commit)
        )
        try:
            result = await session.run(["bash", "-c", command])
            return result.exit_code, result.output.decode("utf-8", "replace")
        finally:
            await session.destroy()

    return run_check


def find_free_port() -> int:
    """Return a loopback port that is not in use right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
