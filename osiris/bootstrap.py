"""The composition root: here the parts are joined."""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from osiris.agents.models.registry import Access, Brains
from osiris.agents.runner import Hands, Runner
from osiris.bot.git.remote import Depot
from osiris.bot.git.repositories import HostDesk
from osiris.bot.github.app_auth import Tokens
from osiris.bot.github.client import GitHub
from osiris.bot.github.effect_handlers import Performers
from osiris.bot.github.interpreter import Lookup
from osiris.bot.github.reconcile import Reconciler
from osiris.bot.github.repository_names import Names
from osiris.bot.web.app import create_app
from osiris.config.http_server import tls
from osiris.config.settings import Settings, tools_environment
from osiris.core.errors import Refused, Unavailable
from osiris.core.policy import Policy
from osiris.core.ports.models import Choose
from osiris.core.ports.sandbox import GIB, Probe, Sandbox
from osiris.core.ports.sandbox import Limits as SandboxLimits
from osiris.core.ports.storage import Figure
from osiris.core.redaction import Redactor
from osiris.loop_monitor import LoopMonitor
from osiris.maintenance import Upkeep
from osiris.queue.database import connect, is_current, migrate
from osiris.queue.in_process import LocalJournal, LocalWake
from osiris.queue.inbox import WAITING, Intake
from osiris.queue.leases import PATIENCE, Lease
from osiris.queue.locks import Turns
from osiris.queue.outbox import Orders
from osiris.queue.processor import PAUSES, TRIES, Jobs, Manner, PolicyOf
from osiris.queue.read_models import Views
from osiris.queue.reconcile_state import STALLS, DatabaseRecords
from osiris.queue.retention import Pruning
from osiris.queue.task_store import Store
from osiris.queue.transcripts import DatabaseTranscripts
from osiris.queue.worker import Worker
from osiris.queue.write_rate_limit import DatabasePace, Limits
from osiris.readiness import Readiness
from osiris.tools.sandbox.backend import Bubblewrap
from osiris.tools.sandbox.options import Options
from osiris.tools.toolbox import Tools

log = logging.getLogger("osiris")

_LOCK_TRIES = 10  # a tenth of a second apart: of one that was killed just now, the last may not be gone yet
_RECONCILE = 300.0  # seconds between two comparisons with GitHub
_REPORT = 10.0  # seconds between two edits of a status comment


@dataclass(frozen=True, kw_only=True)
class Osiris:
    """Everything, joined. What does the work is None in a web process, and while the GitHub settings are missing."""

    settings: Settings
    engine: AsyncEngine
    lease: Lease
    store: Store
    intake: Intake
    views: Views
    records: DatabaseRecords
    brains: Brains
    wake: LocalWake
    journal: LocalJournal
    transcripts: DatabaseTranscripts
    tokens: Tokens | None
    app: FastAPI
    monitor: LoopMonitor
    sandbox: Sandbox | None = None
    github: GitHub | None = None
    reconciler: Reconciler | None = None
    upkeep: Upkeep | None = None
    worker: Worker | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring the database to this version, and work until left."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.monitor.watching())
            stack.push_async_callback(self.store.close)
            stack.push_async_callback(self.intake.rest)
            stack.push_async_callback(self.brains.close)
            if self.sandbox is not None:
                stack.enter_context(_alone_in(self.settings.osiris_data_dir))
            await prepare(self.settings, self.engine)
            await stack.enter_async_context(self.journal.connected())
            await stack.enter_async_context(self.wake.connected(self.lease.place if self.worker else ""))
            if missing := self.settings.missing():
                log.warning("Osiris does no work yet; missing: %s", ", ".join(missing))
            if self.github and self.worker and self.upkeep and self.reconciler:
                await stack.enter_async_context(self.github)
                await self.upkeep.tidy()
                await stack.enter_async_context(background(self.worker.work()))
                await stack.enter_async_context(background(self.upkeep.run()))
                await stack.enter_async_context(background(self.reconciler.run(_RECONCILE)))
            yield


async def prepare(settings: Settings, engine: AsyncEngine) -> None:
    """Make the data folder and, on SQLite, the schema. Raises Refused when something does not allow it."""
    make_data_folder(settings)
    if settings.is_embedded:
        await bring_up_to_date(settings, engine)
        return
    try:
        current = await is_current(engine)
    except Unavailable as outage:
        raise Refused(f"the database {settings.database_shown} cannot be used: {outage}") from None
    if not current:
        raise Refused(f"the database {settings.database_shown} is not of this version; run `osiris migrate` first")


async def bring_up_to_date(settings: Settings, engine: AsyncEngine) -> None:
    """Make the schema, or bring it to this version. Raises Refused when the disk or the database does not allow it."""
    try:
        if settings.is_embedded:
            os.close(os.open(engine.url.database or os.devnull, os.O_CREAT | os.O_RDWR, 0o600))
        if await is_current(engine):
            return
        await migrate(engine)  # SQLite gives its other files the same mode: all hold words of private repositories
    except (OSError, SQLAlchemyError, Unavailable) as error:
        told = error.strerror if isinstance(error, OSError) else str(getattr(error, "orig", error)).splitlines()[0]
        name = engine.url.database if settings.is_embedded else settings.database_shown
        raise Refused(f"the database {name} cannot be used: {told}") from None


