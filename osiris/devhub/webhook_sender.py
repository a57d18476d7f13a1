"""The sender of webhooks: signed, in the order of the events, one app at a time, never twice by
itself."""

import asyncio
import hashlib
import hmac
import json
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import urlencode

import httpx

from osiris.config.http_server import create_tls_context
from osiris.devhub.models import App, Delivery, HubEvent, Installation, Repo
from osiris.devhub.observers import HubObserver
from osiris.devhub.payloads import webhooks
from osiris.devhub.world import World

TIMEOUT = 10
PENDING, DEFERRED = "pending", "deferred"
WHY = {httpx.ConnectError: "failed to connect to host", httpx.TimeoutException: "timed out"}


class PendingDelivery:
    """A delivery that an interceptor holds: each call sends it."""

    def __init__(
        self, hooks: "WebhookSender", delivery: Delivery, rest: Sequence["DeliveryInterceptor"]
    ) -> None:
        self._hooks = hooks
        self._delivery = delivery
        self._rest = rest

    async def __call__(self) -> None:
        await self._hooks.run_interceptors(self._delivery, self._rest)

    def defer_until(self, moment: Awaitable[object]) -> None:
        """Send it when `moment` has come; later deliveries overtake it until then."""
        self._hooks.defer_delivery(self._delivery, moment, self)

    def drop(self) -> None:
        """Drop it: it is not sent, and its record is removed."""
        self._delivery.app.deliveries.remove(self._delivery)


DeliveryInterceptor = Callable[[Delivery, PendingDelivery], Awaitable[None]]
"""A function between a delivery and its sending. When it does nothing, the delivery has failed."""


