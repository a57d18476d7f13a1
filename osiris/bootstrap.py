"""The composition root: joins the parts."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from osiris.agents.models.registry import Access, ModelRegistry
from osiris.agents.runner import RunDependencies, Runner
from osiris.bot.git.remote import RemoteRepositories
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.github.app_auth import AppAuth
from osiris.bot.github.client import GitHub
from osiris.bot.github.effect_handlers import EffectHandlers
from osiris.bot.github.interpreter import GitHubInterpreter
from osiris.bot.github.reconcile import Reconciler
from osiris.bot.github.repository_names import RepositoryNames
from osiris.bot.web.app import create_app
from osiris.config.http_server import create_tls_context
from osiris.config.settings import Settings, tools_environment
from osiris.core.errors import Refused
from osiris.core.policy import Policy
from osiris.core.ports.models import SelectModel
from osiris.core.ports.sandbox import GIB, Probe, Sandbox
from osiris.core.ports.sandbox import SandboxLimits as SandboxLimits
from osiris.core.ports.storage import MetricSample
from osiris.core.redaction import Redactor
from osiris.data_folder import identify_folder, lock_folder, make_data_folder, prepare_storage
from osiris.loop_monitor import LoopMonitor
from osiris.maintenance import Maintenance
from osiris.queue.database import connect
from osiris.queue.in_process import LocalLiveEvents, LocalWake
from osiris.queue.inbox import WAITING, DatabaseInbox
from osiris.queue.leases import PATIENCE, Lease
from osiris.queue.locks import NamedLocks
from osiris.queue.outbox import Outbox
from osiris.queue.processor import PAUSES, TRIES, PolicyOf, Processor, RetryPolicy
from osiris.queue.read_models import ReadModels
from osiris.queue.reconcile_state import STALLS, DatabaseReconcileState
from osiris.queue.retention import Retention
from osiris.queue.task_store import Store
from osiris.queue.transcripts import DatabaseTranscripts
from osiris.queue.worker import Worker
from osiris.queue.write_rate_limit import DatabaseWriteLimiter, WriteLimits
from osiris.readiness import Readiness
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions
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
    after which a silent worker's lease expires, and how many deliveries may wait for a commit."""

    pauses: Sequence[float] = PAUSES
    tries: int = TRIES
    lease: float = PATIENCE
    waiting: int = WAITING


def build_osiris(
    settings: Settings,
    *,
    sandbox: Sandbox | None = None,
    choose: SelectModel | None = None,
    patience: Timeouts | None = None,
    repositories_choose: bool = True,
    works: bool = True,
) -> Osiris:
    """Return all parts, joined; an argument replaces the part that the settings would choose.

    Unless `repositories_choose`, the models that repositories name do not count. Unless it `works`,
    only the web side is built, which needs no sandbox and no data folder of its own. Raises Refused
    for impossible settings.
    """
    os.umask(0o022)  # the sandbox's own user reads what Osiris makes
    make_data_folder(settings)
    timeouts = patience or Timeouts()
    engine = connect(settings.database)
    lease = Lease(engine, identify_folder(settings.osiris_data_dir), patience=timeouts.lease)
    wake, live_events = _create_channels(settings.redis_url.get_secret_value())
    store = Store(engine, lease, live_events)
    inbox = DatabaseInbox(store, wake, most=timeouts.waiting)
    models = create_models(settings)
    auth = _create_auth(settings)
    if works and sandbox is None:
        sandbox = create_sandbox(settings)
    read_models = ReadModels(engine)
    monitor = LoopMonitor()
    web_metrics = partial(_read_web_metrics, read_models, monitor)
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
        app=create_app(
            inbox,
            secret=settings.github_webhook_secret.get_secret_value(),
            ready=Readiness(settings, store, sandbox, models, wake),
            read_metrics=read_models.read_metrics if works else web_metrics,
        ),
        monitor=monitor,
        sandbox=sandbox,
    )
    if auth is None or sandbox is None:
        return osiris
    select_model = choose or models.select
    return _add_worker(osiris, auth, sandbox, select_model, timeouts, repositories_choose)


