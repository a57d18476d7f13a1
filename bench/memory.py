"""Row 7: what an idle web process holds in memory."""

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.process import HERE, a_place, environment, osiris_command, running
from bench.row import BenchmarkRow, Threshold
from osiris.config.settings import Settings
from osiris.playground.environment import find_free_port

_IDLE = 3.0  # seconds


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    ours = []
    theirs = []
    with a_place() as place:
        script = place / "script.yml"
        script.write_text("runs: [{steps: [{call: {list_dir: {}}}]}]\n")
        for number in range(1 if quick else 3):
            settings = _settings(place / f"data-{number}", script)
            port = settings.osiris_port
            ours.append(
                [await _held([*osiris_command(), "serve"], environment(settings), place, port)]
            )
            env = {"BARE_PORT": str(port := find_free_port())}
            theirs.append(
                [await _held([sys.executable, str(HERE / "bare_web.py")], env, place, port)]
            )
    row = BenchmarkRow(
        name="memory",
        what=f"osiris serve, idle for {_IDLE:.0f} s, resident",
        unit="MiB",
        ours=ours,
        other="python with uvicorn and FastAPI",
        theirs=theirs,
        target=Threshold(p50=120),
    )
    return [row]


def _settings(data: Path, script: Path) -> Settings:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption()
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


async def _held(argv: Sequence[str], env: Mapping[str, str], place: Path, port: int) -> float:
    async with running(argv, env, place, port=port) as process:
        await asyncio.sleep(_IDLE)
        status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")
