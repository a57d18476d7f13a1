"""Measures what a function of the host costs, in a separate process: memory, stalls of its event
loop, and processor time.

    python -m tests.attacks.memory_bounds FUNCTION CPU ARGUMENTS

`FUNCTION` is the name of one of the functions below, and its arguments are JSON. The answer is a
`Cost` as JSON.
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
from tests.attacks.worker import read_peak_memory, reset_peak_memory

REPO = "acme/shop"
MIB = 1 << 20
TICK = 0.005
LIMITS = (("import_pack", "_UNPACK"), ("import_pack", "_COUNTING"), ("file_listings", "_LIMITS"))
"""(module, name) of the limits of programs that may take long."""


@dataclass(frozen=True)
class Cost:
    """The result of a call, and its cost: by how many bytes at most the process grew, the longest
    stall of its loop in seconds (without the time it waited for a processor), and the seconds of
    processor time of the programs it started."""

    answer: Any
    growth: int
    stall: float
    cpu: float


def measure_cost(function: str, *, cpu: int = 0, **arguments: Any) -> Cost:
    """Run one of the functions below in a separate process, and return its cost. `cpu` lowers the
    limits of programs that may take long to so many seconds of processor time, so that tests need
    not wait for them."""
    argv = [
        sys.executable,
        "-m",
        "tests.attacks.memory_bounds",
        function,
        str(cpu),
        json.dumps(arguments),
    ]
    checkout = Path(__file__).parents[2]
    result = subprocess.run(argv, cwd=checkout, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return Cost(**json.loads(result.stdout))


# ── the functions to measure ──────────────────────────────────────────────────────────────────────


async def fingerprint_packages(folder: str, commit: str) -> str:
    return await HostRepositories(Path(folder)).fingerprint_packages(REPO, commit)


async def read_instructions(folder: str, commit: str) -> dict[str, Any]:
    read = await HostRepositories(Path(folder)).read_instructions(REPO, commit)
    return {"texts": dict(read.texts), "left_out": list(read.left_out)}


async def import_pack(folder: str, base: str, tree: str, pack: str) -> Any:
    with Path(pack).open("rb") as file:
        imported = await HostRepositories(Path(folder)).import_pack(
            REPO, base, Export(tree=tree, pack=file), ()
        )
    return [asdict(file) for file in imported.files]


# ── the measurement ───────────────────────────────────────────────────────────────────────────────


async def _watch_loop(stalls: list[float]) -> None:
    while True:
        began = time.monotonic()
        waited = _read_wait_time()
        await asyncio.sleep(TICK)
        stalls.append(time.monotonic() - began - TICK - (_read_wait_time() - waited))


def _read_wait_time() -> float:
    """Return the seconds that this thread has waited for a processor."""
    return (
        int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1])
        / 1e9
    )


async def _measure_function(
    function: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]
) -> Cost:
    stalls = [0.0]
    watch = asyncio.create_task(_watch_loop(stalls))
    await asyncio.sleep(0)
    reset_peak_memory()
    before = read_peak_memory()
    try:
        async with asyncio.timeout(60):
            answer = await function(**arguments)
    except (OsirisError, TimeoutError, MemoryError) as error:
        answer = f"{type(error).__name__}: {error}"
    await asyncio.sleep(0)  # a stall is seen when it is over
    await asyncio.sleep(2 * TICK)
    watch.cancel()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(answer=answer, growth=read_peak_memory() - before, stall=max(stalls), cpu=cpu)


def _lower_limits(cpu: int) -> None:
    for name, limit in LIMITS:
        module = importlib.import_module(f"osiris.bot.git.{name}")
        setattr(module, limit, replace(getattr(module, limit), cpu=cpu))


def main(name: str, cpu: str, arguments: str) -> None:
    # to protect this machine
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
    functions = {
        function.__name__: function
        for function in (fingerprint_packages, read_instructions, import_pack)
    }
    if int(cpu):
        _lower_limits(int(cpu))
    cost = asyncio.run(_measure_function(functions[name], json.loads(arguments)))
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main(*sys.argv[1:])
