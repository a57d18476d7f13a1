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

TIMEOUT = 60.0  # seconds


@contextlib.asynccontextmanager
async def run_demo(folder: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `osiris demo` with its temporary files in `folder`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "osiris", "demo", *options),
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def list_leftovers(folder: Path) -> list[str]:
    """Return the files in `folder` and the mounts below it."""
    mount_points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    files = [str(path) for path in folder.iterdir()]
    return [*files, *(path for path in mount_points if path.startswith(f"{folder}/"))]


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """Read the output of the demo until it contains `text`. Return the output."""
    output = ""
    assert process.stdout is not None
    while text not in output:
        line = await process.stdout.readline()
        assert line, output
        output += line.decode()
    return output


@pytest.mark.long
async def test_the_demo_ends_with_a_merged_pull_request_and_leaves_nothing(folder: Path):
    async with run_demo(folder) as process:
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    assert b"bob approved and merged" in output
    assert list_leftovers(folder) == []


@pytest.mark.long
async def test_a_demo_that_is_kept_shows_where_to_look_and_leaves_nothing_after_sigterm(
    folder: Path,
):
    async with run_demo(folder, "--keep") as process:
        output = await read_until(process, "Ctrl-C ends it")
        clone = re.search(r"git clone (\S+)", output)
        assert clone is not None
        assert Path(clone[1]).is_dir()
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0
    assert list_leftovers(folder) == []


@pytest.mark.long
async def test_a_demo_that_is_ended_in_the_middle_leaves_nothing(folder: Path):
    async with run_demo(folder) as process:
        await read_until(process, "gave it the label osiris")
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 143
    assert list_leftovers(folder) == []
