"""The demo as a new user runs it: it shows the whole workflow and leaves nothing behind."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

PATIENCE = 60.0  # seconds


@contextlib.asynccontextmanager
async def run_demo(place: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `osiris demo` with its temporary files in `place`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "osiris", "demo", *options),
        env={**os.environ, "TMPDIR": str(place)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def list_leftovers(place: Path) -> list[str]:
    """Return the files in `place` and the mounts below it."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    files = [str(path) for path in place.iterdir()]
    return [*files, *(path for path in mounted if path.startswith(f"{place}/"))]


async def read_until(process: asyncio.subprocess.Process, words: str) -> str:
    printed = ""
    assert process.stdout is not None
    while words not in printed:
        line = await process.stdout.readline()
        assert line, printed
        printed += line.decode()
    return printed


@pytest.mark.long
async def test_the_demo_ends_with_a_merged_pull_request_and_leaves_nothing(place: Path):
    async with run_demo(place) as process:
        printed, _ = await process.communicate()
    assert process.returncode == 0, printed
    assert b"bob approved and merged" in printed
    assert list_leftovers(place) == []


@pytest.mark.long
async def test_a_demo_that_is_kept_shows_where_to_look_and_leaves_nothing_after_sigterm(
    place: Path,
):
    async with run_demo(place, "--keep") as process:
        printed = await read_until(process, "Ctrl-C ends it")
        clone = re.search(r"git clone (\S+)", printed)
        assert clone is not None
        assert Path(clone[1]).is_dir()
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0
    assert list_leftovers(place) == []


@pytest.mark.long
async def test_a_demo_that_is_ended_in_the_middle_leaves_nothing(place: Path):
    async with run_demo(place) as process:
        await read_until(process, "gave it the label osiris")
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 143
    assert list_leftovers(place) == []
