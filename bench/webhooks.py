"""The time until a webhook is answered after its commit, and the number of webhooks a second."""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.process import (
    BENCH_FOLDER,
    build_environ,
    create_bench_folder,
    find_osiris_command,
    run_json_job,
    start_process,
)
from bench.row import BenchmarkRow, Threshold
from osiris.core.errors import Refused
from osiris.playground.environment import Environment, find_free_port, start_environment

_RATE = 200
_CONNECTIONS = 16
_SENTENCE = "The second quantity replaces the first one, and nothing says so. "
_IDLE_TIMEOUT = 60.0  # seconds


class DeliveryReceiver(Protocol):
    """A process that receives deliveries on `port` and stores them in the table `inbox` of
    `database`."""

    name: str
    port: int
    secret: str
    database: Path

    def start(self) -> AbstractAsyncContextManager[Any]: ...


@dataclass(frozen=True)
class OsirisReceiver:
    """Osiris as the receiver."""

    playground: Environment
    folder: Path
    name: str = "osiris"

    @property
    def port(self) -> int:
        return self.playground.settings.osiris_port

    @property
    def secret(self) -> str:
        return self.playground.settings.github_webhook_secret.get_secret_value()

    @property
    def database(self) -> Path:
        return self.folder / "data/osiris.db"

    def start(self) -> AbstractAsyncContextManager[Any]:
        settings = self.playground.settings.model_copy(
            update={"osiris_data_dir": self.folder / "data"}
        )
        return start_process(
            [*find_osiris_command(), "serve"], build_environ(settings), self.folder, port=self.port
        )


@dataclass(frozen=True)
class BareReceiver:
    """The bare app as the receiver."""

    folder: Path
    port: int
    secret: str = "bench"
    name: str = "bare"

    @property
    def database(self) -> Path:
        return self.folder / "bare.db"

    def start(self) -> AbstractAsyncContextManager[Any]:
        env = {
            "BARE_PORT": str(self.port),
            "BARE_SECRET": self.secret,
            "BARE_DATABASE": str(self.database),
        }
        return start_process(
            [sys.executable, str(BENCH_FOLDER / "bare_webhooks.py")],
            env,
            self.folder,
            port=self.port,
        )


@dataclass(frozen=True)
class LoadResult:
    """The figures of one round."""

    durations: list[float]
    rate: float
    delays: list[float]


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """In each round, measure Osiris and the bare app in turn, each as a new process on a new
    database."""
    ours = []
    theirs = []
    with create_bench_folder() as folder:
        async with start_environment(
            folder, repo="acme/shop", files={"README.md": "shop\n"}, people={"alice": "maintain"}
        ) as hub:
            bodies = await _create_bodies(hub)
            for number in range(2 if quick else 5):
                (round_folder := folder / f"round-{number}").mkdir()
                ours.append(
                    await _measure_round(OsirisReceiver(hub, round_folder), bodies, quick=quick)
                )
                theirs.append(
                    await _measure_round(
                        BareReceiver(round_folder, find_free_port()), bodies, quick=quick
                    )
                )
    delays = sorted(delay for result in [*ours, *theirs] for delay in result.delays)
    answer_row = BenchmarkRow(
        name="answer",
        what=f"webhook answered after its commit, {_RATE} a second",
        unit="ms",
        ours=[_convert_to_ms(result.durations) for result in ours],
        other="bare ASGI app, HMAC and one commit",
        theirs=[_convert_to_ms(result.durations) for result in theirs],
        target=Threshold(p50=5, p99=50),
        note=(
            "from the moment each was due; the generator itself was late by"
            f" {delays[len(delays) * 99 // 100] * 1e3:.2f} ms (p99); bodies of"
            f" {min(map(len, bodies)) >> 10} to {max(map(len, bodies)) >> 10} KiB"
        ),
    )
    rate_row = BenchmarkRow(
        name="rate",
        what=f"webhooks a second, {_CONNECTIONS} connections",
        unit="/s",
        ours=[[result.rate] for result in ours],
        other="bare ASGI app, HMAC and one commit",
        theirs=[[result.rate] for result in theirs],
        target=Threshold(ratio=0.6),
        note="only answers 202 count; every one of them was found in the database afterwards",
    )
    return [answer_row, rate_row]


def _convert_to_ms(seconds: Sequence[float]) -> list[float]:
    return [value * 1e3 for value in seconds]


async def _create_bodies(playground: Environment) -> list[str]:
    """Return bodies of `issues` deliveries of 8 to 20 kB, as the hub sends them. Their label does
    not start work."""
    async with playground.get_person("alice") as alice:
        for number in range(8):
            issue = await alice.file_issue(f"Quantity {number}", _SENTENCE * (number * 22))
            await alice.add_label(issue, "bug")
    bodies = [
        delivery.body.decode()
        for delivery in playground.app.deliveries
        if (delivery.event, delivery.action) == ("issues", "labeled")
    ]
    if len(bodies) != 8:
        raise Refused(f"the hub made {len(bodies)} deliveries, not 8")
    await playground.hub.wait_until_sent()
    return bodies


async def _measure_round(side: DeliveryReceiver, bodies: list[str], *, quick: bool) -> LoadResult:
    async with side.start():
        warm_up = await _run_load(side, bodies, "warm", rate=None, seconds=0.3)
        accepted = _count_accepted(warm_up)
        await _wait_until_idle(side)
        at_rate = await _run_load(side, bodies, "open", rate=_RATE, seconds=3 if quick else 8)
        if (accepted_at_rate := _count_accepted(at_rate)) != len(at_rate["took"]):
            raise Refused(f"{side.name} answered {at_rate['statuses']}, and not 202 to all")
        await _wait_until_idle(side)
        at_full_speed = await _run_load(
            side, bodies, "closed", rate=None, seconds=2 if quick else 5
        )
        accepted += accepted_at_rate + _count_accepted(at_full_speed)
        stored = await asyncio.to_thread(_count_rows, side.database, "delivery LIKE 'bench-%'")
    if stored != accepted:
        raise Refused(f"{side.name} answered 202 to {accepted} deliveries and stored {stored}")
    return LoadResult(at_rate["took"], at_full_speed["rate"], at_rate["late"])


async def _run_load(
    side: DeliveryReceiver, bodies: list[str], name: str, *, rate: int | None, seconds: float
) -> Any:
    job = {
        "port": side.port,
        "secret": side.secret,
        "bodies": bodies,
        "prefix": f"bench-{name}",
        "rate": rate,
        "seconds": seconds,
        "connections": _CONNECTIONS if rate is None else 256,
    }
    return await run_json_job([sys.executable, "-S", str(BENCH_FOLDER / "load.py")], job)


def _count_accepted(result: Any) -> int:
    return int(result["statuses"].get("202", 0))


async def _wait_until_idle(side: DeliveryReceiver) -> None:
    """Wait until the worker has handled all deliveries, so that the next measurement starts without
    backlog."""
    if side.name == "bare":
        return
    deadline = time.monotonic() + _IDLE_TIMEOUT
    while await asyncio.to_thread(_count_rows, side.database, "not_before IS NOT NULL"):
        if time.monotonic() > deadline:
            raise Refused("the worker did not get through the deliveries")
        await asyncio.sleep(0.2)


def _count_rows(database: Path, where: str) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        count: int = connection.execute(f"SELECT count(*) FROM inbox WHERE {where}").fetchone()[0]
        return count
