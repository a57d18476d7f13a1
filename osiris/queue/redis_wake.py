"""Wake-ups through Redis and arq: hints to workers on other machines, a poll each second, and
liveness.

Only hints go through Redis. Due work is stored in the database, and each worker claims it there. If
Redis is away or was emptied, workers find their work a little later. So arq's jobs carry no data,
keep no result, and need no retry.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis
from arq import create_pool, cron
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker as ArqWorker
from arq.worker import func
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Probe
from osiris.queue.in_process import LocalWake

log = logging.getLogger(__name__)

_QUEUES = "osiris:worker:"
_HEALTH = ":health-check"
_ALIVE = 3  # seconds between two health checks of a worker
_KNOWN = 1.0  # seconds for which the list of workers is valid
_GATHER = 0.02  # seconds in which hints are merged into one
_LAST = 0.5  # seconds for the last hint of a process
_AGAIN = 2.0  # seconds before Redis is retried
_LOST = (redis.RedisError, OSError, TimeoutError)


def parse_redis_url(url: str) -> RedisSettings:
    """Return the connection settings, which tolerate short interruptions.

    Raises Refused for an invalid URL.
    """
    try:
        settings = RedisSettings.from_dsn(url)
    except (AssertionError, ValueError, RuntimeError):
        raise Refused("REDIS_URL is not a Redis URL; write redis://HOST:6379/0") from None
    settings.max_connections = 2**31
    settings.conn_timeout = 2
    settings.conn_retries = 0
    settings.retry_on_timeout = True
    settings.retry = Retry(ExponentialBackoff(cap=1, base=0.05), 3)
    settings.retry_on_error = [
        redis.ConnectionError,
        redis.TimeoutError,
        redis.BusyLoadingError,
        OSError,
    ]
    return settings


def dump_job(job: dict[str, Any]) -> bytes:
    """Return an arq job as JSON. arq's own pickles would execute whatever anyone puts into
    Redis."""
    return json.dumps(
        job, default=lambda error: {"__error__": f"{type(error).__name__}: {error}"}
    ).encode()


def load_job(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(job, object_hook=_decode_error)
    return loaded


def _decode_error(found: dict[str, Any]) -> Any:
    """Return the decoded exception. arq compares the result of an aborted job with
    CancelledError."""
    if "__error__" not in found:
        return found
    name, _, text = found["__error__"].partition(": ")
    return asyncio.CancelledError() if name == "CancelledError" else RuntimeError(f"{name}: {text}")


class ArqWake(LocalWake):
    """An `osiris.core.ports.live.Wake` across processes: a hint from one wakes the workers of
    all."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._settings = parse_redis_url(url)
        self._pool: ArqRedis | None = None
        self._hint = asyncio.Event()
        self._queues: Sequence[str] = ()
        self._until = 0.0

    def wake(self) -> None:
        super().wake()
        self._hint.set()

    @contextlib.asynccontextmanager
    async def open_connection(self, name: str = "") -> AsyncIterator[None]:
        """Send hints until the block ends.

        With `name`, the unique name of a worker, receive them too.
        """
        tasks = [asyncio.create_task(self._send_hints())]
        if name:
            tasks.append(asyncio.create_task(self._receive_hints(_QUEUES + name)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if name:  # the last hint: other workers can continue what this one released
                with contextlib.suppress(*_LOST):
                    async with asyncio.timeout(_LAST):
                        await self._enqueue_hints()
            if self._pool is not None:
                await self._pool.aclose(close_connection_pool=True)

    async def _send_hints(self) -> None:
        while True:
            await self._hint.wait()
            self._hint.clear()
            try:
                await self._enqueue_hints()
                await asyncio.sleep(_GATHER)
            except _LOST as error:
                log.warning(
                    "Redis does not answer (%s): other workers find their work later",
                    type(error).__name__,
                )
                await asyncio.sleep(_AGAIN)

    async def _enqueue_hints(self) -> None:
        pool = await self._get_pool()
        for queue in await self._list_workers(pool):
            await pool.enqueue_job(
                "look", _job_id=f"look:{queue}", _queue_name=queue, _expires=_AGAIN
            )
            await pool.expire(queue, 60)

    async def _get_pool(self) -> ArqRedis:
        if self._pool is None:
            self._pool = await create_pool(
                self._settings, job_serializer=dump_job, job_deserializer=load_job
            )
        return self._pool

    async def _list_workers(self, pool: ArqRedis) -> Sequence[str]:
        """Return the queues of the live workers, by their health checks."""
        at = asyncio.get_running_loop().time()
        if at >= self._until:
            found = [
                key.decode()
                async for key in pool.scan_iter(match=f"{_QUEUES}*{_HEALTH}", count=1000)
            ]
            self._queues = [key.removesuffix(_HEALTH) for key in found]
            self._until = at + _KNOWN
        return self._queues

    async def _receive_hints(self, queue: str) -> None:
        """Run an arq worker on this worker's queue.

        It is restarted whenever Redis was away for too long.
        """
        while True:
            try:
                async with (
                    self._open_pool() as pool,
                    _await_jobs(self._create_listener(queue, pool)) as listener,
                ):
                    await listener.async_run()
            except _LOST as error:
                log.warning(
                    "Redis does not answer (%s): this worker polls for work about every second",
                    type(error).__name__,
                )
            await asyncio.sleep(_AGAIN)

    @contextlib.asynccontextmanager
    async def _open_pool(self) -> AsyncIterator[ArqRedis]:
        """Open a connection pool. arq's own close method leaves a connection open when a job is
        running."""
        pool = await create_pool(self._settings, job_serializer=dump_job, job_deserializer=load_job)
        try:
            yield pool
        finally:
            await pool.aclose(close_connection_pool=True)

    def _create_listener(self, queue: str, pool: ArqRedis) -> ArqWorker:
        async def wake_worker(ctx: dict[Any, Any]) -> None:
            super(ArqWake, self).wake()

        return ArqWorker(
            [func(wake_worker, name="look", keep_result=0, max_tries=1)],
            queue_name=queue,
            cron_jobs=[
                cron(wake_worker, name="sweep", second=set(range(60)), unique=False, keep_result=0)
            ],
            redis_pool=pool,
            job_serializer=dump_job,
            job_deserializer=load_job,
            keep_result=0,
            poll_delay=0.05,
            health_check_interval=_ALIVE,
            handle_signals=False,
            log_results=False,
        )

    async def probe_connection(self) -> Probe:
        """Check whether Redis answers, and how many workers are alive in it."""
        fix = "see that REDIS_URL is right and Redis runs; until then workers find their work later"
        try:
            async with asyncio.timeout(3):
                found = await self._list_workers(await self._get_pool())
        except _LOST as error:
            return Probe(name="Redis", ok=False, needed=False, detail=type(error).__name__, fix=fix)
        return Probe(name="Redis", ok=True, detail=f"{len(found)} workers listen")


@contextlib.asynccontextmanager
async def _await_jobs(listener: ArqWorker) -> AsyncIterator[ArqWorker]:
    """Wait for running jobs at the end of the block: they use the connections, and arq does not
    wait for them."""
    try:
        yield listener
    finally:
        if listener.tasks:
            await asyncio.wait(listener.tasks.values(), timeout=_LAST)
