"""The composition root: the only module that knows every part."""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, cast

import uvicorn
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from osiris.agents.brain import Access, Brains
from osiris.agents.run import Runner, run_name
from osiris.bot.app import create_app
from osiris.bot.depot import Depot
from osiris.bot.git import HostDesk
from osiris.bot.github import GitHub
from osiris.bot.lookup import Lookup
from osiris.bot.perform import Performers
from osiris.bot.tokens import Tokens
from osiris.config.guest import listening
from osiris.config.logging import redact
from osiris.config.settings import Settings
from osiris.errors import OsirisError, Refused, Unavailable
from osiris.policy import Policy
from osiris.ports import Choose, Probe, Sandbox
from osiris.queue.database import connect, migrate
from osiris.queue.intake import Intake
from osiris.queue.jobs import PAUSES, TRIES, Jobs, PolicyOf
from osiris.queue.local import LocalJournal, LocalWake
from osiris.queue.store import Store
from osiris.queue.sweep import Worker
from osiris.queue.transcripts import DatabaseTranscripts
from osiris.queue.views import Views
from osiris.tools.sandbox import Bubblewrap
from osiris.tools.toolbox import Tools

log = logging.getLogger("osiris")

_PROBE_LIFE = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Osiris:
    """Everything, joined. `worker` and `github` are None while the GitHub settings are missing."""

    settings: Settings
    engine: AsyncEngine
    store: Store
    intake: Intake
    views: Views
    sandbox: Sandbox
    brains: Brains
    journal: LocalJournal
    tokens: Tokens | None
    github: GitHub | None
    worker: Worker | None
    transcripts: DatabaseTranscripts
    app: FastAPI

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring the database to this version, tidy up after a crash, and work until left."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.store.close)
            stack.push_async_callback(self.brains.close)
            stack.enter_context(_alone_in(self.settings.osiris_data_dir))
            await prepare(self.settings, self.engine)
            await self._tidy()
            if self.github is not None and self.worker is not None:
                await stack.enter_async_context(self.github)
                await stack.enter_async_context(_background(self.worker.work()))
            else:
                log.warning("Osiris does no work yet; missing: %s", ", ".join(self.settings.missing()))
            yield

    async def _tidy(self) -> None:
        """Remove the workspaces that no run will come back to."""
        current = {run_name(task.issue, task.run) for task in await self.store.living()}
        for name in self.sandbox.names():
            if name not in current:
                await self.sandbox.remove(name)


