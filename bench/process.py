"""Processes of the benchmark: Osiris or another program, started, waited for, and ended."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from osiris.config.settings import Settings
from osiris.core.errors import Refused
from osiris.tools.sandbox.disks.mounts import unmount_below

HERE = Path(__file__).parent
BUILD = HERE.parent / "build/bench"
PATIENCE = 30.0  # seconds


@contextlib.contextmanager
def a_place() -> Iterator[Path]:
    """A folder on this machine's disk that the sandbox's user may pass through; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="osiris-bench-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o711)
        try:
            yield place
        finally:
            unmount_below(place)


def environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment of a process, which is where `osiris serve` reads them."""
    given = {}
    for name in Settings.model_fields:
        match getattr(settings, name):
            case SecretStr() as secret:
                given[name.upper()] = secret.get_secret_value()
            case tuple() as folders:
                given[name.upper()] = ":".join(map(str, folders))
            case None:
                pass
            case value:
                given[name.upper()] = str(value)
    return {name: value for name, value in given.items() if value} | {"PATH": os.environ["PATH"]}


@contextlib.asynccontextmanager
async def running(
    argv: Sequence[str], env: Mapping[str, str], place: Path, *, port: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that listens on `port`, from when it answers until the block ends."""
    log = place / f"log-{port}"
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *argv, env=dict(env), cwd=place, stdout=asyncio.subprocess.PIPE, stderr=said
        )
    try:
        await _answers(port, process, log)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), PATIENCE)


async def _answers(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    async with httpx.AsyncClient(trust_env=False) as http:
        while time.monotonic() < until and process.returncode is None:
            with contextlib.suppress(httpx.HTTPError):
                await http.get(f"http://127.0.0.1:{port}/healthz")
                return
            await asyncio.sleep(0.02)
    raise Refused(
        f"{process.pid} did not start: {log.read_text('utf-8', 'replace').strip()[-300:]}"
    )


def osiris_command() -> list[str]:
    """The command as it is installed beside this python."""
    installed = Path(sys.executable).with_name("osiris")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "osiris"]


async def run_json_job(argv: Sequence[str], job: Any, env: Mapping[str, str] | None = None) -> Any:
    """Give a process a job in JSON, and read its answer in JSON."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=None if env is None else dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate(json.dumps(job).encode())
    if process.returncode:
        raise Refused(f"{Path(argv[1]).name} ended with exit code {process.returncode}")
    return json.loads(out)


def run_checked(argv: Sequence[str | Path], **how: Any) -> str:
    """Run to the end. Raises Refused when it fails."""
    result = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, check=False, **how
    )
    if result.returncode:
        words = result.stderr.strip().splitlines()
        raise Refused(
            f"{' '.join(map(str, argv[:4]))} failed: {words[-1] if words else result.returncode}"
        )
    return result.stdout
