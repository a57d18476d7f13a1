"""The composition root: joins the parts."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from osiris.agents.models.registry import ModelRegistry
from osiris.agents.runner import RunDependencies, Runner
from osiris.bot.channels.messenger import Messenger
from osiris.bot.git.remote import RemoteRepositories
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.github.app_auth import AppAuth
from osiris.bot.github.channel import GitHubChannel, GitHubReceiver
from osiris.bot.github.client import GitHub
from osiris.bot.github.effect_handlers import EffectHandlers
from osiris.bot.github.interpreter import GitHubInterpreter
from osiris.bot.github.reconcile import Reconciler
from osiris.bot.github.repository_names import RepositoryNames
from osiris.bot.web.app import create_app
from osiris.config.settings import Settings
from osiris.core.effects import SendMessage
from osiris.core.policy import Policy
from osiris.core.ports.channels import Channel
from osiris.core.ports.models import SelectModel
from osiris.core.ports.sandbox import Sandbox
from osiris.core.ports.storage import MetricSample
from osiris.core.ports.telemetry import NoTelemetry, Telemetry
from osiris.core.redaction import Redactor
from osiris.data_folder import identify_folder, lock_folder, make_data_folder, prepare_storage
from osiris.factories import (
    create_auth,
    create_hints,
    create_limits,
    create_models,
    create_repositories,
    create_sandbox,
)
from osiris.loop_monitor import LoopMonitor
from osiris.maintenance import Maintenance
from osiris.queue.database import connect
from osiris.queue.event_processor import EventProcessor, PolicyOf
from osiris.queue.in_process import LocalLiveEvents, LocalWake
from osiris.queue.inbox import COMMIT_PATIENCE, WAITING, DatabaseInbox
from osiris.queue.leases import PATIENCE, Lease
from osiris.queue.locks import InboxElection, NamedLocks
from osiris.queue.order_processor import OrderProcessor
from osiris.queue.outbox import Outbox
from osiris.queue.read_models import ReadModels
from osiris.queue.reconcile_state import STALLS, DatabaseReconcileState
from osiris.queue.retention import Retention
from osiris.queue.retry_policy import PAUSES, TRIES, RetryPolicy
from osiris.queue.task_store import Store
from osiris.queue.transcripts import DatabaseTranscripts
from osiris.queue.worker import Worker
from osiris.queue.write_rate_limit import DatabaseWriteLimiter, WriteLimits
from osiris.readiness import Readiness
from osiris.tools.toolbox import SessionTools

log = logging.getLogger("osiris")

_RECONCILE = 300.0  # seconds between two comparisons with GitHub
_REPORT = 10.0  # seconds between two edits of a status comment


@dataclass(frozen=True, kw_only=True)
class Osiris:
    """All parts of a process. The parts that do the work are None in a web process, and while the
    GitHub settings are missing."""

    settings: Settings
    engine: AsyncEngine
    lease: Lease
    store: Store
    inbox: DatabaseInbox
    read_models: ReadModels
    reconcile_state: DatabaseReconcileState
    models: ModelRegistry
    wake: LocalWake
    live_events: LocalLiveEvents
    transcripts: DatabaseTranscripts
    auth: AppAuth | None
    app: FastAPI
    monitor: LoopMonitor
    sandbox: Sandbox | None = None
    github: GitHub | None = None
    reconciler: Reconciler | None = None
    maintenance: Maintenance | None = None
    worker: Worker | None = None

    @contextlib.asynccontextmanager
    async def start_services(self) -> AsyncIterator[None]:
        """Bring the database to this version, and work until the block ends."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.monitor.watch_loop())
            stack.push_async_callback(self.store.close)
            stack.push_async_callback(self.inbox.wait_idle)
            stack.push_async_callback(self.models.close)
            if self.sandbox is not None:
                stack.enter_context(lock_folder(self.settings.osiris_data_dir))
            await prepare_storage(self.settings, self.engine)
            await stack.enter_async_context(self.live_events.open_connection())
            await stack.enter_async_context(
                self.wake.open_connection(self.lease.place if self.worker else "")
            )
            if missing := self.settings.list_missing():
                log.warning("Osiris does no work yet; missing: %s", ", ".join(missing))
            if self.github and self.worker and self.maintenance and self.reconciler:
                await stack.enter_async_context(self.github)
                await self.maintenance.remove_workspaces()
                await stack.enter_async_context(run_in_background(self.worker.run()))
                await stack.enter_async_context(run_in_background(self.maintenance.run()))
                await stack.enter_async_context(run_in_background(self.reconciler.run(_RECONCILE)))
            yield


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Times and bounds of waiting: pauses between tries (seconds), the number of tries, the seconds
    after which a silent worker's lease expires, how many deliveries may wait for a commit, and the
    seconds that each of them may wait."""

    pauses: Sequence[float] = PAUSES
    tries: int = TRIES
    lease: float = PATIENCE
    waiting: int = WAITING
    commit: float = COMMIT_PATIENCE


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts that replace those which the settings would choose; `channels` come in addition.

    Unless `repositories_choose`, the models that repositories name do not count.
    """

    sandbox: Sandbox | None = None
    select_model: SelectModel | None = None
    channels: Sequence[Channel] = ()
    telemetry: Telemetry = field(default_factory=NoTelemetry)
    timeouts: Timeouts = field(default_factory=Timeouts)
    repositories_choose: bool = True