async def serve(osiris: Osiris, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Web and worker in one process, until SIGINT or SIGTERM; `ready` is told the address once it is open."""
    config = uvicorn.Config(
        osiris.app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    gc.collect()
    gc.freeze()  # what was imported stays: a collection that walks all of it would stop the web side for 0.1 s
    async with osiris.running(), _background(_announce(server, ready)):
        serving = asyncio.create_task(server.serve(sockets=[_listener(osiris.settings)]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True  # whoever cancels us still gets every socket closed
            await serving


@contextlib.asynccontextmanager
async def as_guest(osiris: Osiris) -> AsyncIterator[None]:
    """Web and worker inside somebody else's process, until the block ends."""
    async with osiris.running(), listening(osiris.app, _listener(osiris.settings), grace=5):
        yield


def _listener(settings: Settings) -> socket.socket:
    where = (settings.osiris_host, settings.osiris_port)
    try:
        return socket.create_server(where, family=socket.AF_INET6 if ":" in where[0] else socket.AF_INET, backlog=2048)
    except OSError as error:
        told = error.strerror or str(error)
        raise Refused(f"cannot listen on {where[0]}:{where[1]}: {told}; set OSIRIS_HOST or OSIRIS_PORT") from None


async def _announce(server: uvicorn.Server, ready: Callable[[str], None]) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


async def prepare(settings: Settings, engine: AsyncEngine) -> None:
    """Make the data folder and the schema. Raises Refused when the disk or the database does not allow it."""
    _make_data_folder(settings)
    try:
        os.close(os.open(engine.url.database or os.devnull, os.O_CREAT | os.O_RDWR, 0o600))
        await migrate(engine)  # SQLite gives its other files the same mode: all hold words of private repositories
    except (OSError, SQLAlchemyError) as error:
        told = error.strerror if isinstance(error, OSError) else str(getattr(error, "orig", error))
        raise Refused(f"the database {engine.url.database} cannot be used: {told}") from None


def _make_data_folder(settings: Settings) -> None:
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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another `osiris serve` works in {folder}; end it, or set OSIRIS_DATA_DIR") from None
        yield


def build(
    settings: Settings,
    *,
    sandbox: Sandbox | None = None,
    choose: Choose | None = None,
    pauses: Sequence[float] = PAUSES,
    tries: int = TRIES,
    repositories_choose: bool = True,
) -> Osiris:
    """Join the parts; what is given here stands in for our own choice. Raises Refused for impossible settings.

    Unless `repositories_choose`, the models that repositories name do not count.
    """
    os.umask(0o022)  # what Osiris makes is read by the sandbox's own user
    _make_data_folder(settings)
    engine = connect(settings.database)
    wake, store, transcripts = LocalWake(), Store(engine), DatabaseTranscripts(engine)
    intake = Intake(store, wake)
    jail = sandbox or Bubblewrap(settings.osiris_data_dir / "sessions", toolchains=settings.osiris_toolchains)
    brains, tokens = brains_of(settings), _tokens(settings)
    ready, secret = Readiness(settings, store, jail, brains), settings.github_webhook_secret.get_secret_value()
    osiris = Osiris(
        settings=settings,
        engine=engine,
        store=store,
        intake=intake,
        views=Views(engine),
        sandbox=jail,
        brains=brains,
        journal=LocalJournal(),
        tokens=tokens,
        github=None,
        worker=None,
        transcripts=transcripts,
        app=create_app(intake, secret=secret, ready=ready),
    )
    if tokens is None:
        return osiris
    osiris = replace(osiris, github=(github := GitHub(tokens, settings.github_api_url)))
    policy_of = _bounded(github.policy, settings.osiris_run_usd, repositories_choose=repositories_choose)
    performers = _performers(osiris, github, tokens, choose or brains.choose)
    lookup = Lookup(github, store, brains.trouble)
    jobs = Jobs(store, {"github": lookup}, policy_of, performers.table(), pauses=pauses, tries=tries)
    return replace(osiris, worker=Worker(store, jobs, wake, runs=settings.osiris_runs))


def _performers(osiris: Osiris, github: GitHub, tokens: Tokens, choose: Choose) -> Performers:
    """The doing side; only the depot has tokens, and the runner gets neither it nor them."""
    desk = HostDesk(osiris.settings.osiris_data_dir / "git")
    runner = Runner(
        choose=choose,
        sandbox=osiris.sandbox,
        tools=Tools,
        desk=desk,
        transcripts=osiris.transcripts,
        inbox=osiris.intake,
        journal=osiris.journal,
    )
    return Performers(github, Depot(desk, tokens, osiris.settings.github_url), desk, runner)


def _bounded(policy_of: PolicyOf, usd: float | None, *, repositories_choose: bool) -> PolicyOf:
    """The policies of repositories, with the operator's bound on what a run may cost."""

    async def bounded(repo: str) -> Policy:
        policy = await policy_of(repo)
        return replace(policy, usd=usd, models=policy.models if repositories_choose else {})

    return bounded


def brains_of(settings: Settings) -> Brains:
    """The models that the settings allow. Raises Refused for one that they name and that is not configured."""
    secrets = [secret for secret in settings.secrets() if len(secret) >= 6]
    brains = Brains(
        settings.osiris_model,
        {vendor: Access(key=key, url=url) for vendor, (key, url) in settings.vendors().items()},
        second=settings.osiris_second_model,
        patience=settings.osiris_model_patience,
        window=settings.osiris_model_window,
        hide=lambda words: redact(words, secrets),
    )
    for model in filter(None, (settings.osiris_model, settings.osiris_second_model)):
        brains.check(model)
    return brains


def _tokens(settings: Settings) -> Tokens | None:
    """The App's tokens, when the App is configured."""
    key = settings.private_key
    if not settings.github_app_id or not key:
        return None
    try:
        load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError):
        raise Refused(
            "GITHUB_PRIVATE_KEY is not a private key in PEM form; download it anew from the App's page"
        ) from None
    return Tokens(settings.github_app_id, key, settings.github_api_url)


