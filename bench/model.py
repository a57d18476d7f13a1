"""Row 7: what one model step costs beyond the vendor's server, over the vendor's own wire and
library."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2

from bench.process import HERE
from bench.row import BenchmarkRow, Threshold
from bench.step import order_of
from osiris.agents.briefing import build_messages
from osiris.agents.models.registry import Access, ModelRegistry
from osiris.core.ports.models import Message
from osiris.tools.toolbox import build_specs

_PLACE, _AROUND = 50, 5
_OUTPUT = "exit code 0 in 0.0 s\n" + "a line of output\n" * 60  # about 1 kB


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Each round is a run of 55 steps, and the last eleven requests of it once more by bare
    HTTP."""
    ours: dict[str, list[list[float]]] = {}
    theirs: dict[str, list[list[float]]] = {}
    async with _vendors(_PLACE + _AROUND) as (reached, asked):
        for _ in range(2 if quick else 5):
            for vendor, environ in reached.items():
                took = await _run(vendor, environ)
                requests = (await asked())[1:]  # the first asks whether the model can call tools
                spent = [
                    1e3 * (span - one["seconds"]) for span, one in zip(took, requests, strict=True)
                ]
                ours.setdefault(vendor, []).append(spent[_PLACE - _AROUND :])
                bare = await _bare(environ, requests[_PLACE - _AROUND :])
                again = await asked()
                pairs = zip(bare, again, strict=True)
                theirs.setdefault(vendor, []).append(
                    [1e3 * (span - one["seconds"]) for span, one in pairs]
                )
    return [
        BenchmarkRow(
            name=f"model-{vendor}",
            what=f"one model step at step {_PLACE}, {vendor}",
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
async def _vendors(steps: int) -> AsyncIterator[tuple[Mapping[str, Mapping[str, str]], Any]]:
    """How each vendor is reached, and a function that tells what was asked since it was last
    called."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.vendor_side",
        str(steps),
        cwd=HERE.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    assert process.stdin
    assert process.stdout

    async def asked() -> list[dict[str, Any]]:
        process.stdin.write(b"\n")  # type: ignore[union-attr]
        return list(json.loads(await process.stdout.readline()))  # type: ignore[union-attr]

    try:
        yield json.loads(await process.stdout.readline()), asked
    finally:
        process.stdin.close()
        await process.wait()


async def _run(vendor: str, environ: Mapping[str, str]) -> list[float]:
    """The seconds of each reply."""
    key, url = (environ[name] for name in sorted(environ) if name != "OSIRIS_MODEL")
    models = ModelRegistry(environ["OSIRIS_MODEL"], {vendor: Access(key=key, url=url)})
    language_model = await models.select()
    tools = build_specs()
    took = []
    await models.probe_model()
    transcript = list(build_messages(order_of(1), {}))
    for _ in range(_PLACE + _AROUND):
        began = time.perf_counter()
        reply = await language_model.reply(transcript, tools)
        took.append(time.perf_counter() - began)
        transcript += [
            reply,
            *(Message(role="tool", text=_OUTPUT, call=call.id) for call in reply.calls),
        ]
    await models.close()
    return took


async def _bare(environ: Mapping[str, str], requests: Sequence[Mapping[str, Any]]) -> list[float]:
    """The same requests with nothing between us and the wire."""
    [url] = [value for name, value in environ.items() if name.endswith("_BASE_URL")]
    took = []
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
            took.append(time.perf_counter() - began)
    return took
