"""Row 3: from the webhook until the model is asked for the first time."""

import asyncio
import shutil
import sys
import time
from asyncio.subprocess import Process

from bench.process import HERE, PATIENCE, a_place, environment, run_checked, running
from bench.row import BenchmarkRow, Threshold
from osiris.core.errors import Refused
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from osiris.queue.database import connect
from osiris.queue.task_store import Store

REPO = "acme/shop"
_WARM_UP = 2


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Osiris is a process of its own; the hub is in this one, and says when it sent each
    webhook."""
    files = {f"shop/part_{n % 10}/file_{n}.py": f"NUMBER = {n}\n" * (20 + n) for n in range(100)}
    ours: list[float] = []
    theirs: list[float] = []
    with a_place() as place:
        async with start_environment(
            place, repo=REPO, files=files, people={"alice": "maintain"}, model="scripted:none"
        ) as playground:
            argv = [sys.executable, str(HERE / "timed_osiris.py")]
            port = playground.settings.osiris_port
            async with (
                running(argv, environment(playground.settings), place, port=port) as osiris,
                playground.get_person("alice") as alice,
            ):
                store = Store(connect(playground.settings.database))
                for number in range(_WARM_UP + (4 if quick else 15)):
                    took = await _issue(playground, alice, osiris)
                    cloned = await _clone(playground, number)
                    await _rest(playground, store)
                    if number >= _WARM_UP:
                        ours.append(took * 1e3)
                        theirs.append(cloned * 1e3)
    row = BenchmarkRow(
        name="first",
        what="webhook sent → model asked, warm, 100 files",
        unit="ms",
        ours=[ours],
        other="plain git clone of it from the same hub",
        theirs=[theirs],
        target=Threshold(p50=300),
        note=(
            "with the answer to the hook, the lookups at the hub, the mirror, a new sandbox and its"
            " checkout"
        ),
    )
    return [row]


async def _issue(playground: Environment, alice: Person, osiris: Process) -> float:
    issue = await alice.file_issue("Look", "Only look.")
    await alice.add_label(issue)
    if osiris.stdout is None:
        raise Refused("Osiris has no output")
    asked = float(await asyncio.wait_for(osiris.stdout.readline(), PATIENCE))
    sent = [
        d.delivered
        for d in playground.app.deliveries
        if (d.event, d.action) == ("issues", "labeled")
    ]
    if sent[-1] is None:
        raise Refused("the hub does not know when it sent the webhook")
    return asked - sent[-1]


async def _clone(playground: Environment, number: int) -> float:
    place = playground.settings.osiris_data_dir.parent / f"clone-{number}"
    began = time.perf_counter()
    await asyncio.to_thread(
        run_checked, ["git", "clone", "-q", f"{playground.hub.url}/{REPO}.git", place]
    )
    took = time.perf_counter() - began
    shutil.rmtree(place)
    return took


async def _rest(playground: Environment, store: Store) -> None:
    """Wait until the run is over and everything about it is said."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await playground.hub.wait_until_sent()
            if await store.next_due() is None:
                return
            await asyncio.sleep(0.02)
