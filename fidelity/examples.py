"""GitHub's recorded payloads, delivered to the webhook endpoint of a running Osiris, and parsed."""

import asyncio
import hashlib
import hmac
import json
import tempfile
import uuid
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import yaml

from fidelity import packages
from fidelity.finding import CheckOutcome
from osiris.bootstrap import Timeouts
from osiris.bot.github import webhook_payloads
from osiris.playground.environment import Environment, start_environment

EXPECTED_EVENTS = Path(__file__).parent / "webhook_events.yml"
AT_ONCE = 20


def parse_payloads() -> CheckOutcome:
    """Parse each payload; the result must be the event in the table, or none for all others."""
    outcome = CheckOutcome(
        check="payloads",
        promise="a recorded payload is parsed to the event in the table, or to none",
    )
    expected = {
        (row.pop("event"), row.pop("example")): row
        for row in yaml.safe_load(EXPECTED_EVENTS.read_text())
    }
    known = set()
    for event, number, body in packages.webhook_examples():
        outcome.looked += 1
        known.add((event, number))
        where = _name(event, number, body)
        try:
            parsed_event = webhook_payloads.parse_delivery(event, json.dumps(body).encode())
        except ValueError as error:
            outcome.blame(where, f"cannot be read: {error}")
            continue
        actual = (
            {"parsed_event": type(parsed_event).__name__, **_flat(asdict(parsed_event))}
            if parsed_event
            else None
        )
        for reason in _differences(expected.get((event, number)), actual):
            outcome.blame(where, reason)
    for event, number in expected.keys() - known:
        outcome.blame(f"{EXPECTED_EVENTS.name}: {event} {number}", "there is no such payload")
    outcome.seen = f"payloads, {len(expected)} of them an event"
    return outcome


def _differences(wanted: dict[str, Any] | None, actual: dict[str, Any] | None) -> list[str]:
    """The table names the main fields; those it does not name are not compared."""
    if wanted is None or actual is None:
        return [] if wanted == actual else [f"expected {wanted}, got {actual}"]
    return [
        f"{name} is {actual.get(name)!r}, expected {value!r}"
        for name, value in wanted.items()
        if actual.get(name) != value
    ]


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """An issue is written by its number."""
    return {
        name: value["number"] if isinstance(value, dict) else value
        for name, value in fields.items()
    }


def _name(event: str, number: int, body: dict[str, Any]) -> str:
    return f"{event} {body.get('action', '')} (example {number})".replace("  ", " ")


async def deliver_payloads() -> CheckOutcome:
    """Deliver each payload to a running Osiris, which must process all of them."""
    outcome = CheckOutcome(
        check="webhook_endpoint",
        promise="Osiris takes every recorded payload of GitHub and fails at none",
    )
    with tempfile.TemporaryDirectory(prefix="osiris-fidelity-") as folder:
        place = Path(folder)
        people = {"alice": "maintain"}
        async with (
            start_environment(
                place, repo="acme/shop", people=people, model="scripted:none"
            ) as playground,
            playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as osiris,
        ):
            names = await _deliver(playground, outcome)
            await playground.wait_until_settled(osiris.store)
            for failure in await osiris.read_models.list_failures(limit=1000):
                outcome.blame(names.get(failure.id, failure.what), f"given up: {failure.error}")
            for line in await osiris.read_models.list_tasks():
                outcome.blame(
                    str(line.task.issue), "a payload about a stranger's repository became a task"
                )
            for id, name in names.items():
                if not await osiris.read_models.is_handled("github", id):
                    outcome.blame(name, "was never taken up")
    return outcome


async def _deliver(playground: Environment, outcome: CheckOutcome) -> dict[str, str]:
    """Send every payload, signed, some at once; gives the name of each by its delivery's id."""
    answered: Counter[int] = Counter()
    names: dict[str, str] = {}
    limiter = asyncio.Semaphore(AT_ONCE)
    secret = playground.settings.github_webhook_secret.get_secret_value()

    async def send(
        http: httpx.AsyncClient, event: str, number: int, payload: dict[str, Any]
    ) -> None:
        body = json.dumps(payload).encode()
        id = str(uuid.uuid4())
        names[id] = _name(event, number, payload)
        headers = {
            "Content-Type": "application/json",
            "X-GitHub-Delivery": id,
            "X-GitHub-Event": event,
            "X-Hub-Signature-256": "sha256="
            + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        }
        async with limiter:
            answer = await http.post(playground.app.webhook_url, content=body, headers=headers)
        answered[answer.status_code] += 1
        if answer.status_code != 202:
            outcome.blame(names[id], f"answered {answer.status_code} {answer.text[:200]}")

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        await asyncio.gather(*(send(http, *example) for example in packages.webhook_examples()))
    outcome.looked = answered.total()
    outcome.seen = f"payloads, {answered[202]} answered 202"
    return names
