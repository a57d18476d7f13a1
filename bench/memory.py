"""The memory of an idle web process."""

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization as key_formats
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.process import (
    BENCH_FOLDER,
    build_environ,
    create_bench_folder,
    find_osiris_command,
    start_process,
)
from bench.row import BenchmarkRow, Threshold
from osiris.config.settings import Settings
from osiris.playground.environment import find_free_port

_IDLE_SECONDS = 3.0  # seconds


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    ours = []
    theirs = []
    with create_bench_folder() as folder:
        script = folder / "script.yml"
        script.write_text("runs: [{steps: [{call: {list_dir: {}}}]}]\n")
        for number in range(1 if quick else 3):
            settings = _create_settings(folder / f"data-{number}", script)
            port = settings.osiris_port
            ours.append(
                [
                    await _measure_memory(
                        [*find_osiris_command(), "serve"], build_environ(settings), folder, port
                    )
                ]
            )
            env = {"BARE_PORT": str(port := find_free_port())}
            theirs.append(
                [
                    await _measure_memory(
                        [sys.executable, str(BENCH_FOLDER / "bare_web.py")], env, folder, port
                    )
                ]
            )
    row = BenchmarkRow(
        name="memory",
        what=f"osiris serve, idle for {_IDLE_SECONDS:.0f} s, resident",
        unit="MiB",
        ours=ours,
        other="python with uvicorn and FastAPI",
        theirs=theirs,
        target=Threshold(p50=120),
    )
    return [row]


def _create_settings(data: Path, script: Path) -> Settings:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        key_formats.Encoding.PEM,
        key_formats.PrivateFormat.TraditionalOpenSSL,
        key_formats.NoEncryption(),
    ).decode()
    return Settings(
        github_app_id="1",
        github_private_key=pem,
        github_webhook_secret="bench",
        github_api_url="http://127.0.0.1:9/api/v3",
        github_url="http://127.0.0.1:9",
        osiris_data_dir=data,
        osiris_port=find_free_port(),
        osiris_model=f"scripted:{script}",
    )


async def _measure_memory(
    argv: Sequence[str], env: Mapping[str, str], folder: Path, port: int
) -> float:
    async with start_process(argv, env, folder, port=port) as process:
        await asyncio.sleep(_IDLE_SECONDS)
        status = Path(f"/proc/{process.pid}/status").read_text()
    match = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) / 1024 if match else float("nan")