class WebhookSender:
    """The sender of all webhooks, with one queue and one task for each app."""

    def __init__(self, world: World, observers: Sequence[HubObserver] = ()) -> None:
        self._world = world
        self._observers = observers
        self.interceptors: list[DeliveryInterceptor] = []
        # no connection is kept: a receiver may close it at the moment of the next delivery, which
        # is sent only once
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT,
            trust_env=False,
            verify=create_tls_context(),
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._queues: dict[int, asyncio.Queue[Delivery]] = {}
        self._senders: dict[int, asyncio.Task[None]] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self._unsent = 0
        self._all_sent = asyncio.Event()
        world.listeners.append(self.on_event)

    def on_event(self, item: HubEvent) -> None:
        """Build the payload for each app that subscribed to the event, and queue it."""
        for installation in self._world.installations.values():
            app = installation.app
            if (
                not app.webhook_url
                or item.event not in app.events
                or item.repo not in installation.repos
            ):
                continue
            if installation.suspended is not None:
                continue
            body = webhooks.build_payload(self._world, item, installation)
            self._queue_webhook(app, item.event, body, installation, item.repo)

    def queue_installation(self, installation: Installation, action: str) -> None:
        """Notify an app that it was installed or removed, suspended or unsuspended."""
        body = webhooks.build_installation_payload(self._world, installation, action)
        self._queue_webhook(installation.app, "installation", body, installation, None)

    def queue_repositories(
        self,
        installation: Installation,
        *,
        added: Sequence[Repo] = (),
        removed: Sequence[Repo] = (),
    ) -> None:
        """Notify an app of the repositories that were added to or removed from its installation."""
        body = webhooks.build_repositories_payload(self._world, installation, added, removed)
        self._queue_webhook(installation.app, "installation_repositories", body, installation, None)

    def redeliver(self, old: Delivery) -> None:
        """Send the same body again with the same guid."""
        self._queue_delivery(
            self._build_delivery(
                old.app, old.event, old.body, old.installation, old.repo, guid=old.guid
            )
        )

    def _queue_webhook(
        self,
        app: App,
        event: str,
        body: dict[str, Any],
        installation: Installation,
        repo: Repo | None,
    ) -> None:
        if app.webhook_url:
            self._queue_delivery(
                self._build_delivery(app, event, json.dumps(body).encode(), installation, repo)
            )

    def _build_delivery(
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

    def _queue_delivery(self, delivery: Delivery) -> None:
        app = delivery.app
        self._world.record_delivery(delivery)
        self._count_unsent(1)
        if app.id not in self._queues:
            self._queues[app.id] = asyncio.Queue()
            self._senders[app.id] = asyncio.create_task(self._send_all(self._queues[app.id]))
        self._queues[app.id].put_nowait(delivery)

    async def _send_all(self, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            await self._finish_sending(
                delivery := await queue.get(),
                self.run_interceptors(delivery, list(self.interceptors)),
            )

    async def run_interceptors(
        self, delivery: Delivery, interceptors: Sequence[DeliveryInterceptor]
    ) -> None:
        if not interceptors:
            await self._post_webhook(delivery)
            return
        first, *rest = interceptors
        await first(delivery, PendingDelivery(self, delivery, rest))

    def defer_delivery(
        self, delivery: Delivery, moment: Awaitable[object], send: PendingDelivery
    ) -> None:
        async def send_later() -> None:
            await moment
            if delivery.status == DEFERRED:
                delivery.status = PENDING
            await send()

        self._count_unsent(1)
        if delivery.status == PENDING:
            delivery.status = DEFERRED
        self._waiting.add(task := asyncio.create_task(self._finish_sending(delivery, send_later())))
        task.add_done_callback(self._waiting.discard)

    async def _finish_sending(self, delivery: Delivery, sending: Coroutine[Any, Any, None]) -> None:
        """Finish one delivery; one that was neither sent nor deferred has failed."""
        try:
            await sending
            if delivery.status == PENDING:
                delivery.delivered = self._world.now()
                delivery.status_code = 502
                delivery.status = "failed to connect to host"
        finally:
            self._count_unsent(-1)

    def _count_unsent(self, more: int) -> None:
        self._unsent += more
        (self._all_sent.clear if self._unsent else self._all_sent.set)()

    async def _post_webhook(self, delivery: Delivery) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        content = _encode_body(delivery)
        delivery.request_headers = _build_headers(delivery, content)
        delivery.delivered = self._world.now()
        try:
            answer = await self._client.post(
                delivery.app.webhook_url, content=content, headers=delivery.request_headers
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            delivery.status_code = 502
            delivery.status = next(
                (why for kind, why in WHY.items() if isinstance(error, kind)), "connection lost"
            )
        else:
            delivery.status_code = answer.status_code
            delivery.status = "OK" if answer.is_success else answer.reason_phrase
            delivery.response_headers = dict(answer.headers)
            delivery.response_body = answer.text[:10_000]
        delivery.duration = loop.time() - begun
        for observer in self._observers:
            observer.on_delivery(delivery)

    async def wait_until_sent(self) -> None:
        """Wait until every queued or deferred delivery was sent, and those that these caused."""
        while self._unsent:
            quiet = asyncio.ensure_future(self._all_sent.wait())
            tasks = [quiet, *self._senders.values(), *self._waiting]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            quiet.cancel()
            for task in done:
                task.result()  # raises the error of a failed interceptor

    async def close(self) -> None:
        tasks = [*self._senders.values(), *self._waiting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()


def sign_body(algorithm: str, secret: str, body: bytes) -> str:
    return f"{algorithm}={hmac.new(secret.encode(), body, getattr(hashlib, algorithm)).hexdigest()}"


def _encode_body(delivery: Delivery) -> bytes:
    """Return the payload as the app's webhook sends it: as JSON, or as the field of a form."""
    if delivery.app.webhook_content_type == "form":
        return urlencode({"payload": delivery.body.decode()}).encode()
    return delivery.body


def _build_headers(delivery: Delivery, content: bytes) -> dict[str, str]:
    app = delivery.app
    is_form = app.webhook_content_type == "form"
    headers = {
        "Accept": "*/*",
        "Content-Type": "application/x-www-form-urlencoded" if is_form else "application/json",
        "User-Agent": "GitHub-Hookshot/devhub",
        "X-GitHub-Delivery": delivery.guid,
        "X-GitHub-Event": delivery.event,
        "X-GitHub-Hook-ID": str(app.id),
        "X-GitHub-Hook-Installation-Target-ID": str(app.id),
        "X-GitHub-Hook-Installation-Target-Type": "integration",
    }
    if app.webhook_secret:
        headers["X-Hub-Signature"] = sign_body("sha1", app.webhook_secret, content)
        headers["X-Hub-Signature-256"] = sign_body("sha256", app.webhook_secret, content)
    return headers
