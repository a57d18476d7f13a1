"""Readiness checks: each thing that the work needs is tried out."""

from collections.abc import Sequence
from time import monotonic
from typing import Any, Protocol, cast

from sqlalchemy.exc import SQLAlchemyError

from osiris.agents.models.registry import ModelRegistry
from osiris.bot.github.app_auth import AppAuth
from osiris.bot.github.channel import USE_JSON
from osiris.config.settings import Settings
from osiris.core.errors import OsirisError, Refused, Unavailable
from osiris.core.ports.sandbox import Probe, Sandbox
from osiris.queue.task_store import Store

_PROBE_LIFE = 60.0  # seconds


class _ConnectionProbe(Protocol):
    async def probe_connection(self) -> Probe | None: ...


class Readiness:
    """The checks of this process. Expensive ones are run at most once a minute."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        sandbox: Sandbox | None,
        models: ModelRegistry,
        wake: _ConnectionProbe,
    ) -> None:
        """Create the checks. If `sandbox` is None, this process runs no commands."""
        self._settings = settings
        self._store = store
        self._sandbox = sandbox
        self._models = models
        self._wake = wake
        self._probes: Sequence[Probe] = ()
        self._until = 0.0

    async def __call__(self) -> Sequence[Probe]:
        if self._sandbox is not None and monotonic() >= self._until:
            self._probes = await self._sandbox.probe()
            self._until = monotonic() + _PROBE_LIFE
        hints = await self._wake.probe_connection()
        return [
            *self.probe_settings(),
            await self.probe_database(),
            *([hints] if hints else []),
            *self._probes,
        ]

    def probe_settings(self) -> list[Probe]:
        missing = self._settings.list_missing()
        fix = "set it in the environment or in .env; README, section 'A GitHub App by hand'"
        return [
            Probe(name=f"setting {name}", ok=False, detail="not set", fix=fix) for name in missing
        ]

    async def probe_models(self) -> list[Probe]:
        """Check whether each of the operator's models answers and can call tools.

        This costs a few tokens.
        """
        wanted = filter(None, (self._settings.osiris_model, self._settings.osiris_second_model))
        return [await self._probe_model(model) for model in wanted]

    async def _probe_model(self, model: str) -> Probe:
        name = f"model {model}"
        try:
            await self._models.probe_model(model)
        except Refused as refused:
            return Probe(
                name=name,
                ok=False,
                detail=str(refused),
                fix="correct OSIRIS_MODEL, the vendor's key or its URL",
            )
        except Unavailable as outage:
            fix = "see that this machine reaches the vendor; runs wait until it answers"
            return Probe(name=name, ok=False, needed=False, detail=str(outage), fix=fix)
        return Probe(name=name, ok=True, detail="it calls tools")

    async def probe_database(self) -> Probe:
        try:
            await self._store.check_writable()
        except SQLAlchemyError as error:
            told = str(getattr(error, "orig", error))
            fix = "see that the data folder can be written, or that the server of DATABASE_URL runs"
            return Probe(name="database", ok=False, detail=told, fix=fix)
        return Probe(
            name="database", ok=True, detail="" if self._settings.is_embedded else "PostgreSQL"
        )


async def probe_github(
    auth: AppAuth | None, wanted: dict[str, str], events: Sequence[str]
) -> list[Probe]:
    """Check whether GitHub knows the App, and whether it has the permissions and events that Osiris
    needs."""
    if auth is None:
        return []
    try:
        app = await auth.read_app()
        content_type = await auth.read_webhook_content_type()
        delivery = await auth.read_last_delivery()
    except OsirisError as error:
        fix = "compare GITHUB_APP_ID, the private key and GITHUB_API_URL with the App's page"
        return [Probe(name="GitHub App", ok=False, detail=str(error), fix=fix)]
    has = cast(dict[str, str], app.get("permissions", {}))
    lacks = [
        f"{name}: {level}"
        for name, level in wanted.items()
        if has.get(name) not in (level, "write")
    ]
    missing_events = [name for name in events if name not in app.get("events", [])]
    return [
        Probe(name="GitHub App", ok=True, detail=str(app.get("slug", ""))),
        Probe(
            name="permissions",
            ok=not lacks,
            detail=", ".join(lacks),
            fix="grant them on the App's page",
        ),
        Probe(
            name="events",
            ok=not missing_events,
            detail=", ".join(missing_events),
            fix="subscribe to them on the App's page",
        ),
        Probe(
            name="webhook format",
            ok=content_type == "json",
            detail="" if content_type == "json" else f"the App sends {content_type or 'none'}",
            fix=USE_JSON,
        ),
        _probe_webhooks(delivery),
    ]


def _probe_webhooks(delivery: dict[str, Any] | None) -> Probe:
    """Check whether GitHub's last webhook reached this server."""
    if delivery is None:
        fix = "label an issue, or press 'Redeliver' on the App's page under Advanced"
        return Probe(
            name="webhooks", ok=False, needed=False, detail="GitHub has sent none yet", fix=fix
        )
    told = (
        f"the last one ({delivery['event']}) was answered {delivery['status_code']}"
        f" {delivery['status']}"
    )
    fix = "see that the App's webhook URL reaches this server, and that the secret is the same"
    return Probe(
        name="webhooks", ok=delivery["status_code"] == 202, needed=False, detail=told, fix=fix
    )
