"""Rows 1 and 2: how fast a webhook is answered after its commit, and how many a second can be."""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.process import HERE, a_place, environment, osiris_command, run_json_job, running
from bench.row import BenchmarkRow, Threshold
from osiris.core.errors import Refused
from osiris.playground.environment import Environment, find_free_port, start_environment

_RATE = 200
_LINES = 16
_WORDS = "The second quantity replaces the first one, and nothing says so. "
_DRAINED = 60.0  # seconds


class DeliveryReceiver(Protocol):
    """Something that takes deliveries on `port` and stores them in the table `inbox` of
    `database`."""

    name: str
    port: int
    secret: str
    database: Path

    def alive(self) -> AbstractAsyncContextManager[Any]: ...


@dataclass(frozen=True)
class Ours:
    playground: Environment
    place: Path
    name: str = "osiris"

    @property
    def port(self) -> int:
        return self.playground.settings.osiris_port

    @property
    def secret(self) -> str:
        return self.playground.settings.github_webhook_secret.get_secret_value()

    @property
    def database(self) -> Path:
        return self.place / "data/osiris.db"

    def alive(self) -> AbstractAsyncContextManager[Any]:
        settings = self.playground.settings.model_copy(
            update={"osiris_data_dir": self.place / "data"}
        )
        return running(
            [*osiris_command(), "serve"], environment(settings), self.place, port=self.port
        )


@dataclass(frozen=True)
class Bare:
    place: Path
    port: int
    secret: str = "bench"
    name: str = "bare"

    @property
    def database(self) -> Path:
        return self.place / "bare.db"

    def alive(self) -> AbstractAsyncContextManager[Any]:
        env = {
            "BARE_PORT": str(self.port),
            "BARE_SECRET": self.secret,
            "BARE_DATABASE": str(self.database),
        }
        return running(
            [sys.executable, str(HERE / "bare_webhooks.py")], env, self.place, port=self.port
        )


@dataclass(frozen=True)
class Figures:
    took: list[float]
    rate: float
    late: list[float]


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Each round is a fresh process on a fresh database, ours and the bare one by turns."""
    ours = []
    theirs = []
    with a_place() as place:
        async with start_environment(
            place, repo="acme/shop", files={"README.md": "shop\n"}, people={"alice": "maintain"}
        ) as hub:
            bodies = await _bodies(hub)
            for number in range(2 if quick else 5):
                (here := place / f"round-{number}").mkdir()
                ours.append(await _round(Ours(hub, here), bodies, quick=quick))
                theirs.append(await _round(Bare(here, find_free_port()), bodies, quick=quick))
    late = sorted(late for figures in [*ours, *theirs] for late in figures.late)
    answered = BenchmarkRow(
        name="answer",
        what=f"webhook answered after its commit, {_RATE} a second",
        unit="ms",
        ours=[_ms(figures.took) for figures in ours],
        other="bare ASGI app, HMAC and one commit",
        theirs=[_ms(figures.took) for figures in theirs],
        target=Threshold(p50=5, p99=50),
        note=(
            "from the moment each was due; the generator itself was late by"
            f" {late[len(late) * 99 // 100] * 1e3:.2f} ms (p99); bodies of"
            f" {min(map(len, bodies)) >> 10} to {max(map(len, bodies)) >> 10} KiB"
        ),
    )
    most = BenchmarkRow(
        name="rate",
        what=f"webhooks a second, {_LINES} connections",
        unit="/s",
        ours=[[figures.rate] for figures in ours],
        other="bare ASGI app, HMAC and one commit",
        theirs=[[figures.rate] for figures in theirs],
        target=Threshold(ratio=0.6),
        note="only answers 202 count; every one of them was found in the database afterwards",
    )
    return [answered, most]


def _ms(seconds: Sequence[float]) -> list[float]:
    return [one * 1e3 for one in seconds]


async def _bodies(playground: Environment) -> list[str]:
    """`issues` deliveries as the hub makes them, of 8 to 20 kB; the label is none that starts
    work."""
    async with playground.get_person("alice") as alice:
        for number in range(8):
            issue = await alice.file_issue(f"Quantity {number}", _WORDS * (number * 22))
            await alice.add_label(issue, "bug")
    made = [
        d.body.decode()
        for d in playground.app.deliveries
        if (d.event, d.action) == ("issues", "labeled")
    ]
    if len(made) != 8:
        raise Refused(f"the hub made {len(made)} deliveries, not 8")
    await playground.hub.wait_until_sent()
    return made


async def _round(side: DeliveryReceiver, bodies: list[str], *, quick: bool) -> Figures:
    async with side.alive():
        sent = await _load(side, bodies, "warm", rate=None, seconds=0.3)
        accepted = _accepted(sent)
        await _idle(side)
        slow = await _load(side, bodies, "open", rate=_RATE, seconds=3 if quick else 8)
        if (accepted_slow := _accepted(slow)) != len(slow["took"]):
            raise Refused(f"{side.name} answered {slow['statuses']}, and not 202 to all")
        await _idle(side)
        fast = await _load(side, bodies, "closed", rate=None, seconds=2 if quick else 5)
        accepted += accepted_slow + _accepted(fast)
        stored = await asyncio.to_thread(_count, side.database, "delivery LIKE 'bench-%'")
    if stored != accepted:
        raise Refused(f"{side.name} answered 202 to {accepted} deliveries and stored {stored}")
    return Figures(slow["took"], fast["rate"], slow["late"])


async def _load(
    side: DeliveryReceiver, bodies: list[str], name: str, *, rate: int | None, seconds: float
) -> Any:
    job = {
        "port": side.port,
        "secret": side.secret,
        "bodies": bodies,
        "prefix": f"bench-{name}",
        "rate": rate,
        "seconds": seconds,
        "connections": _LINES if rate is None else 256,
    }
    return await run_json_job([sys.executable, "-S", str(HERE / "load.py")], job)


def _accepted(sent: Any) -> int:
    return int(sent["statuses"].get("202", 0))


async def _idle(side: DeliveryReceiver) -> None:
    """Wait until the worker has handled what came, so that the next figure starts from rest."""
    if side.name == "bare":
        return
    until = time.monotonic() + _DRAINED
    while await asyncio.to_thread(_count, side.database, "not_before IS NOT NULL"):
        if time.monotonic() > until:
            raise Refused("the worker did not get through the deliveries")
        await asyncio.sleep(0.2)


def _count(database: Path, where: str) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found: int = connection.execute(f"SELECT count(*) FROM inbox WHERE {where}").fetchone()[0]
        return found
