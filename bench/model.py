"""The cost of a model step in addition to the vendor's server, over the vendor's own API and
library."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2

from bench.process import BENCH_FOLDER
from bench.row import BenchmarkRow, Threshold
from bench.step import build_order
from osiris.agents.briefing import build_messages
from osiris.agents.models.registry import Access, ModelRegistry
from osiris.core.ports.models import Message
from osiris.tools.toolbox import build_specs

_STEP = 50
_STEPS_AROUND = 5
_OUTPUT = "exit code 0 in 0.0 s\n" + "a line of output\n" * 60  # about 1 kB


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Each round is a run of 55 steps, and then its last eleven requests by bare HTTP."""
    ours: dict[str, list[list[float]]] = {}
    theirs: dict[str, list[list[float]]] = {}
    async with _start_vendors(_STEP + _STEPS_AROUND) as (environs, take_requests):
        for _ in range(2 if quick else 5):
            for vendor, environ in environs.items():
                durations = await _measure_run(vendor, environ)
                requests = (await take_requests())[
                    1:
                ]  # the first request probes whether the model can call tools
                own_times = [
                    1e3 * (duration - request["seconds"])
                    for duration, request in zip(durations, requests, strict=True)
                ]
                ours.setdefault(vendor, []).append(own_times[_STEP - _STEPS_AROUND :])
                bare_durations = await _measure_bare_requests(
                    environ, requests[_STEP - _STEPS_AROUND :]
                )
                bare_requests = await take_requests()
                pairs = zip(bare_durations, bare_requests, strict=True)
                theirs.setdefault(vendor, []).append(
                    [1e3 * (duration - request["seconds"]) for duration, request in pairs]
                )
    return [
        BenchmarkRow(
            name=f"model-{vendor}",
            what=f"one model step at step {_STEP}, {vendor}",
            unit="ms",
            ours=ours[vendor],
            other="the same request by bare httpx2, events parsed as JSON",
            theirs=theirs[vendor],
            target=Threshold(p50=15),
            note="both without the server's own time; the server is another process on this machine"
            if vendor == "anthropic"
            else "",
        )
        for vendor in ours
    ]


@contextlib.asynccontextmanager
async def _start_vendors(steps: int) -> AsyncIterator[tuple[Mapping[str, Mapping[str, str]], Any]]:
    """Start the vendors. Yield the environment for each, and a function that returns the requests
    since its last call."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.vendor_side",
        str(steps),
        cwd=BENCH_FOLDER.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    assert process.stdin
    assert process.stdout

    async def take_requests() -> list[dict[str, Any]]:
        process.stdin.write(b"\n")  # type: ignore[union-attr]
        return list(json.loads(await process.stdout.readline()))  # type: ignore[union-attr]

    try:
        yield json.loads(await process.stdout.readline()), take_requests
    finally:
        process.stdin.close()
        await process.wait()


async def _measure_run(vendor: str, environ: Mapping[str, str]) -> list[float]:
    """Return the seconds of each reply."""
    key, url = (environ[name] for name in sorted(environ) if name != "OSIRIS_MODEL")
    registry = ModelRegistry(environ["OSIRIS_MODEL"], {vendor: Access(key=key, url=url)})
    language_model = await registry.select()
    tools = build_specs()
    durations = []
    await registry.probe_model()
    transcript = list(build_messages(build_order(1), {}))
    for _ in range(_STEP + _STEPS_AROUND):
        began = time.perf_counter()
        reply = await language_model.reply(transcript, tools)
        durations.append(time.perf_counter() - began)
        transcript += [
            reply,
            *(Message(role="tool", text=_OUTPUT, call=call.id) for call in reply.calls),
        ]
    await registry.close()
    return durations


async def _measure_bare_requests(
    environ: Mapping[str, str], requests: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Return the seconds of the same requests, sent by a plain HTTP client."""
    [url] = [value for name, value in environ.items() if name.endswith("_BASE_URL")]
    durations = []
    async with httpx2.AsyncClient(base_url=url[: url.index("/", 8)], trust_env=False) as http:
        for request in requests:
            headers = {
                k: v for k, v in request["headers"].items() if k not in ("host", "content-length")
            }
            path = request["path"] + (
                "?alt=sse" if "streamGenerateContent" in request["path"] else ""
            )
            began = time.perf_counter()
            async with http.stream("POST", path, json=request["body"], headers=headers) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        json.loads(line[6:])
            durations.append(time.perf_counter() - began)
    return durations