def _add_worker(
    osiris: Osiris,
    auth: AppAuth,
    sandbox: Sandbox,
    select_model: SelectModel,
    timeouts: Timeouts,
    repositories_choose: bool,
) -> Osiris:
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
    runner = _create_runner(osiris, sandbox, repositories, remote, select_model)
    reconciler = Reconciler(
        github, auth, osiris.inbox, osiris.reconcile_state, is_elected=lambda: worker.is_decider()
    )
    interpreter = GitHubInterpreter(
        github,
        osiris.store,
        RepositoryNames(github, osiris.reconcile_state),
        osiris.models.why_unavailable,
        reconciler.request,
        reconciler.mark_seen,
    )
    read_policy = _bound_policies(
        github.read_policy, settings.osiris_run_usd, repositories_choose=repositories_choose
    )
    handlers = EffectHandlers(github, remote, repositories, runner)
    outbox = Outbox(
        osiris.engine,
        lease,
        osiris.live_events,
        runs_per_repository=settings.osiris_repository_runs or 0,
    )
    retries = RetryPolicy(
        pauses=timeouts.pauses,
        tries=timeouts.tries,
        report_every=_REPORT if settings.osiris_github_limits == "on" else 0.0,
    )
    interpreters = {"github": interpreter}
    table = handlers.build_table()
    processor = Processor(osiris.store, outbox, interpreters, read_policy, table, retries)
    locks = NamedLocks(osiris.engine, lease)
    worker = Worker(
        osiris.store, outbox, processor, osiris.wake, lease, locks, runs=settings.osiris_runs
    )
    exports = settings.osiris_data_dir / "exports"
    retention = Retention(osiris.engine, exports, days=settings.osiris_keep_days)
    maintenance = Maintenance(settings, lease, locks, sandbox, repositories, remote, retention)
    return replace(
        osiris, github=github, reconciler=reconciler, worker=worker, maintenance=maintenance
    )


def _create_runner(
    osiris: Osiris,
    sandbox: Sandbox,
    repositories: HostRepositories,
    remote: RemoteRepositories,
    select_model: SelectModel,
) -> Runner:
    """Return the runner of agents. On SQLite no checkpoints leave this machine: the database is on
    the same disk as the files."""
    settings = osiris.settings
    dependencies = RunDependencies(
        sandbox=sandbox,
        tools=partial(SessionTools, hide=Redactor(settings.list_secrets())),
        repositories=repositories,
        storage=None if settings.is_embedded else remote,
        limits=_create_limits(settings),
    )
    return Runner(
        select_model=select_model,
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


def _create_channels(redis: str) -> tuple[LocalWake, LocalLiveEvents]:
    """Return hints and live events within this process, or through Redis between all processes."""
    if not redis:
        return LocalWake(), LocalLiveEvents()
    try:
        from osiris.queue.redis_events import RedisLiveEvents
        from osiris.queue.redis_wake import ArqWake
    except ModuleNotFoundError:
        raise Refused("REDIS_URL needs arq and redis: install osiris[machines]") from None
    return ArqWake(redis), RedisLiveEvents(redis)


def _bound_policies(
    policy_of: PolicyOf, usd: float | None, *, repositories_choose: bool
) -> PolicyOf:
    """Return the policies of repositories with the operator's bound on the cost of a run."""

    async def read_bounded(repo: str) -> Policy:
        policy = await policy_of(repo)
        return replace(policy, usd=usd, models=policy.models if repositories_choose else {})

    return read_bounded


def create_models(settings: Settings) -> ModelRegistry:
    """Return the models that the settings allow. Raises Refused for one that they name and that is
    not configured."""
    models = ModelRegistry(
        settings.osiris_model,
        {
            vendor: Access(key=key, url=url)
            for vendor, (key, url) in settings.list_vendors().items()
        },
        second=settings.osiris_second_model,
        patience=settings.osiris_model_patience,
        window=settings.osiris_model_window,
        hide=Redactor(settings.list_secrets()),
    )
    for model in filter(None, (settings.osiris_model, settings.osiris_second_model)):
        models.check_configured(model)
    return models


def create_repositories(settings: Settings) -> HostRepositories:
    """Return the repositories on this machine."""
    return HostRepositories(settings.osiris_data_dir / "git", Redactor(settings.list_secrets()))


def create_sandbox(
    settings: Settings, root: Path | None = None, probes: Sequence[Probe] = ()
) -> BubblewrapSandbox:
    """Return the sandbox that the settings ask for, with its sessions in `root` (None: in the data
    folder).

    `probes` are what another sandbox of this process has found out about this machine; without them
    it is asked.
    """
    options = SandboxOptions(
        toolchains=settings.osiris_toolchains,
        weak=settings.osiris_sandbox == "weak",
        network=settings.osiris_network,
        cache=int(settings.osiris_cache_gib * GIB),
        environment=tools_environment(),
    )
    return BubblewrapSandbox(
        root or settings.osiris_data_dir / "sessions",
        create_repositories(settings).mirror_path,
        options,
        probes,
    )


def _create_limits(settings: Settings) -> SandboxLimits:
    return SandboxLimits(
        memory=int(settings.osiris_sandbox_memory_gib * GIB),
        disk=int(settings.osiris_sandbox_disk_gib * GIB),
    )


def _create_auth(settings: Settings) -> AppAuth | None:
    """Return the App's authentication; None while the App is not configured."""
    key = settings.private_key
    if not settings.github_app_id or not key:
        return None
    try:
        # its form; 40 ms less
        load_pem_private_key(key.encode(), password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError):
        raise Refused(
            "GITHUB_PRIVATE_KEY is not a private key in PEM form; download it anew from the App's"
            " page"
        ) from None
    return AppAuth(settings.github_app_id, key, settings.github_api_url, tls=create_tls_context())


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
