"""GitHub's recorded payloads: they are delivered to the webhook endpoint of a running Osiris, and
parsed."""

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
    """Parse each payload. The result must be the event in the table, or none for all others."""
    outcome = CheckOutcome(
        check="payloads",
        promise="a recorded payload is parsed to the event in the table, or to none",
    )
    expected = {
        (row.pop("event"), row.pop("example")): row
        for row in yaml.safe_load(EXPECTED_EVENTS.read_text())
    }
    existing = set()
    for event, number, body in packages.load_webhook_examples():
        outcome.checked_count += 1
        existing.add((event, number))
        where = _format_name(event, number, body)
        try:
            parsed_event = webhook_payloads.parse_delivery(event, json.dumps(body).encode())
        except ValueError as error:
            outcome.add_violation(where, f"cannot be read: {error}")
            continue
        actual = (
            {"parsed_event": type(parsed_event).__name__, **_flatten(asdict(parsed_event))}
            if parsed_event
            else None
        )
        for reason in _find_differences(expected.get((event, number)), actual):
            outcome.add_violation(where, reason)
    for event, number in expected.keys() - existing:
        outcome.add_violation(
            f"{EXPECTED_EVENTS.name}: {event} {number}", "there is no such payload"
        )
    outcome.checked_what = f"payloads, {len(expected)} of them an event"
    return outcome


def _find_differences(expected: dict[str, Any] | None, actual: dict[str, Any] | None) -> list[str]:
    """Return the differences in the fields that the table names; the others are not compared."""
    if expected is None or actual is None:
        return [] if expected == actual else [f"expected {expected}, got {actual}"]
    return [
        f"{name} is {actual.get(name)!r}, expected {value!r}"
        for name, value in expected.items()
        if actual.get(name) != value
    ]


def _flatten(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with an issue replaced by its number."""
    return {
        name: value["number"] if isinstance(value, dict) else value
        for name, value in fields.items()
    }


def _format_name(event: str, number: int, body: dict[str, Any]) -> str:
    return f"{event} {body.get('action', '')} (example {number})".replace("  ", " ")


async def deliver_payloads() -> CheckOutcome:
    """Deliver each payload to a running Osiris, which must process all of them."""
    outcome = CheckOutcome(
        check="webhook_endpoint",
        promise="Osiris takes every recorded payload of GitHub and fails at none",
    )
    with tempfile.TemporaryDirectory(prefix="osiris-fidelity-") as folder:
        data_folder = Path(folder)
        people = {"alice": "maintain"}
        async with (
            start_environment(
                data_folder, repo="acme/shop", people=people, model="scripted:none"
            ) as playground,
            playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as osiris,
        ):
            names = await _send_payloads(playground, outcome)
            await playground.wait_until_settled(osiris.store)
            for failure in await osiris.read_models.list_failures(limit=1000):
                outcome.add_violation(
                    names.get(failure.id, failure.what), f"given up: {failure.error}"
                )
            for line in await osiris.read_models.list_tasks():
                outcome.add_violation(
                    str(line.task.issue), "a payload about a stranger's repository became a task"
                )
            for delivery_id, name in names.items():
                if not await osiris.read_models.is_handled("github", delivery_id):
                    outcome.add_violation(name, "was never processed")
    return outcome


async def _send_payloads(playground: Environment, outcome: CheckOutcome) -> dict[str, str]:
    """Send every payload with a signature, some at the same time. Return their names by the ids of
    the deliveries."""
    status_counts: Counter[int] = Counter()
    names: dict[str, str] = {}
    limiter = asyncio.Semaphore(AT_ONCE)
    secret = playground.settings.github_webhook_secret.get_secret_value()

    async def send(
        http: httpx.AsyncClient, event: str, number: int, payload: dict[str, Any]
    ) -> None:
        body = json.dumps(payload).encode()
        delivery_id = str(uuid.uuid4())
        names[delivery_id] = _format_name(event, number, payload)
        headers = {
            "Content-Type": "application/json",
            "X-GitHub-Delivery": delivery_id,
            "X-GitHub-Event": event,
            "X-Hub-Signature-256": "sha256="
            + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        }
        async with limiter:
            answer = await http.post(playground.app.webhook_url, content=body, headers=headers)
        status_counts[answer.status_code] += 1
        if answer.status_code != 202:
            outcome.add_violation(
                names[delivery_id], f"answered {answer.status_code} {answer.text[:200]}"
            )

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        await asyncio.gather(
            *(send(http, *example) for example in packages.load_webhook_examples())
        )
    outcome.checked_count = status_counts.total()
    outcome.checked_what = f"payloads, {status_counts[202]} answered 202"
    return names
