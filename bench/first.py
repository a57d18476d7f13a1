"""The time from a webhook until the first request to the model."""

import asyncio
import shutil
import sys
import time
from asyncio.subprocess import Process

from bench.process import (
    BENCH_FOLDER,
    TIMEOUT,
    build_environ,
    create_bench_folder,
    run_checked,
    start_process,
)
from bench.row import BenchmarkRow, Threshold
from osiris.core.errors import Refused
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from osiris.queue.database import connect
from osiris.queue.task_store import Store

REPO = "acme/shop"
_WARM_UP = 2


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Run Osiris as a separate process. The hub runs in this process, and records when it sent each
    webhook."""
    files = {f"shop/part_{n % 10}/file_{n}.py": f"NUMBER = {n}\n" * (20 + n) for n in range(100)}
    ours: list[float] = []
    theirs: list[float] = []
    with create_bench_folder() as folder:
        async with start_environment(
            folder, repo=REPO, files=files, people={"alice": "maintain"}, model="scripted:none"
        ) as playground:
            argv = [sys.executable, str(BENCH_FOLDER / "timed_osiris.py")]
            port = playground.settings.osiris_port
            async with (
                start_process(
                    argv, build_environ(playground.settings), folder, port=port
                ) as osiris,
                playground.get_person("alice") as alice,
            ):
                store = Store(connect(playground.settings.database))
                for number in range(_WARM_UP + (4 if quick else 15)):
                    osiris_seconds = await _measure_first_request(playground, alice, osiris)
                    clone_seconds = await _measure_clone(playground, number)
                    await _wait_until_settled(playground, store)
                    if number >= _WARM_UP:
                        ours.append(osiris_seconds * 1e3)
                        theirs.append(clone_seconds * 1e3)
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


async def _measure_first_request(playground: Environment, alice: Person, osiris: Process) -> float:
    issue = await alice.file_issue("Look", "Only look.")
    await alice.add_label(issue)
    if osiris.stdout is None:
        raise Refused("Osiris has no output")
    requested_at = float(await asyncio.wait_for(osiris.stdout.readline(), TIMEOUT))
    sent_times = [
        delivery.delivered
        for delivery in playground.app.deliveries
        if (delivery.event, delivery.action) == ("issues", "labeled")
    ]
    if sent_times[-1] is None:
        raise Refused("the hub does not know when it sent the webhook")
    return requested_at - sent_times[-1]


async def _measure_clone(playground: Environment, number: int) -> float:
    folder = playground.settings.osiris_data_dir.parent / f"clone-{number}"
    began = time.perf_counter()
    await asyncio.to_thread(
        run_checked, ["git", "clone", "-q", f"{playground.hub.url}/{REPO}.git", folder]
    )
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


async def _wait_until_settled(playground: Environment, store: Store) -> None:
    """Wait until the run and all texts about it are finished."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            await playground.hub.wait_until_sent()
            if await store.next_due() is None:
                return
            await asyncio.sleep(0.02)