def build_osiris(settings: Settings, parts: Parts | None = None, *, works: bool = True) -> Osiris:
    """Return all parts of a process, joined.

    Unless it `works`, only the web side is built, which needs no sandbox and no data folder of its
    own. Raises Refused for impossible settings.
    """
    os.umask(0o022)  # the sandbox's own user reads what Osiris makes
    make_data_folder(settings)
    parts = parts or Parts()
    engine = connect(settings.database)
    lease = Lease(engine, identify_folder(settings.osiris_data_dir), patience=parts.timeouts.lease)
    wake, live_events = create_hints(settings.redis_url.get_secret_value())
    store = Store(engine, lease, live_events)
    inbox = DatabaseInbox(store, wake, most=parts.timeouts.waiting, patience=parts.timeouts.commit)
    models = create_models(settings)
    auth = create_auth(settings)
    sandbox = (parts.sandbox or create_sandbox(settings)) if works else None
    read_models = ReadModels(engine)
    monitor = LoopMonitor()
    web_metrics = partial(_read_web_metrics, read_models, monitor)
    receivers = [GitHubReceiver(_read_webhook_secret(settings)), *parts.channels]
    app = create_app(
        inbox,
        receivers,
        ready=Readiness(settings, store, sandbox, models, wake),
        read_metrics=read_models.read_metrics if works else web_metrics,
    )
    osiris = Osiris(
        settings=settings,
        engine=engine,
        lease=lease,
        store=store,
        inbox=inbox,
        read_models=read_models,
        reconcile_state=DatabaseReconcileState(engine),
        models=models,
        wake=wake,
        live_events=live_events,
        transcripts=DatabaseTranscripts(engine, lease),
        auth=auth,
        app=app,
        monitor=monitor,
        sandbox=sandbox,
    )
    return osiris if auth is None or sandbox is None else _add_worker(osiris, auth, sandbox, parts)


def _read_webhook_secret(settings: Settings) -> str:
    return settings.github_webhook_secret.get_secret_value()


def _add_worker(osiris: Osiris, auth: AppAuth, sandbox: Sandbox, parts: Parts) -> Osiris:
    """Return `osiris` with what does its work.

    Only GitHub and the remote repositories hold tokens; the runner of agents gets neither of them.
    """
    settings = osiris.settings
    lease = osiris.lease
    lease.on_heartbeat(partial(_record_stalls, osiris.monitor, osiris.reconcile_state, lease.place))
    limits = WriteLimits() if settings.osiris_github_limits == "on" else None
    limiter = DatabaseWriteLimiter(osiris.engine, lease, limits)
    github = GitHub(auth, settings.github_api_url, limiter, Redactor(settings.list_secrets()))
    repositories = create_repositories(settings)
    remote = RemoteRepositories(repositories, auth, settings.github_url, limiter.verify_lease)
    locks = NamedLocks(osiris.engine, lease)
    election = InboxElection(locks)
    reconciler = Reconciler(
        github, auth, osiris.inbox, osiris.reconcile_state, is_elected=election.is_decider
    )
    channel = _create_github_channel(osiris, github, reconciler)
    runner = _create_runner(osiris, sandbox, repositories, remote, parts.select_model)
    handlers = EffectHandlers(github, channel, remote, repositories, runner)
    worker = _create_worker(osiris, github, [channel, *parts.channels], handlers, election, parts)
    exports = settings.osiris_data_dir / "exports"
    retention = Retention(osiris.engine, exports, days=settings.osiris_keep_days)
    maintenance = Maintenance(settings, lease, locks, sandbox, repositories, remote, retention)
    return replace(
        osiris, github=github, reconciler=reconciler, worker=worker, maintenance=maintenance
    )


