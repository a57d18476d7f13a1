"""Processes of the benchmarks: they are started, waited for and ended."""

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

BENCH_FOLDER = Path(__file__).parent
BUILD_FOLDER = BENCH_FOLDER.parent / "build/bench"
TIMEOUT = 30.0  # seconds


@contextlib.contextmanager
def create_bench_folder() -> Iterator[Path]:
    """Create a folder on this machine's disk that the sandbox's user can pass through, and remove
    it at the end."""
    with tempfile.TemporaryDirectory(prefix="osiris-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            yield folder
        finally:
            unmount_below(folder)


def build_environ(settings: Settings) -> dict[str, str]:
    """Return the settings as environment variables, which `osiris serve` reads."""
    values = {}
    for name in Settings.model_fields:
        match getattr(settings, name):
            case SecretStr() as secret:
                values[name.upper()] = secret.get_secret_value()
            case tuple() as folders:
                values[name.upper()] = ":".join(map(str, folders))
            case None:
                pass
            case value:
                values[name.upper()] = str(value)
    return {name: value for name, value in values.items() if value} | {"PATH": os.environ["PATH"]}


@contextlib.asynccontextmanager
async def start_process(
    argv: Sequence[str], env: Mapping[str, str], folder: Path, *, port: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a process that listens on `port`, yield it when it answers, and end it when the block
    ends."""
    log = folder / f"log-{port}"
    with log.open("wb") as log_file:
        process = await asyncio.create_subprocess_exec(
            *argv, env=dict(env), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=log_file
        )
    try:
        await _wait_until_listening(port, process, log)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), TIMEOUT)


async def _wait_until_listening(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    async with httpx.AsyncClient(trust_env=False) as http:
        while time.monotonic() < deadline and process.returncode is None:
            with contextlib.suppress(httpx.HTTPError):
                await http.get(f"http://127.0.0.1:{port}/healthz")
                return
            await asyncio.sleep(0.02)
    raise Refused(
        f"{process.pid} did not start: {log.read_text('utf-8', 'replace').strip()[-300:]}"
    )


def find_osiris_command() -> list[str]:
    """Return the command that is installed beside this Python."""
    installed = Path(sys.executable).with_name("osiris")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "osiris"]


async def run_json_job(argv: Sequence[str], job: Any, env: Mapping[str, str] | None = None) -> Any:
    """Give a process a job in JSON, and return its answer in JSON."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=None if env is None else dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate(json.dumps(job).encode())
    if process.returncode:
        raise Refused(f"{Path(argv[1]).name} ended with exit code {process.returncode}")
    return json.loads(out)


def run_checked(argv: Sequence[str | Path], **options: Any) -> str:
    """Run a command to its end, and return its output. Raise Refused if it fails."""
    result = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, check=False, **options
    )
    if result.returncode:
        error_lines = result.stderr.strip().splitlines()
        reason = error_lines[-1] if error_lines else result.returncode
        raise Refused(f"{' '.join(map(str, argv[:4]))} failed: {reason}")
    return result.stdout