def make_data_folder(settings: Settings) -> None:
    """Raises Refused when the disk does not allow it."""
    try:
        settings.osiris_data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        passable(settings.osiris_data_dir)
    except OSError as error:
        raise Refused(f"the data folder {settings.osiris_data_dir} cannot be used: {error.strerror}") from None


def passable(folder: Path) -> None:
    """Let the sandbox's own user pass through a folder; what else it may or may not is its owner's choice."""
    folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a data folder for one worker; the lock goes with the process. Raises Refused when another holds it."""
    with (folder / "serve.lock").open("w") as lock:
        for tries_left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise Refused(
                        f"another `osiris serve` or `osiris worker` works in {folder}; end it, or set OSIRIS_DATA_DIR"
                    ) from None
                time.sleep(0.1)
        yield


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long things are waited for: the pauses (seconds) between tries and how many tries there are, the seconds that
    a silent worker lives, and how many deliveries may wait at the door."""

    pauses: Sequence[float] = PAUSES
    tries: int = TRIES
    lease: float = PATIENCE
    waiting: int = WAITING


def build(
    settings: Settings,
    *,
    sandbox: Sandbox | None = None,
    choose: Choose | None = None,
    patience: Patience | None = None,
    repositories_choose: bool = True,
    works: bool = True,
) -> Osiris:
    """Join the parts; what is given here stands in for our own choice. Raises Refused for impossible settings.

    Unless `repositories_choose`, the models that repositories name do not count. Unless it `works`, only the web side
    is built, which needs no sandbox and no data folder of its own.
    """
    os.umask(0o022)  # what Osiris makes is read by the sandbox's own user
    make_data_folder(settings)
    engine, patience = connect(settings.database), patience or Patience()
    lease = Lease(engine, _place(settings.osiris_data_dir), patience=patience.lease)
    wake, journal = _between_processes(settings.redis_url.get_secret_value())
    store, brains, tokens = Store(engine, lease, journal), brains_of(settings), _tokens(settings)
    if works and sandbox is None:
        sandbox = sandbox_of(settings)
    views, monitor = Views(engine), LoopMonitor()
    intake, secret = Intake(store, wake, most=patience.waiting), settings.github_webhook_secret.get_secret_value()
    ready = Readiness(settings, store, sandbox, brains, wake)
    osiris = Osiris(
        settings=settings,
        engine=engine,
        lease=lease,
        store=store,
        intake=intake,
        views=views,
        records=DatabaseRecords(engine),
        brains=brains,
        wake=wake,
        journal=journal,
        transcripts=DatabaseTranscripts(engine, lease),
        tokens=tokens,
        app=create_app(
            intake,
            secret=secret,
            ready=ready,
            count=views.figures if works else partial(_figures_of_web, views, monitor),
        ),
        monitor=monitor,
        sandbox=sandbox,
    )
    if tokens is None or sandbox is None:
        return osiris
    return _with_work(osiris, tokens, sandbox, choose or brains.choose, patience, repositories_choose)


def _with_work(
    osiris: Osiris, tokens: Tokens, sandbox: Sandbox, choose: Choose, patience: Patience, repositories_choose: bool
) -> Osiris:
    """The doing side. Only the depot and GitHub have tokens, and the runner gets neither it nor them."""
    settings, lease = osiris.settings, osiris.lease
    lease.with_each_beat(partial(_record_stalls, osiris.monitor, osiris.records, lease.place))
    pace = DatabasePace(osiris.engine, lease, Limits() if settings.osiris_github_limits == "on" else None)
    hide = Redactor(settings.secrets())
    github = GitHub(tokens, settings.github_api_url, pace, hide)
    desk = desk_of(settings)
    depot = Depot(desk, tokens, settings.github_url, pace.leave)
    vault = None if settings.is_embedded else depot
    tools = partial(Tools, hide=hide)
    hands = Hands(sandbox=sandbox, tools=tools, desk=desk, vault=vault, limits=_limits(settings))
    runner = Runner(
        choose=choose, hands=hands, transcripts=osiris.transcripts, inbox=osiris.intake, journal=osiris.journal
    )
    turns = Turns(osiris.engine, lease)
    reconciler = Reconciler(github, tokens, osiris.intake, osiris.records, may=lambda: worker.decides())
    names = Names(github, osiris.records)
    lookup = Lookup(github, osiris.store, names, osiris.brains.trouble, reconciler.soon, reconciler.heard)
    policy_of = _bounded(github.policy, settings.osiris_run_usd, repositories_choose=repositories_choose)
    orders = Orders(osiris.engine, lease, osiris.journal, runs_per_repository=settings.osiris_repository_runs or 0)
    manner = Manner(
        pauses=patience.pauses,
        tries=patience.tries,
        report_every=_REPORT if settings.osiris_github_limits == "on" else 0.0,
    )
    performers = Performers(github, depot, desk, runner).table()
    jobs = Jobs(osiris.store, orders, {"github": lookup}, policy_of, performers, manner)
    worker = Worker(osiris.store, orders, jobs, osiris.wake, lease, turns, runs=settings.osiris_runs)
    pruning = Pruning(osiris.engine, settings.osiris_data_dir / "exports", days=settings.osiris_keep_days)
    upkeep = Upkeep(settings, lease, turns, sandbox, desk, depot, pruning)
    return replace(osiris, github=github, reconciler=reconciler, worker=worker, upkeep=upkeep)


