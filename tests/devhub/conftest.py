"""Fixture with the environment of the devhub tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from osiris.devhub.server import serve_hub
from tests.devhub.environment import (
    EVENTS,
    FILES,
    PERMISSIONS,
    SECRET,
    HubClock,
    HubEnvironment,
    start_receiver,
)


@pytest.fixture
async def env(folder: Path) -> AsyncIterator[HubEnvironment]:
    clock = HubClock()
    async with start_receiver() as receiver, serve_hub(folder / "hub", clock=clock) as hub:
        people = [hub.add_user(login) for login in ("mia", "rob", "eve")]
        repo = hub.add_repo(
            "acme/shop", files=FILES, collaborators={"mia": "maintain", "rob": "triage"}
        )
        app = hub.add_app(
            slug="osiris",
            webhook_url=receiver.url,
            webhook_secret=SECRET,
            permissions=PERMISSIONS,
            events=EVENTS,
        )
        installation = hub.install_app(app, "acme/shop")
        environment = HubEnvironment(hub, clock, receiver, folder, repo, app, installation, *people)
        yield environment
        # both servers take some time to close, so they close at the same time
        receiver.stopping.set()
        for client in environment.clients:
            await client.aclose()