def _create_github_channel(osiris: Osiris, github: GitHub, reconciler: Reconciler) -> GitHubChannel:
    interpreter = GitHubInterpreter(
        github,
        osiris.store,
        RepositoryNames(github, osiris.reconcile_state),
        osiris.models.why_unavailable,
        reconciler.request,
        reconciler.mark_seen,
    )
    return GitHubChannel(_read_webhook_secret(osiris.settings), github, interpreter)


def _create_worker(
    osiris: Osiris,
    github: GitHub,
    channels: Sequence[Channel],
    handlers: EffectHandlers,
    election: InboxElection,
    parts: Parts,
) -> Worker:
    """Return the worker, with the processors of its two kinds of jobs."""
    settings = osiris.settings
    outbox = Outbox(
        osiris.engine,
        osiris.lease,
        osiris.live_events,
        runs_per_repository=settings.osiris_repository_runs or 0,
    )
    retry_policy = RetryPolicy(
        pauses=parts.timeouts.pauses,
        tries=parts.timeouts.tries,
        report_every=_REPORT if settings.osiris_github_limits == "on" else 0.0,
    )
    read_policy = _bound_policies(
        github.read_policy,
        settings.osiris_run_usd,
        repositories_choose=parts.repositories_choose,
    )
    by_name = {channel.name: channel for channel in channels}
    messenger = Messenger(by_name, settings.github_url)
    table = {**handlers.build_table(), SendMessage: messenger.send_message}
    return Worker(
        osiris.store,
        EventProcessor(osiris.store, by_name, read_policy, retry_policy, parts.telemetry),
        OrderProcessor(outbox, table, retry_policy, parts.telemetry),
        osiris.wake,
        osiris.lease,
        election,
        runs=settings.osiris_runs,
    )


def _create_runner(
    osiris: Osiris,
    sandbox: Sandbox,
    repositories: HostRepositories,
    remote: RemoteRepositories,
    select_model: SelectModel | None,
) -> Runner:
    """Return the runner of agents. On SQLite no checkpoints leave this machine: the database is on
    the same disk as the files."""
    settings = osiris.settings
    dependencies = RunDependencies(
        sandbox=sandbox,
        tools=partial(SessionTools, hide=Redactor(settings.list_secrets())),
        repositories=repositories,
        storage=None if settings.is_embedded else remote,
        limits=create_limits(settings),
    )
    return Runner(
        select_model=select_model or osiris.models.select,
        dependencies=dependencies,
        transcripts=osiris.transcripts,
        inbox=osiris.inbox,
        live_events=osiris.live_events,
    )


async def _record_stalls(monitor: LoopMonitor, state: DatabaseReconcileState, place: str) -> None:
    """Let every web process show the stalls of this worker, which answers no requests itself."""
    if (stalls := monitor.take_change()) is not None:
        await state.set_value(f"{STALLS}{place}", str(stalls))


async def _read_web_metrics(read_models: ReadModels, monitor: LoopMonitor) -> list[MetricSample]:
    """Return the figures of the database, and the stalls of this process, which is no worker."""
    return [
        *await read_models.read_metrics(),
        MetricSample("loop_stalls", monitor.stalls, "worker", "web"),
    ]


def _bound_policies(
    policy_of: PolicyOf, usd: float | None, *, repositories_choose: bool
) -> PolicyOf:
    """Return the policies of repositories with the operator's bound on the cost of a run."""

    async def read_bounded(repo: str) -> Policy:
        policy = await policy_of(repo)
        return replace(policy, usd=usd, models=policy.models if repositories_choose else {})

    return read_bounded


@contextlib.asynccontextmanager
async def run_in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run some work until the block ends; a bug that ends it earlier is logged."""
    task = asyncio.create_task(work)
    task.add_done_callback(_log_bug)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _log_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (bug := task.exception()):
        log.error("a bug ended %s", task.get_coro(), exc_info=bug)