async def _record_stalls(monitor: LoopMonitor, records: DatabaseRecords, place: str) -> None:
    """Let every web process show the stalls of this worker, which answers no requests itself."""
    if (stalls := monitor.take_change()) is not None:
        await records.remember(f"{STALLS}{place}", str(stalls))


async def _figures_of_web(views: Views, monitor: LoopMonitor) -> list[Figure]:
    """Return the figures of the database, and the stalls of this process, which is no worker."""
    return [*await views.figures(), Figure("loop_stalls", monitor.stalls, "worker", "web")]


def _between_processes(redis: str) -> tuple[LocalWake, LocalJournal]:
    """Hints and live events within this process, or through Redis to all of them."""
    if not redis:
        return LocalWake(), LocalJournal()
    try:
        from osiris.queue.redis_events import StreamJournal
        from osiris.queue.redis_wake import ArqWake
    except ModuleNotFoundError:
        raise Refused("REDIS_URL needs arq and redis: install osiris[machines]") from None
    return ArqWake(redis), StreamJournal(redis)


def _place(folder: Path) -> str:
    """What a data folder is known by; it is made up once, and kept in the folder."""
    path = folder / "place"
    try:
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write(uuid4().hex)
        return path.read_text().strip()
    except OSError as error:
        raise Refused(f"the data folder {folder} cannot be used: {error.strerror}") from None


def _bounded(policy_of: PolicyOf, usd: float | None, *, repositories_choose: bool) -> PolicyOf:
    """The policies of repositories, with the operator's bound on what a run may cost."""

    async def bounded(repo: str) -> Policy:
        policy = await policy_of(repo)
        return replace(policy, usd=usd, models=policy.models if repositories_choose else {})

    return bounded


def brains_of(settings: Settings) -> Brains:
    """The models that the settings allow. Raises Refused for one that they name and that is not configured."""
    brains = Brains(
        settings.osiris_model,
        {vendor: Access(key=key, url=url) for vendor, (key, url) in settings.vendors().items()},
        second=settings.osiris_second_model,
        patience=settings.osiris_model_patience,
        window=settings.osiris_model_window,
        hide=Redactor(settings.secrets()),
    )
    for model in filter(None, (settings.osiris_model, settings.osiris_second_model)):
        brains.check(model)
    return brains


def desk_of(settings: Settings) -> HostDesk:
    """The repositories on this machine."""
    return HostDesk(settings.osiris_data_dir / "git", Redactor(settings.secrets()))


def sandbox_of(settings: Settings, root: Path | None = None, probes: Sequence[Probe] = ()) -> Bubblewrap:
    """Return the sandbox that the settings ask for, with its sessions in `root` (None: in the data folder).

    `probes` are what another sandbox of this process has found out about this machine; without them it is asked.
    """
    options = Options(
        toolchains=settings.osiris_toolchains,
        weak=settings.osiris_sandbox == "weak",
        network=settings.osiris_network,
        cache=int(settings.osiris_cache_gib * GIB),
        environment=tools_environment(),
    )
    return Bubblewrap(root or settings.osiris_data_dir / "sessions", desk_of(settings).mirror, options, probes)


def _limits(settings: Settings) -> SandboxLimits:
    return SandboxLimits(
        memory=int(settings.osiris_sandbox_memory_gib * GIB), disk=int(settings.osiris_sandbox_disk_gib * GIB)
    )


def _tokens(settings: Settings) -> Tokens | None:
    """The App's tokens, when the App is configured."""
    key = settings.private_key
    if not settings.github_app_id or not key:
        return None
    try:
        load_pem_private_key(key.encode(), password=None, unsafe_skip_rsa_key_validation=True)  # its form; 40 ms less
    except (ValueError, TypeError):
        raise Refused(
            "GITHUB_PRIVATE_KEY is not a private key in PEM form; download it anew from the App's page"
        ) from None
    return Tokens(settings.github_app_id, key, settings.github_api_url, tls=tls())


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let some work go on until the block ends; a bug that ends it before is logged."""
    task = asyncio.create_task(work)
    task.add_done_callback(_complain)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (bug := task.exception()):
        log.error("a bug ended %s", task.get_coro(), exc_info=bug)
