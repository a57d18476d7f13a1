"""The environment of the devhub tests."""

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
    receiving,
)


@pytest.fixture
async def env(place: Path) -> AsyncIterator[HubEnvironment]:
    clock = HubClock()
    async with receiving() as receiver, serve_hub(place / "hub", clock=clock) as hub:
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
        made = HubEnvironment(hub, clock, receiver, place, repo, app, installation, *people)
        yield made
        receiver.leaving.set()  # both servers take their time to close: let them do it together
        for client in made.clients:
            await client.aclose()
