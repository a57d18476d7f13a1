"""Measures what a call of the host's costs, in a process of its own: memory, stalls of its event
loop, and processors.

    python -m tests.attacks.memory_bounds WORK CPU ARGUMENTS

`WORK` is one of the functions below, and its arguments are JSON. The answer is a `Cost` as JSON.
"""

import asyncio
import importlib
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from osiris.bot.git.repositories import HostRepositories
from osiris.core.errors import OsirisError
from osiris.core.ports.sandbox import Export
from tests.attacks.worker import _most_memory

REPO = "acme/shop"
MIB = 1 << 20
TICK = 0.005
LONG = (("import_pack", "_UNPACK"), ("import_pack", "_COUNTING"), ("file_listings", "_LIMITS"))
"""The limits of what may take long."""


@dataclass(frozen=True)
class Cost:
    """What a call gave, and what it cost: bytes that the process grew by at the most, the longest
    stall of its loop in seconds (without the time it waited for a processor), and seconds of
    processor time of the programs it started."""

    answer: Any
    growth: int
    stall: float
    cpu: float


def measure(work: str, *, cpu: int = 0, **arguments: Any) -> Cost:
    """Do one of the works below in a process of its own, and say what it cost. With `cpu`, what may
    take some seconds of a processor by itself may only take so many, so that tests need not wait
    for it."""
    words = [
        sys.executable,
        "-m",
        "tests.attacks.memory_bounds",
        work,
        str(cpu),
        json.dumps(arguments),
    ]
    house = Path(__file__).parents[2]
    result = subprocess.run(words, cwd=house, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return Cost(**json.loads(result.stdout))


# ── the works ─────────────────────────────────────────────────────────────────────────────────────


async def fingerprint(place: str, commit: str) -> str:
    return await HostRepositories(Path(place)).fingerprint_packages(REPO, commit)


async def instructions(place: str, commit: str) -> Mapping[str, str]:
    return dict(await HostRepositories(Path(place)).read_instructions(REPO, commit))


async def take(place: str, base: str, tree: str, pack: str) -> Any:
    with Path(pack).open("rb") as file:
        taken = await HostRepositories(Path(place)).import_pack(
            REPO, base, Export(tree=tree, pack=file), ()
        )
    return [asdict(file) for file in taken.files]


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


async def _watch(stalls: list[float]) -> None:
    while True:
        began = time.monotonic()
        waited = _waited()
        await asyncio.sleep(TICK)
        stalls.append(time.monotonic() - began - TICK - (_waited() - waited))


def _waited() -> float:
    """Seconds that this thread has waited for a processor."""
    return (
        int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1])
        / 1e9
    )


async def _measured(work: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]) -> Cost:
    stalls = [0.0]
    watch = asyncio.create_task(_watch(stalls))
    await asyncio.sleep(0)
    # the most is counted anew; see proc_pid_clear_refs(5)
    Path("/proc/self/clear_refs").write_text("5")
    before = _most_memory()
    try:
        async with asyncio.timeout(60):
            answer = await work(**arguments)
    except (OsirisError, TimeoutError, MemoryError) as error:
        answer = f"{type(error).__name__}: {error}"
    await asyncio.sleep(0)  # a stall shows when it is over
    await asyncio.sleep(2 * TICK)
    watch.cancel()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = spent.ru_utime + spent.ru_stime
    return Cost(answer=answer, growth=_most_memory() - before, stall=max(stalls), cpu=cpu)


def _lower(cpu: int) -> None:
    for part, name in LONG:
        module = importlib.import_module(f"osiris.bot.git.{part}")
        setattr(module, name, replace(getattr(module, name), cpu=cpu))


if __name__ == "__main__":
    # for the sake of this machine
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
    works = {work.__name__: work for work in (fingerprint, instructions, take)}
    if int(sys.argv[2]):
        _lower(int(sys.argv[2]))
    print(json.dumps(asdict(asyncio.run(_measured(works[sys.argv[1]], json.loads(sys.argv[3]))))))
