"""Model vendors: the requests of Osiris compared with the request types of the vendors' own
libraries."""

import asyncio
from collections.abc import Sequence

from fake_vendors.request_shapes import find_misfits
from fake_vendors.server import VENDOR_APIS, ReceivedRequest, Vendors, serve_vendors
from fake_vendors.troubles import (
    BadArguments,
    BreakMidway,
    ContextFull,
    CutInCall,
    Say,
    UnknownTool,
)
from fidelity.finding import CheckOutcome
from osiris.agents.briefing import read_prompt
from osiris.agents.models.registry import Access, ModelRegistry
from osiris.core.ports.models import Message
from osiris.tools.toolbox import build_specs

_BOTH = {
    "say": "Two at once.",
    "call": {"read_file": {"path": 'a "b" é.py'}, "list_dir": {"path": "."}},
}
_ONE = {"say": "One.", "call": {"run_command": {"command": "echo 😀"}}}
_SCRIPT = {"runs": [{"steps": [_BOTH, *[_ONE] * 30]}]}
_TROUBLES = (
    Say("Well."),
    UnknownTool("browse"),
    BadArguments("read_file", '{"pa'),
    CutInCall("read_file", '{"pa'),
)


def check_requests() -> CheckOutcome:
    """Check whole conversations with each vendor, and conversations that move from each vendor to
    each other."""
    outcome = CheckOutcome(
        check="models", promise="requests to models fit the types of the vendors' own libraries"
    )
    for request in asyncio.run(_run_conversations()):
        outcome.checked_count += 1
        for misfit in find_misfits(request):
            outcome.add_violation(f"{request.vendor} {request.path}", misfit)
    outcome.checked_what = f"requests to {len(VENDOR_APIS)} vendors"
    return outcome


async def _run_conversations() -> Sequence[ReceivedRequest]:
    async with serve_vendors(_SCRIPT) as vendors:
        for vendor in VENDOR_APIS:
            await _run_conversation(vendors, [vendor] * 8, has_troubles=True)
            for other in VENDOR_APIS:
                if other != vendor:
                    await _run_conversation(vendors, [vendor, other, vendor, other])
        return list(vendors.requests)


async def _run_conversation(
    vendors: Vendors, speakers: Sequence[str], *, has_troubles: bool = False
) -> None:
    """Run a conversation in which each of `speakers` replies once, with one of the troubles before
    each reply if `has_troubles`."""
    registries = {vendor: _create_registry(vendors, vendor) for vendor in speakers}
    for registry in registries.values():
        await registry.probe_model()
    transcript = [
        Message(role="system", text=read_prompt()),
        Message(role="user", text="The brief."),
    ]
    troubles = [*_TROUBLES, BreakMidway(), ContextFull()] if has_troubles else []
    for vendor in speakers:
        vendors.troubles += [troubles.pop(0)] if troubles else []
        reply = await (await registries[vendor].select()).reply(transcript, build_specs())
        answers = [
            Message(role="tool", text="exit code 0 in 0.1 s\n" + "x" * 3000, call=call.id)
            for call in reply.calls
        ]
        transcript += [reply, *(answers or [Message(role="user", text="Use a tool.")])]
    for registry in registries.values():
        await registry.close()


def _create_registry(vendors: Vendors, vendor: str) -> ModelRegistry:
    environ = vendors.build_environ(vendor)
    name = vendor.upper().replace("-", "_")
    access = Access(key=environ[f"{name}_API_KEY"], url=environ[f"{name}_BASE_URL"])
    return ModelRegistry(environ["OSIRIS_MODEL"], {vendor: access}, window=8_000)