class Readiness:
    """What is missing for the work, asked at most once a minute where asking is dear."""

    def __init__(self, settings: Settings, store: Store, sandbox: Sandbox, brains: Brains) -> None:
        self._settings, self._store, self._sandbox, self._brains = settings, store, sandbox, brains
        self._probes: Sequence[Probe] = ()
        self._until = 0.0

    async def __call__(self) -> Sequence[Probe]:
        if monotonic() >= self._until:
            self._probes = await self._sandbox.probe()
            self._until = monotonic() + _PROBE_LIFE
        return [*self.settings(), await self.database(), *self._probes]

    def settings(self) -> list[Probe]:
        missing = self._settings.missing()
        fix = "set it in the environment or in .env; README, section 'A GitHub App by hand'"
        return [Probe(name=f"setting {name}", ok=False, detail="not set", fix=fix) for name in missing]

    async def models(self) -> list[Probe]:
        """Whether the operator's models answer and can call tools, found out by asking each: it costs a few tokens."""
        wanted = filter(None, (self._settings.osiris_model, self._settings.osiris_second_model))
        return [await self._model(model) for model in wanted]

    async def _model(self, model: str) -> Probe:
        name = f"model {model}"
        try:
            await self._brains.probe(model)
        except Refused as refused:
            return Probe(name=name, ok=False, detail=str(refused), fix="mend OSIRIS_MODEL, the vendor's key or address")
        except Unavailable as outage:
            fix = "see that this machine reaches the vendor; runs wait until it answers"
            return Probe(name=name, ok=False, needed=False, detail=str(outage), fix=fix)
        return Probe(name=name, ok=True, detail="it calls tools")

    async def database(self) -> Probe:
        try:
            await self._store.ready()
        except SQLAlchemyError as error:
            told = str(getattr(error, "orig", error))
            return Probe(name="database", ok=False, detail=told, fix="see that the data folder can be written")
        return Probe(name="database", ok=True)


async def github_probes(osiris: Osiris, wanted: dict[str, str], events: Sequence[str]) -> list[Probe]:
    """Whether GitHub knows the App, and whether it has the permissions and events that Osiris needs."""
    if osiris.tokens is None:
        return []
    try:
        app, delivery = await osiris.tokens.app(), await osiris.tokens.last_delivery()
    except OsirisError as error:
        fix = "compare GITHUB_APP_ID, the private key and GITHUB_API_URL with the App's page"
        return [Probe(name="GitHub App", ok=False, detail=str(error), fix=fix)]
    has = cast(dict[str, str], app.get("permissions", {}))
    lacks = [f"{name}: {level}" for name, level in wanted.items() if has.get(name) not in (level, "write")]
    deaf = [name for name in events if name not in app.get("events", [])]
    return [
        Probe(name="GitHub App", ok=True, detail=str(app.get("slug", ""))),
        Probe(name="permissions", ok=not lacks, detail=", ".join(lacks), fix="grant them on the App's page"),
        Probe(name="events", ok=not deaf, detail=", ".join(deaf), fix="subscribe to them on the App's page"),
        _webhook_probe(delivery),
    ]


def _webhook_probe(delivery: dict[str, Any] | None) -> Probe:
    """Whether GitHub reached our door the last time it tried."""
    if delivery is None:
        fix = "label an issue, or press 'Redeliver' on the App's page under Advanced"
        return Probe(name="webhooks", ok=False, needed=False, detail="GitHub has sent none yet", fix=fix)
    told = f"the last one ({delivery['event']}) was answered {delivery['status_code']} {delivery['status']}"
    fix = "see that the App's webhook URL reaches this server, and that the secret is the same"
    return Probe(name="webhooks", ok=delivery["status_code"] == 202, needed=False, detail=told, fix=fix)


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
