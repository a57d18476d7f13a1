"""Sends webhooks: signed, in order of happening, one app at a time, never twice by itself."""

import asyncio
import hashlib
import hmac
import json
import uuid
from collections.abc import Sequence
from typing import Any

import httpx

from osiris.config.guest import tls
from osiris.devhub.payloads import webhooks
from osiris.devhub.things import App, Delivery, Happening, Installation, Repo
from osiris.devhub.watching import Watcher
from osiris.devhub.world import World

TIMEOUT = 10
WHY = {httpx.ConnectError: "failed to connect to host", httpx.TimeoutException: "timed out"}


class Hooks:
    """One queue and one sender for each app."""

    def __init__(self, world: World, watchers: Sequence[Watcher] = ()) -> None:
        self._world, self._watchers = world, watchers
        self._client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=tls())
        self._queues: dict[int, asyncio.Queue[Delivery]] = {}
        self._senders: dict[int, asyncio.Task[None]] = {}
        self._unsent = 0
        world.listeners.append(self.hear)

    def hear(self, happening: Happening) -> None:
        """Write down, at this moment, what each app that listens will be sent."""
        for installation in self._world.installations.values():
            app = installation.app
            if not app.webhook_url or happening.event not in app.events or happening.repo not in installation.repos:
                continue
            body = webhooks.payload(self._world, happening, installation)
            self._queue(app, happening.event, body, installation, happening.repo)

    def installed(self, installation: Installation, action: str = "created") -> None:
        body = webhooks.installed(self._world, installation, action)
        if installation.app.webhook_url:
            self._queue(installation.app, "installation", body, installation, None)

    def redeliver(self, old: Delivery) -> None:
        """Send the same body again under the same guid."""
        self._put(self._delivery(old.app, old.event, old.body, old.installation, old.repo, guid=old.guid))

    def _queue(self, app: App, event: str, body: dict[str, Any], installation: Installation, repo: Repo | None) -> None:
        self._put(self._delivery(app, event, json.dumps(body).encode(), installation, repo))

    def _delivery(
        self,
        app: App,
        event: str,
        body: bytes,
        installation: Installation | None,
        repo: Repo | None,
        *,
        guid: str = "",
    ) -> Delivery:
        return Delivery(
            id=self._world.next_id(),
            guid=guid or str(uuid.uuid4()),
            app=app,
            event=event,
            action=json.loads(body).get("action"),
            body=body,
            installation=installation,
            repo=repo,
            redelivery=bool(guid),
        )

    def _put(self, delivery: Delivery) -> None:
        app = delivery.app
        self._world.record(delivery)
        self._unsent += 1
        if app.id not in self._queues:
            self._queues[app.id] = asyncio.Queue()
            self._senders[app.id] = asyncio.create_task(self._send_all(self._queues[app.id]))
        self._queues[app.id].put_nowait(delivery)

    async def _send_all(self, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            delivery = await queue.get()
            try:
                await self._send(delivery)
            finally:
                self._unsent -= 1
                queue.task_done()

    async def _send(self, delivery: Delivery) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        delivery.request_headers = _headers(delivery)
        delivery.delivered = self._world.now()
        try:
            answer = await self._client.post(
                delivery.app.webhook_url, content=delivery.body, headers=delivery.request_headers
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            delivery.status_code = 502
            delivery.status = next((why for kind, why in WHY.items() if isinstance(error, kind)), "connection lost")
        else:
            delivery.status_code, delivery.status = (
                answer.status_code,
                "OK" if answer.is_success else answer.reason_phrase,
            )
            delivery.response_headers, delivery.response_body = dict(answer.headers), answer.text[:10_000]
        delivery.duration = loop.time() - begun
        for watcher in self._watchers:
            watcher.delivered(delivery)

    async def drained(self) -> None:
        """Wait until everything queued so far, and what that caused, was sent."""
        while self._unsent:
            joins = [asyncio.ensure_future(queue.join()) for queue in self._queues.values()]
            await asyncio.wait([*joins, *self._senders.values()], return_when=asyncio.FIRST_COMPLETED)
            for task in joins:
                task.cancel()
            for sender in self._senders.values():
                if sender.done():
                    sender.result()

    async def close(self) -> None:
        for sender in self._senders.values():
            sender.cancel()
        await asyncio.gather(*self._senders.values(), return_exceptions=True)
        await self._client.aclose()


def signature(algorithm: str, secret: str, body: bytes) -> str:
    return f"{algorithm}={hmac.new(secret.encode(), body, getattr(hashlib, algorithm)).hexdigest()}"


def _headers(delivery: Delivery) -> dict[str, str]:
    app = delivery.app
    headers = {
        "Accept": "*/*",
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/devhub",
        "X-GitHub-Delivery": delivery.guid,
        "X-GitHub-Event": delivery.event,
        "X-GitHub-Hook-ID": str(app.id),
        "X-GitHub-Hook-Installation-Target-ID": str(app.id),
        "X-GitHub-Hook-Installation-Target-Type": "integration",
    }
    if app.webhook_secret:
        headers["X-Hub-Signature"] = signature("sha1", app.webhook_secret, delivery.body)
        headers["X-Hub-Signature-256"] = signature("sha256", app.webhook_secret, delivery.body)
    return headers
